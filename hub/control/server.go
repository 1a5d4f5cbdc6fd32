// Package control is the hub's side of the control channel: it knows the host of
// each connection by the overlay address it comes from (WireGuard's cryptokey
// routing vouches for it) and the node by a proof of its identity key. Then it takes
// Hello and status, pushes netmaps, hands nats streams to the bus and opens debug streams.
//
// It also keeps the tunnel's list of nodes in step with the state, because a
// node that is revoked shall first hear so.
package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"golang.org/x/time/rate"

	"causeway/hub/facts/event"
	"causeway/hub/netmap"
	"causeway/hub/state"
	"causeway/protocol"
	"causeway/tunnel"
)

// Times of the control channel.
const (
	helloTimeout  = 10 * time.Second
	silence       = 3 * protocol.StatusInterval // without a word a session is dead
	writeTimeout  = 15 * time.Second
	ackTimeout    = 10 * time.Second       // then it is slow: a warning
	ackLimit      = time.Minute            // then the session ends
	farewell      = 500 * time.Millisecond // for a revoked node to hear so
	onlineGrace   = 10 * time.Second       // since its last word: a node that restarts keeps its routes
	redialLull    = 50 * time.Millisecond
	lookEvery     = 500 * time.Millisecond // at each node's state
	maxStreams    = 16                     // open at once in one session, of the agent's making
	maxConnsTotal = 1 << 16
	maxConnsNode  = 8 // of one node: the session, those that it replaces, some to spare
	// A stream that was refused stays in the session until the agent closes it,
	// with what the agent sent on it: so many may be opened at once and each second.
	streamBurst = 8
	streamRate  = 1
	// The same of all sessions of a node: an agent's have two each.
	nodeStreamRate  = 2
	nodeStreamBurst = 32
	// What a connection made the hub hold stays for some seconds after its end.
	connEvery  = time.Second // of one node in the long run
	connBurst  = 24
	helloEvery = 2 * time.Second // of one node in the long run: a hello may be a transaction
	helloBurst = 20
)

// Tunnel is what of tunnel.Hub is needed here.
type Tunnel interface {
	// SetNodes replaces the nodes; whole state.
	SetNodes([]tunnel.HubNode) error
	// Bound lists the underlay addresses bound for a node, newest first.
	Bound(protocol.NodeNumber) []netip.AddrPort
	// Proven is when a node last proved an address; zero: it is bound nowhere.
	Proven(protocol.NodeNumber) time.Time
	// BoundChanged receives, coalesced, when any of these change.
	BoundChanged() <-chan struct{}
}

// Bus takes over nats streams.
type Bus interface {
	// ServeAgent speaks NATS over conn as node n of site, and closes it.
	ServeAgent(ctx context.Context, conn net.Conn, site string, n protocol.NodeNumber) error
}

// Config configures a Server.
type Config struct {
	Number  protocol.NodeNumber // this hub's
	Version string              // of this build
	Cluster protocol.ClusterPrivateKey
	Store   *state.Store
	Bus     Bus
	Tunnel  Tunnel
	Boots   Boots // what the tunnel sees of boot ids; nil: nothing
	Events  *event.Log
	// RequireProof refuses agents that cannot prove their node's identity key, those of
	// nodes that never did, too.
	RequireProof bool
	// New says that the state log was made in this run.
	New bool
	// Memory is a file that keeps what is known live of nodes for the next run; empty: none.
	Memory string
	Log    zerolog.Logger
}

// Server holds the control sessions. Its methods may be called concurrently.
type Server struct {
	cfg      Config
	started  time.Time
	boot     protocol.BootID // of this run, in challenges
	door     door
	bulk     bulk
	dirty    chan struct{} // something that netmaps depend on changed
	departed chan struct{} // a node that is gone may have to be told so, or was
	hellos   chan hello    // to be stored

	mu    sync.Mutex
	nodes map[protocol.NodeNumber]*live
	conns map[comer]int // open connections that were admitted
	view  *netmap.View

	elsewhere map[protocol.NodeNumber]elsewhere // what other hubs told
	lastShown struct {                          // by shown
		of, shown *state.State
		waiting   []state.Route
	}

	memory  memory                              // of the run before
	unsaved map[protocol.NodeNumber]netmap.Live // what view was made from; nil: remembered already

	revoked map[protocol.NodeNumber]*revocation

	closing  atomic.Bool // closeOldWay stores something
	goneList goneList
	unknown  map[protocol.NodeNumber]Unknown
	strays   map[protocol.NodeNumber]Stray
	marked   uint64 // the last transaction of which tellMark told; Run's alone
}

// New starts nothing.
func New(cfg Config) *Server {
	boot, err := protocol.NewBootID()
	if err != nil { // the system has no randomness
		panic(err)
	}
	return &Server{cfg: cfg, started: time.Now(), boot: boot, dirty: make(chan struct{}, 1), departed: make(chan struct{}, 1), hellos: make(chan hello), nodes: map[protocol.NodeNumber]*live{}, elsewhere: map[protocol.NodeNumber]elsewhere{}, conns: map[comer]int{},
		revoked: map[protocol.NodeNumber]*revocation{}, unknown: map[protocol.NodeNumber]Unknown{}, strays: map[protocol.NodeNumber]Stray{}}
}

// Serve accepts control connections on l, which it closes, until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	return acceptAll(ctx, l, "control", s.serveConn)
}

// acceptAll serves connections of a kind on l, which it closes, until ctx ends.
func acceptAll(ctx context.Context, l net.Listener, kind string, serve func(context.Context, net.Conn)) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxConnsTotal)
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept %s connections: %w", kind, err)
		}
		select {
		case slots <- struct{}{}:
		default:
			c.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			serve(ctx, c)
		})
	}
}

// comer is who comes to a node's budgets: those who prove the node's identity have others
// than those who do not.
type comer struct {
	node   protocol.NodeNumber
	proven bool
}

// enter counts a connection that was admitted, if there may be one more; leave ends it.
func (s *Server) enter(c comer) (leave func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[c] >= maxConnsNode || !s.node(c.node).budget(c.proven).connects.Allow() {
		return nil, false
	}
	s.conns[c]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.conns[c]--; s.conns[c] == 0 {
			delete(s.conns, c)
		}
	}, true
}

// logOf is the log for what a node's sessions say and do.
func (s *Server) logOf(n state.Node) zerolog.Logger {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg.Log.With().Str("node", n.Name).Str("site", n.Site).Logger().Hook(s.node(n.Number).voice)
}

// streamsOf is what holds the streams of node n's sessions to their rate.
func (s *Server) streamsOf(n protocol.NodeNumber) *rate.Limiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.node(n).streams
}

// Run computes netmaps and keeps the tunnel's nodes until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var recording sync.WaitGroup
	defer recording.Wait()
	defer cancel()
	recording.Go(func() { s.recordHellos(ctx) })
	recording.Go(func() { s.storeWaiting(ctx) })
	changed, stop := s.cfg.Store.Watch()
	defer stop()
	var pace pace
	timer := time.NewTimer(0)
	defer timer.Stop()
	s.remember()
	save := time.NewTicker(saveEvery)
	defer save.Stop()
	defer s.save()
	graceOver := time.NewTimer(startGrace)
	defer graceOver.Stop()
	settle := time.NewTicker(settlePoll)
	defer settle.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	mark := time.NewTicker(markEvery)
	defer mark.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			s.dismiss(s.cfg.Store.State())
			if err := s.setNodes(s.cfg.Store.State(), &last); err != nil {
				return err
			}
			pace.changed(time.Now())
		case <-s.cfg.Tunnel.BoundChanged():
			pace.touched(time.Now())
		case <-save.C:
			s.save()
		case <-graceOver.C:
			pace.touched(time.Now())
			s.missed()
		case <-look.C:
			s.lookAround()
			s.forgetElsewhere(time.Now())
			s.takeOut(ctx, time.Now())
			s.closeOldWay(ctx, time.Now())
		case <-mark.C:
			s.tellMark()
		case b := <-s.cfg.Boots:
			s.watchBoot(ctx, b)
		case <-s.dirty:
			pace.touched(time.Now())
		case <-s.departed:
			s.dismiss(s.cfg.Store.State())
			if err := s.setNodes(s.cfg.Store.State(), &last); err != nil {
				return err
			}
			pace.touched(time.Now())
		case <-settle.C:
			if !s.settle(ctx) {
				continue
			}
			settle.Stop()
		case <-timer.C:
			if now := time.Now(); !pace.due.IsZero() && !now.Before(pace.due) {
				pace.computed(now, s.compute())
			}
		}
		if !pace.due.IsZero() {
			timer.Reset(time.Until(pace.due))
		}
	}
}

// touch asks for new netmaps, for something that is not state.
func (s *Server) touch() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// recheck asks for another look at nodes that are gone.
func (s *Server) recheck() {
	select {
	case s.departed <- struct{}{}:
	default:
	}
}

// setNodes gives the tunnel the live nodes, and those that are gone but have
// not heard so yet.
func (s *Server) setNodes(st *state.State, last *string) error {
	nodes := st.LiveNodes()
	s.mu.Lock()
	for n, l := range s.nodes {
		if node, ok := st.Nodes[n]; ok && !node.Live() && l.leaving {
			nodes = append(nodes, node)
		}
	}
	s.mu.Unlock()
	out := make([]tunnel.HubNode, 0, len(nodes))
	var print []byte
	for _, n := range nodes {
		overlay, err := st.OverlayOf(n.Number)
		if err != nil {
			continue
		}
		node := tunnel.HubNode{Number: n.Number, Key: n.WireGuardKey, Overlay: overlay}
		if n.Quarantine != "" {
			node.Talks = map[protocol.NodeNumber]bool{} // with the hub alone
		}
		out = append(out, node)
		print = fmt.Appendf(print, "%d/%d/%t ", n.Number, n.KeyEpoch(), n.Quarantine != "")
	}
	fingerprint := string(print)
	if fingerprint == *last && fingerprint != "" {
		return nil
	}
	if err := s.cfg.Tunnel.SetNodes(out); err != nil {
		return fmt.Errorf("set the tunnel's nodes: %w", err)
	}
	*last = fingerprint
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, r := range s.revoked {
		if r.cut.IsZero() && !slices.ContainsFunc(nodes, func(x state.Node) bool { return x.Number == n }) {
			r.cut = now
		}
	}
	return nil
}

// dismiss tells sessions of nodes that are gone so and closes them, within the
// time of a farewell.
func (s *Server) dismiss(st *state.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteRevoked(st)
	for n, l := range s.nodes {
		if node, ok := st.Nodes[n]; !ok || node.Live() || l.leaving {
			continue
		}
		if l.session == nil {
			delete(s.nodes, n)
			continue
		}
		l.leaving = true
		ses := l.session
		s.cfg.Events.Add(event.NodeDown, st.Nodes[n].Name, "the node was revoked")
		ses.log.Info().Msg("node revoked")
		go func() {
			ses.farewell()
			s.mu.Lock()
			if s.nodes[n] == l {
				delete(s.nodes, n)
			}
			s.mu.Unlock()
			s.recheck()
		}()
	}
}

// compute makes the netmaps anew and wakes the sessions if any of them says
// something new.
func (s *Server) compute() (fresh bool) {
	st := s.cfg.Store.State()
	if st.Settling || s.cfg.Store.SetBack() != nil {
		return false // agents go on with what they hold
	}
	known := map[protocol.NodeNumber]netmap.Live{}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, node := range st.LiveNodes() {
		n := node.Number
		info := netmap.Live{Candidates: s.cfg.Tunnel.Bound(n)}
		if l, ok := s.nodes[n]; ok {
			info.Online = l.session != nil || now.Sub(l.lastWord) < onlineGrace
			info.Candidates = append(info.Candidates, l.status.Candidates...)
		}
		known[n] = s.recall(n, info, now)
	}
	before := s.view
	if before == nil {
		before = s.memory.before()
	}
	next := netmap.Compute(s.shown(st), known, before)
	next.Gone = s.goneList.of(st, s.cfg.Cluster)
	if next.SameAs(s.view) {
		return false // most transactions and many statuses change no netmap
	}
	mark := st.Mark(s.cfg.Cluster)
	next.Mark = &mark
	old := s.view
	s.view = next
	s.unsaved = known
	for _, l := range s.nodes {
		if l.session != nil {
			if l.session.held == old {
				l.session.behind = now
			}
			l.session.wake()
		}
	}
	return true
}

func (s *Server) currentView() *netmap.View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view
}

// Owner returns the node that carries a prefix in netmaps, 0 for none.
func (s *Server) Owner(p netip.Prefix) protocol.NodeNumber {
	if v := s.currentView(); v != nil {
		return v.Owners[p]
	}
	return 0
}

// ErrOffline says that a node has no control session.
var ErrOffline = errors.New("the node has no control session with this hub")

// Debug opens a debug stream to node n: HTTP/1.1 to the agent's debug endpoints.
func (s *Server) Debug(ctx context.Context, n protocol.NodeNumber) (net.Conn, error) {
	ses, _ := s.sessionOf(n)
	if ses == nil {
		return nil, ErrOffline
	}
	return ses.mux.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamDebug})
}

// sessionOf is node n's session, nil if there is none, and what its agent can do.
func (s *Server) sessionOf(n protocol.NodeNumber) (*session, []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.nodes[n]; l != nil && l.session != nil {
		return l.session, l.hello.Features
	}
	return nil, nil
}
