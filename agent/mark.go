package agent

import "causeway/protocol"

// mark is the newest word of the cluster's state that came to this node: with the netmap that it holds, with
// the answer to its join, or by itself. nil: none.
func (a *Agent) mark() *protocol.StateMark {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.markLocked()
}

// markLocked is mark. a.mu is held.
func (a *Agent) markLocked() *protocol.StateMark {
	m := a.own.Now().Mark
	if a.held != nil {
		m = newerMark(m, a.held.Netmap.Mark)
	}
	return newerMark(m, a.marked)
}

// newerMark is the mark of the later state; nil is of none.
func newerMark(m, n *protocol.StateMark) *protocol.StateMark {
	if m == nil || n != nil && m.Less(*n) {
		return n
	}
	return m
}

// takeMark is the control channel's. It goes to disk with the netmap, now and then.
func (a *Agent) takeMark(m protocol.StateMark) {
	if err := m.Check(a.own.Now().Pin); err != nil {
		a.log.Warn().Err(err).Msg("the hub sent a mark of the state that is not this cluster's")
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.marked = newerMark(a.marked, &m)
}
