package fleet

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"causeway/hub/service"
	"causeway/hub/state"
	"causeway/protocol"
)

// Unfenced is a node that a switch waits for.
type Unfenced struct {
	Node  protocol.NodeNumber
	Why   string    // for a person
	Until time.Time // its lease is over then by itself; zero: never
}

// conditionState is the condition of an agent that cannot keep what it was told over its own restart.
const conditionState = "state"

// Unfenced are the nodes at sites that a service is switched away from that may still let its connections through, by number.
// d is the service as object o declares it, told what nodes are told of it.
//
// All nodes of such a site count that ever ran: one may have carried a backend before, or have one on its LAN. Of what a node said it does
// not matter when: it keeps a fence without a hub, also over its restart. An agent that knows of no fences never says that it has one.
func (s Snapshot) Unfenced(st *state.State, o state.Object, d service.Declared, told *service.Told, now time.Time) (out []Unfenced) {
	for _, n := range st.LiveNodes() {
		if !slices.Contains(d.Fenced, n.Site) || n.Statement == nil {
			continue
		}
		x := s.Node(n.Number)
		taken, tells := x.took(st, n.Number, o), told.Tells(n.Number, o.Name)
		if taken && (!tells && !carries(told, o.Name, n.Number) || tells && x.fenced(o.Name, d.Epoch) && x.keeps()) {
			continue
		}
		u := Unfenced{Node: n.Number, Why: x.whyNot(n, taken, tells)}
		if d.Lease > 0 && (slices.Contains(x.Hello.Features, protocol.FeatureServiceFence) || s.Before.Get(n.Number).Fences) {
			if u.Until = later(s.Started, x.LastWord).Add(time.Duration(d.Lease) + protocol.LeaseMargin); !now.Before(u.Until) {
				continue
			}
		}
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b Unfenced) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

// took reports whether the node's agent has taken, and stored, a netmap that says of object o, a service, what it is now; or that
// there is none for it.
func (x Node) took(st *state.State, n protocol.NodeNumber, o state.Object) bool {
	if x.Held != nil { // which tells more: a netmap may be of a transaction that services were not worked out for yet
		generation, told := x.Held.ServiceTold(n, o.Name)
		return x.Held.Version.Epoch == st.Epoch && x.Held.Version.Version >= o.Generation && (!told || generation >= o.Generation)
	}
	return x.Session == nil && x.Acked.Epoch == st.Epoch && x.Acked.Version >= o.Generation
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// carries reports whether the hub takes a node for one beside a backend, whether it is told of the service or not.
func carries(told *service.Told, name string, n protocol.NodeNumber) bool {
	if told == nil || told.Services[name] == nil {
		return false
	}
	return slices.ContainsFunc(told.Services[name].Endpoints, func(e service.Endpoint) bool { return slices.Contains(e.Nodes, n) })
}

// fenced reports whether the node said that it fenced a service at an epoch, or later.
func (x Node) fenced(name string, epoch uint64) bool {
	return slices.ContainsFunc(x.Status.Fences, func(f protocol.ServiceFence) bool { return f.Service == name && f.Epoch >= epoch })
}

// keeps reports whether the node keeps what it was told over its own restart.
func (x Node) keeps() bool {
	return !slices.ContainsFunc(x.Status.Conditions, func(c protocol.Condition) bool { return c.Name == conditionState && !c.OK })
}

func (x Node) whyNot(n state.Node, taken, tells bool) string {
	switch {
	case n.Quarantine != "":
		return "it is in quarantine, so that it is told of no service: release or revoke it"
	case x.Session == nil && x.LastWord.IsZero():
		return "it is not connected, and was not since the hub's start"
	case x.Session == nil:
		return "it is not connected, and has not said that it blocks"
	case !taken:
		return "it has not taken its netmap yet"
	case !tells:
		return "it carries a backend, and nodes are told of too many services to be told of this one"
	case !x.keeps():
		return "it blocks, but cannot store that on its disk"
	}
	return fmt.Sprintf("its agent %s has not said that it blocks; one of a version before cannot: upgrade it", x.Hello.AgentVersion)
}

// Unaware are the nodes that may not have heard of the switch of a service yet, or not ended what was open to the old site, by number.
func (s Snapshot) Unaware(st *state.State, o state.Object, d service.Declared, told *service.Told) (out []protocol.NodeNumber) {
	for _, n := range st.LiveNodes() {
		if n.Statement == nil {
			continue
		}
		x := s.Node(n.Number)
		if !x.took(st, n.Number, o) || told.Tells(n.Number, o.Name) && !x.fenced(o.Name, d.Epoch) {
			out = append(out, n.Number)
		}
	}
	return out
}
