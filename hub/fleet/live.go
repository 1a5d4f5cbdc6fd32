package fleet

import (
	"slices"
	"strings"
	"time"

	"causeway/hub/api"
	"causeway/hub/facts/event"
	"causeway/hub/liveness"
	"causeway/hub/state"
	"causeway/protocol"
)

// Info is what is shown of a node.
type Info struct {
	State      string // api.Node…
	Since      time.Time
	Reasons    []string
	Hello      protocol.Hello
	Status     protocol.Status
	Acked      protocol.NetmapVersion
	Refused    []protocol.RefusedPart
	Connected  time.Time // since when there is a control session; zero: none
	LastWord   time.Time // by the hub's clock; zero: none since the hub's start
	Goodbye    bool      // the agent ended its last session itself
	Conditions []protocol.Condition
}

// Info returns what is known of node n.
func (t *Table) Info(n state.Node) Info {
	t.mu.Lock()
	defer t.mu.Unlock()
	return info(n, t.live(n.Number), t.strays, time.Now())
}

// Is is the state that Info returns of node n.
func (t *Table) Is(n state.Node) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	is, _, _ := judge(n, t.live(n.Number))
	return is
}

func info(n state.Node, x Node, strays state.Map[protocol.NodeNumber, Stray], now time.Time) Info {
	i := Info{Hello: x.Hello, Status: x.Status, Acked: x.Acked, Refused: slices.Clone(x.Refused), LastWord: x.LastWord, Goodbye: x.Goodbye, Conditions: slices.Clone(x.Status.Conditions)}
	if x.Session != nil {
		i.Connected = x.Up
	}
	i.State, i.Since, i.Reasons = judge(n, x)
	if text := strayOf(n, strays, now); text != "" && i.State == api.NodeUnreachable {
		i.Reasons = []string{text}
	}
	return i
}

// judge returns a node's state, since when, and why it is not ready.
func judge(n state.Node, x Node) (string, time.Time, []string) {
	switch {
	case n.Gone == state.GoneLeft:
		return api.NodeLeft, n.GoneTime, []string{"it left the cluster"}
	case n.Gone == state.GoneRevoked:
		return api.NodeRevoked, n.GoneTime, []string{"it was revoked"}
	case n.Quarantine != "":
		return api.NodeQuarantined, x.Shut, []string{n.Quarantine}
	case n.Statement == nil && x.Session == nil:
		return api.NodeJoined, n.Joined, []string{"it redeemed its token, but its agent was never seen on the tunnel; is 'causeway-agent run' running there?"}
	}
	return x.Verdict.State, x.Verdict.Since, x.Verdict.Reasons
}

// complaints are what is wrong with a connected node by its own last word.
func complaints(l *record) []string {
	var reasons []string
	for _, c := range l.status.Conditions {
		if !c.OK && c.Name != protocol.ConditionPaths {
			r := c.Name
			if c.Cause != "" {
				r += ": " + c.Cause
			}
			reasons = append(reasons, r)
		}
	}
	reasons = append(reasons, l.errors...)
	if !l.heard {
		reasons = append(reasons, "no status yet")
	}
	return reasons
}

// judged lets node n be judged by what is known now, and reports whether the verdict is another one. t.mu is held.
func (t *Table) judged(n protocol.NodeNumber, l *record) (changed bool) {
	e := liveness.Evidence{Session: l.session != nil, Word: l.lastWord, Probe: t.cfg.Proven(n)}
	if e.Session {
		e.Reasons = complaints(l)
	}
	moved := l.machine.Observe(time.Now(), e)
	if !moved && t.known.Get(n).Verdict.Equal(l.machine.Verdict()) {
		return false
	}
	node := t.cfg.State().Nodes.Get(n)
	if !moved || !node.Live() || node.Quarantine != "" {
		return true
	}
	switch v := l.machine.Verdict(); v.State {
	case api.NodeReady:
		t.cfg.Events.Add(event.NodeReady, node.Name, "the node is ready")
	case api.NodeDegraded:
		t.cfg.Events.Add(event.NodeDegraded, node.Name, protocol.OneLine("the node is degraded: "+strings.Join(v.Reasons, "; "), MaxText))
	case api.NodeUnreachable:
		t.cfg.Events.Add(event.NodeUnreachable, node.Name, "the node is unreachable: "+v.Reasons[0])
	}
	return true
}

// LookAround judges all nodes: silence is no event. It is to be called at least once a second.
func (t *Table) LookAround() {
	st := t.cfg.State()
	t.mu.Lock()
	defer t.mu.Unlock()
	for n, l := range t.nodes {
		if quarantined := st.Nodes.Get(n).Quarantine != ""; quarantined != !l.shut.IsZero() {
			if l.shut = (time.Time{}); quarantined {
				l.shut = time.Now().UTC()
			}
			t.wrote(n)
		}
		if t.judged(n, l) {
			t.wrote(n)
		}
	}
	t.strayed(time.Now())
}

// Missed makes events of nodes that were there before this hub's start and are not yet.
func (t *Table) Missed() {
	st := t.cfg.State()
	t.mu.Lock()
	defer t.mu.Unlock()
	for n, r := range t.before.All() {
		if node := st.Nodes.Get(n); r.Online && node.Live() && t.node(n).session == nil {
			t.cfg.Events.Add(event.NodeUnreachable, node.Name, "the node is unreachable: "+t.node(n).machine.Verdict().Reasons[0])
		}
	}
}
