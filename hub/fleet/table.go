// Package fleet keeps what is known live of nodes: who is connected, what each said last and acknowledged,
// what waits, what other hubs tell. It is one table with one lock. Control sessions write into it, and whoever
// decides something takes a Snapshot of it; it sends nothing and runs nothing. It decides only what
// is said of a node: its state (hub/liveness), events, how much of its words is kept and how often it may speak.
package fleet

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"causeway/hub/facts/event"
	"causeway/hub/liveness"
	"causeway/hub/notice"
	"causeway/hub/plan"
	"causeway/hub/state"
	"causeway/protocol"
)

// OnlineGrace is for how long after its last word a node counts as online: one that restarts keeps its routes.
const OnlineGrace = 10 * time.Second

// Config configures a Table.
type Config struct {
	Number protocol.NodeNumber // this hub's
	// State is the newest state. It may be called while the table is locked.
	State func() *state.State
	// Proven is when a node last proved an address to the tunnel; zero: it is bound nowhere. It may be called
	// while the table is locked.
	Proven func(protocol.NodeNumber) time.Time
	Events *event.Log
	Log    zerolog.Logger
}

// Table is what is known live of all nodes. Its methods may be called concurrently; none blocks for long.
type Table struct {
	cfg      Config
	started  time.Time
	touched  chan struct{} // something that netmaps depend on changed
	arrived  chan struct{} // nobody is waited for
	departed chan struct{} // a node that is gone may have to be told so, or was
	notices  notice.Board[protocol.NodeNumber]

	mu      sync.Mutex
	nodes   map[protocol.NodeNumber]*record
	known   state.Map[protocol.NodeNumber, *Node] // of each of nodes what wrote saw last; nobody changes what lies there
	conns   map[Comer]int                         // open connections that were admitted
	netmaps *plan.Netmaps                         // the newest

	await    await
	policy   *Policy       // nil: none yet
	compiled chan struct{} // closed, and another, when policy is another
	services *Services     // nil: none yet
	served   chan struct{} // as compiled

	elsewhere map[protocol.NodeNumber]elsewhere // what other hubs told
	says      uint64                            // counts what changes announced
	lastShown lastShown

	memory  Memory // of the run before, but for its nodes
	before  state.Map[protocol.NodeNumber, Remembered]
	unsaved map[protocol.NodeNumber]plan.Live // what netmaps was made from; nil: remembered already

	revoked map[protocol.NodeNumber]*Revoked
	unknown map[protocol.NodeNumber]Unknown
	strays  state.Map[protocol.NodeNumber, Stray]
}

// New returns a table in which nothing is known yet: this is the hub's start.
func New(cfg Config) *Table {
	return &Table{cfg: cfg, started: time.Now(), compiled: make(chan struct{}), served: make(chan struct{}), touched: make(chan struct{}, 1), arrived: make(chan struct{}, 1), departed: make(chan struct{}, 1), nodes: map[protocol.NodeNumber]*record{}, conns: map[Comer]int{},
		elsewhere: map[protocol.NodeNumber]elsewhere{}, revoked: map[protocol.NodeNumber]*Revoked{}, unknown: map[protocol.NodeNumber]Unknown{}}
}

// Started is when the table was made, which is the hub's start.
func (t *Table) Started() time.Time { return t.started }

// record is what is known of a node from its sessions. Table.mu guards it.
type record struct {
	session  *Session // nil: none now
	leaving  bool     // gone from the state, and being told
	lastWord time.Time
	goodbye  bool // the last session was ended by the agent, not by silence
	hello    protocol.Hello
	status   protocol.Status
	heard    bool // a status came in this session
	acked    protocol.NetmapVersion
	refused  []protocol.RefusedPart
	errors   []string
	machine  *liveness.Machine
	up       time.Time     // since when there is this session
	shut     time.Time     // since when it is quarantined, as far as this hub saw
	own      budget        // of sessions that prove the node's identity
	old      budget        // of those that do not
	streams  *rate.Limiter // of all its sessions
	voice    *Voice        // in the log, of all its sessions
	changes  *rate.Limiter // of the log, by hellos
	keys     *rate.Limiter // of its new WireGuard keys
	said     Announcement
	late     time.Time // it announced more changes than it may
	lateTold time.Time // and that was told
	boots    boots

	// Sessions that were refused since the last event of it.
	refusals    int
	refusedPace *rate.Limiter
	left        Departure
	firstProof  time.Time // of the node's identity, seen by this run of the hub; zero: none
}

// node returns the record of node n, making it. t.mu is held.
func (t *Table) node(n protocol.NodeNumber) *record {
	l, ok := t.nodes[n]
	if !ok {
		l = &record{machine: liveness.New(t.started), own: newBudget(), old: newBudget(), streams: rate.NewLimiter(StreamsRate, StreamsBurst), voice: newVoice(),
			changes: newChanges(), keys: newKeys(), refusedPace: rate.NewLimiter(rate.Every(refusedEvery), refusedBurst)}
		t.nodes[n] = l
		t.wrote(n)
	}
	return l
}

// Touch asks for new netmaps, for something that is not state.
func (t *Table) Touch() { poke(t.touched) }

// Touched receives, coalesced, after Touch.
func (t *Table) Touched() <-chan struct{} { return t.touched }

// Recheck asks for another look at nodes that are gone.
func (t *Table) Recheck() { poke(t.departed) }

// Departed receives, coalesced, after Recheck.
func (t *Table) Departed() <-chan struct{} { return t.departed }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Netmaps are the newest ones; nil: none were computed yet.
func (t *Table) Netmaps() *plan.Netmaps {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.netmaps
}

// SetNetmaps takes netmaps that say something new, and what of nodes they were made from, and wakes all sessions.
// One goroutine alone calls it.
func (t *Table) SetNetmaps(next *plan.Netmaps, from map[protocol.NodeNumber]plan.Live, now time.Time) {
	defer t.Show(t.moved(next)...)
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.netmaps
	t.netmaps, t.unsaved = next, from
	for _, l := range t.nodes {
		if l.session != nil {
			if l.session.held == old {
				l.session.behind = now
			}
			l.session.Wake()
		}
	}
}

// moved are the nodes that announce a prefix which another node carries in next than before, if anybody wants to know.
func (t *Table) moved(next *plan.Netmaps) (out []protocol.NodeNumber) {
	if !t.notices.Any() {
		return nil
	}
	before, same := map[netip.Prefix][]protocol.NodeNumber{}, false
	if old := t.Netmaps(); old != nil {
		before, same = old.Owners, old.SameRealms(next)
	}
	routes := t.cfg.State().Routes
	announce := func(p netip.Prefix) {
		for r := range routes.Over(p) {
			if r.Prefix != p {
				break
			}
			out = append(out, r.Node)
		}
	}
	for p, nodes := range next.Owners {
		if !same || !slices.Equal(before[p], nodes) {
			announce(p)
		}
	}
	for p := range before {
		if _, ok := next.Owners[p]; !ok {
			announce(p)
		}
	}
	return out
}

// Show says that something is to be shown anew of nodes of which the table does not know it.
func (t *Table) Show(nodes ...protocol.NodeNumber) { t.notices.Mark(nodes...) }

// Owner returns the node that carries a prefix in netmaps where node n is, 0 for none.
func (t *Table) Owner(n protocol.NodeNumber, p netip.Prefix) protocol.NodeNumber {
	if v := t.Netmaps(); v != nil {
		return v.Owner(n, p)
	}
	return 0
}
