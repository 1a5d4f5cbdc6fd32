package desired

import "causeway/protocol"

// Mark is the newest word of the cluster's state that came to this node: with the netmap that it holds, with
// the answer to its join, or by itself. nil: none.
func (d *Desired) Mark() *protocol.StateMark {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mark()
}

// mark is Mark. d.mu is held.
func (d *Desired) mark() *protocol.StateMark {
	return newerMark(newerMark(d.Own.Now().Mark, d.now.Netmap().Mark), d.marked)
}

// newerMark is the mark of the later state; nil is of none.
func newerMark(m, n *protocol.StateMark) *protocol.StateMark {
	if m == nil || n != nil && m.Less(*n) {
		return n
	}
	return m
}

// TakeMark takes a newer mark. It goes to disk with the netmap, now and then.
func (d *Desired) TakeMark(m protocol.StateMark) {
	if err := m.Check(d.Own.Now().Pin); err != nil {
		d.Log.Warn().Err(err).Msg("the hub sent a mark of the state that is not this cluster's")
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.marked = newerMark(d.marked, &m)
}
