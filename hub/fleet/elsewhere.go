package fleet

import (
	"encoding/json"
	"net/netip"
	"slices"
	"time"

	"causeway/hub/state"
	"causeway/protocol"
)

// What a node announces beyond the state is known to the hub that it talks to. Where several hubs share a log, each
// tells the others, again and again, so that an admin at any of them sees it and decides on it, and the hub that a
// node left forgets it. A hub that is silent is forgotten.
const (
	// ElsewhereSubject is where hubs tell each other, in the account of the state log.
	ElsewhereSubject = "causeway.v1.hub.announced"
	// ElsewhereEvery is how often they do.
	ElsewhereEvery = 2 * time.Second
	elsewhereHeld  = 5 * ElsewhereEvery
	// elsewhereRoutes bounds one message: a route takes some 50 bytes at most, and a message of NATS may have 1 MiB.
	elsewhereRoutes = 16 * protocol.MaxNodeRoutes
	elsewhereNodes  = 4096
	maxElsewhere    = 1 << 20 // bytes of a message
)

// told is a message of one hub to the others.
type told struct {
	Version int                 `json:"v"`
	Hub     protocol.NodeNumber `json:"hub"`
	Nodes   []toldNode          `json:"nodes"`
}

type toldNode struct {
	Node protocol.NodeNumber `json:"n"`
	Here bool                `json:"here,omitempty"` // there is a session
	// Waiting are the routes that it announced last and that are no state.
	Waiting []netip.Prefix `json:"waiting,omitempty"`
}

// elsewhere is what another hub told of a node last.
type elsewhere struct {
	hub     protocol.NodeNumber
	at      time.Time
	here    bool
	waiting []netip.Prefix
}

// TellOthers is what the other hubs are to know now, in messages for ElsewhereSubject.
func (t *Table) TellOthers() (out [][]byte) {
	st := t.cfg.State()
	nodes := t.toldNodes()
	next, routes := told{Version: protocol.Version, Hub: t.cfg.Number}, 0
	flush := func() {
		if b, err := json.Marshal(next); err == nil && len(next.Nodes) > 0 {
			out = append(out, b)
		}
		next.Nodes, routes = nil, 0
	}
	for i, n := range nodes {
		announced := n.Waiting
		nodes[i].Waiting = nil
		for _, r := range st.Waiting(n.Node, announced) {
			nodes[i].Waiting = append(nodes[i].Waiting, r.Prefix)
		}
		if routes += len(nodes[i].Waiting); n.Here || len(nodes[i].Waiting) > 0 {
			next.Nodes = append(next.Nodes, nodes[i])
		}
		if routes > elsewhereRoutes-protocol.MaxNodeRoutes || len(next.Nodes) == elsewhereNodes {
			flush()
		}
	}
	flush()
	return out
}

// toldNodes are the nodes of which this hub knows something, with all that they announce.
func (t *Table) toldNodes() []toldNode {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []toldNode
	for n, l := range t.nodes {
		if l.session != nil || l.said.Announce != nil {
			out = append(out, toldNode{n, l.session != nil, slices.Clone(t.own(n))})
		}
	}
	for n, ps := range t.memory.Announced {
		if l := t.nodes[n]; l == nil || l.session == nil && l.said.Announce == nil {
			out = append(out, toldNode{n, false, slices.Clone(ps)})
		}
	}
	return out
}

// readTold is what another hub than own says of nodes of the cluster, with as many routes each as a node may
// announce; the rest of it is left out.
func readTold(b []byte, st *state.State, own protocol.NodeNumber) (hub protocol.NodeNumber, nodes []toldNode) {
	var m told
	if len(b) > maxElsewhere || json.Unmarshal(b, &m) != nil || m.Version != protocol.Version || m.Hub == own || !st.HubNumbers.Get(m.Hub) {
		return 0, nil
	}
	return m.Hub, slices.DeleteFunc(m.Nodes, func(n toldNode) bool {
		node, ok := st.Nodes.Find(n.Node)
		return !ok || !node.Live() || len(n.Waiting) > protocol.MaxNodeRoutes ||
			slices.ContainsFunc(n.Waiting, func(p netip.Prefix) bool { return !p.IsValid() || p != p.Masked() })
	})
}

// HearOther takes what another hub tells.
func (t *Table) HearOther(b []byte) {
	hub, nodes := readTold(b, t.cfg.State(), t.cfg.Number)
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, x := range nodes {
		if was := t.elsewhere[x.Node]; was.here && !x.Here && was.hub != hub { // who has a session knows better than who had one
			continue
		}
		was, known := t.elsewhere[x.Node]
		t.elsewhere[x.Node] = elsewhere{hub, now, x.Here, x.Waiting}
		if !known || was.here != x.Here || !slices.Equal(was.waiting, x.Waiting) {
			t.announces(x.Node)
		}
		if l := t.nodes[x.Node]; x.Here && (l == nil || l.session == nil) { // it went there
			delete(t.memory.Announced, x.Node)
			if l != nil {
				l.said = Announcement{word: l.said.word + 1}
			}
			t.announces(x.Node)
		}
	}
}

// ForgetElsewhere forgets what no hub tells any more.
func (t *Table) ForgetElsewhere(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n, e := range t.elsewhere {
		if now.Sub(e.at) > elsewhereHeld {
			delete(t.elsewhere, n)
			t.announces(n)
		}
	}
}
