// Package event keeps what happened on the hub and is no change of state, such
// as joins refused and nodes coming and going, in memory, for the admin API, and publishes it
// for readers (News).
package event

import (
	"slices"
	"sync"
	"time"

	"causeway/hub/api"
	"causeway/hub/facts"
	"causeway/hub/notice"
)

// size is how many events are kept, and of one node perNode: whoever causes many pushes out
// his own.
const (
	size    = 2000
	perNode = 200
)

// Kinds of events.
const (
	JoinRefused     = "join_refused"
	NodeUp          = "node_up"    // a control session began
	NodeDown        = "node_down"  // it ended
	NodeReady       = "node_ready" // what a node's state became, by hub/liveness
	NodeDegraded    = "node_degraded"
	NodeUnreachable = "node_unreachable"
	NodeRefused     = "node_refused" // a Hello that the hub did not accept
	PartRefused     = "netmap_refused"
	InventoryBad    = "inventory_bad"
	NodeCloned      = "node_cloned" // an identity on two hosts
	RouteConflict   = "route_conflict"
	NodeUnknown     = "node_unknown"  // agents know it, this hub, restored from a backup, does not
	AdminRefused    = "admin_refused" // a certificate that opens nothing
	NATSRefused     = "nats_refused"  // credentials that open nothing
	NodeUpgraded    = "node_upgraded"
	UpgradeFailed   = "upgrade_failed" // the version before runs on, or again
	NATSAway        = "nats_away"      // the external NATS stores nothing
	NATSBack        = "nats_back"
	StateSetBack    = "state_set_back"   // agents know a later state than the hub has
	NodeSetBack     = "node_set_back"    // a host has an earlier state of a node
	Incident        = "incident"         // something went wrong on a node; see hub/facts/incident
	ServiceSwitched = "service_switched" // a node moved services between sites; see hub/facts/switches
)

// Kinds are all of them.
var Kinds = []string{JoinRefused, NodeUp, NodeDown, NodeReady, NodeDegraded, NodeUnreachable, NodeRefused, PartRefused, InventoryBad, NodeCloned, RouteConflict,
	NodeUnknown, AdminRefused, NATSRefused, NodeUpgraded, UpgradeFailed, NATSAway, NATSBack, StateSetBack, NodeSetBack, Incident, ServiceSwitched}

// Log is a bounded list of events. The zero value is ready.
type Log struct {
	mu     sync.Mutex
	list   []api.Event    // oldest first
	nodes  map[string]int // how many of each node are in it
	last   uint64         // sequence
	counts map[string]uint64

	watchers facts.Watchers[api.Event]
	notices  notice.Board[uint64]
}

// Watch returns the events from now on, until end. It may be called concurrently with Add.
func (l *Log) Watch(wish facts.Wish[api.Event]) (c <-chan api.Event, end func()) {
	return l.watchers.Watch(wish)
}

// Notices tells from now on of events by their sequence. See notice.Board.
func (l *Log) Notices(wake chan<- struct{}) *notice.Reader[uint64] { return l.notices.Join(wake) }

// Add appends an event and forgets the oldest beyond the bound.
func (l *Log) Add(kind, node, message string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	e := api.Event{Sequence: l.last, Time: time.Now().UTC(), Kind: kind, Node: node, Message: message}
	if l.counts == nil {
		l.counts = map[string]uint64{}
	}
	l.counts[kind]++
	l.watchers.Tell(e)
	l.notices.Mark(e.Sequence)
	out := -1
	switch {
	case node != "" && l.nodes[node] >= perNode:
		out = slices.IndexFunc(l.list, func(x api.Event) bool { return x.Node == node })
	case len(l.list) >= size:
		out = 0
	}
	if out >= 0 {
		if was := l.list[out].Node; l.nodes[was] == 1 {
			delete(l.nodes, was)
		} else {
			l.nodes[was]--
		}
		l.list = slices.Delete(l.list, out, out+1)
	}
	if l.nodes == nil {
		l.nodes = map[string]int{}
	}
	l.nodes[node]++
	l.list = append(l.list, e)
}

// Newest returns up to n events, newest first.
func (l *Log) Newest(n int) []api.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := []api.Event{}
	for _, e := range slices.Backward(l.list[max(0, len(l.list)-n):]) {
		out = append(out, e)
	}
	return out
}

// Count returns how many events of kind there were since the start.
func (l *Log) Count(kind string) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts[kind]
}
