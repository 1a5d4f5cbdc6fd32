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
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"causeway/hub/event"
	"causeway/hub/fleet"
	"causeway/hub/plan"
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
	redialLull    = 50 * time.Millisecond
	lookEvery     = 500 * time.Millisecond // at each node's state
	maxStreams    = 16                     // open at once in one session, of the agent's making
	maxConnsTotal = 1 << 16
	// A stream that was refused stays in the session until the agent closes it,
	// with what the agent sent on it: so many may be opened at once and each second.
	streamBurst = 8
	streamRate  = 1
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
	Fleet   *fleet.Table // what is known live of nodes
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
	cfg    Config
	fleet  *fleet.Table
	boot   protocol.BootID // of this run, in challenges
	door   door
	bulk   bulk
	hellos chan hello // to be stored

	mu    sync.Mutex
	links map[*fleet.Session]*session // what carries each session that the fleet knows

	closing  atomic.Bool // closeOldWay stores something
	goneList goneList
	marked   uint64 // the last transaction of which tellMark told; Run's alone
}

// New starts nothing.
func New(cfg Config) *Server {
	boot, err := protocol.NewBootID()
	if err != nil { // the system has no randomness
		panic(err)
	}
	return &Server{cfg: cfg, fleet: cfg.Fleet, boot: boot, hellos: make(chan hello), links: map[*fleet.Session]*session{}}
}

// link says that ses carries what the fleet knows as ses.known, until unlink.
func (s *Server) link(ses *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links[ses.known] = ses
}

func (s *Server) unlink(ses *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.links, ses.known)
}

// linked is what carries a session that the fleet knows; nil: it has ended, or there is none.
func (s *Server) linked(known *fleet.Session) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.links[known]
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

// logOf is the log for what a node's sessions say and do.
func (s *Server) logOf(n state.Node) zerolog.Logger {
	return s.cfg.Log.With().Str("node", n.Name).Str("site", n.Site).Logger().Hook(s.fleet.Voice(n.Number))
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
	save := time.NewTicker(fleet.SaveEvery)
	defer save.Stop()
	defer s.save()
	graceOver := time.NewTimer(fleet.StartGrace)
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
			s.fleet.Missed()
		case <-look.C:
			s.fleet.LookAround()
			s.fleet.ForgetElsewhere(time.Now())
			s.takeOut(ctx, time.Now())
			s.closeOldWay(ctx, time.Now())
		case <-mark.C:
			s.tellMark()
		case b := <-s.cfg.Boots:
			s.watchBoot(ctx, b)
		case <-s.fleet.Touched():
			pace.touched(time.Now())
		case <-s.fleet.Departed():
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

// remember reads what was known in the run before.
func (s *Server) remember() {
	if s.cfg.Memory == "" {
		return
	}
	m, err := fleet.LoadMemory(s.cfg.Memory)
	if err != nil {
		s.cfg.Log.Warn().Err(err).Msg("what was known of nodes before is not readable, it is learnt anew")
		return
	}
	s.fleet.Remember(m)
}

// save keeps what is known for the next run, if there is news.
func (s *Server) save() {
	m, news := s.fleet.Unsaved()
	if !news || s.cfg.Memory == "" {
		return
	}
	if err := m.Save(s.cfg.Memory); err != nil {
		s.cfg.Log.Warn().Err(err).Msg("what is known of nodes is not kept for the next start")
	}
}

// tunnelNodes are the nodes that the tunnel is to have: the live ones, and those that are gone but
// have not heard so yet.
func tunnelNodes(st *state.State, fl fleet.Snapshot) []tunnel.HubNode {
	nodes := st.LiveNodes()
	for n, x := range fl.Nodes {
		if node, ok := st.Nodes[n]; ok && !node.Live() && x.Leaving {
			nodes = append(nodes, node)
		}
	}
	out := make([]tunnel.HubNode, 0, len(nodes))
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
	}
	return out
}

// setNodes gives the tunnel its nodes, if they are others than in last.
func (s *Server) setNodes(st *state.State, last *string) error {
	nodes := tunnelNodes(st, s.fleet.Snapshot())
	var print []byte
	has := map[protocol.NodeNumber]bool{}
	for _, n := range nodes {
		has[n.Number] = true
		print = fmt.Appendf(print, "%d/%d/%t ", n.Number, st.Nodes[n.Number].KeyEpoch(), n.Talks != nil)
	}
	fingerprint := string(print)
	if fingerprint == *last && fingerprint != "" {
		return nil
	}
	if err := s.cfg.Tunnel.SetNodes(nodes); err != nil {
		return fmt.Errorf("set the tunnel's nodes: %w", err)
	}
	*last = fingerprint
	s.fleet.Cut(func(n protocol.NodeNumber) bool { return has[n] })
	return nil
}

// dismissals are the sessions of nodes that are gone and have not been told so, and the nodes that are gone and have
// none.
func dismissals(st *state.State, fl fleet.Snapshot) (tell []*fleet.Session, drop []protocol.NodeNumber) {
	for n, x := range fl.Nodes {
		if node, ok := st.Nodes[n]; !ok || node.Live() || x.Leaving {
			continue
		}
		if x.Session == nil {
			drop = append(drop, n)
			continue
		}
		tell = append(tell, x.Session)
	}
	return tell, drop
}

// dismiss tells sessions of nodes that are gone so and closes them, within the
// time of a farewell.
func (s *Server) dismiss(st *state.State) {
	s.fleet.NoteRevoked(st)
	tell, drop := dismissals(st, s.fleet.Snapshot())
	for _, n := range drop {
		s.fleet.Drop(n)
	}
	for _, known := range tell {
		done, ok := s.fleet.Dismiss(known)
		if !ok {
			continue
		}
		s.cfg.Events.Add(event.NodeDown, st.Nodes[known.Node].Name, "the node was revoked")
		ses := s.linked(known)
		if ses == nil { // it has just ended
			done()
			continue
		}
		ses.log.Info().Msg("node revoked")
		go func() {
			ses.farewell()
			done()
		}()
	}
}

// liveOf is what netmaps are made from beyond the state: what is known of its live nodes, until a node has reported with what
// was known in the run before.
func liveOf(st *state.State, fl fleet.Snapshot, bound func(protocol.NodeNumber) []netip.AddrPort, now time.Time) map[protocol.NodeNumber]plan.Live {
	out := map[protocol.NodeNumber]plan.Live{}
	for _, node := range st.LiveNodes() {
		n := node.Number
		l := plan.Live{Candidates: bound(n)}
		if x, ok := fl.Nodes[n]; ok {
			l.Online = x.Session != nil || now.Sub(x.LastWord) < fleet.OnlineGrace
			l.Candidates = append(l.Candidates, x.Status.Candidates...)
		}
		if r, ok := fl.Before[n]; ok {
			l.Candidates = append(l.Candidates, r.Candidates...)
			l.Online = l.Online || r.Online && now.Sub(fl.Started) < fleet.StartGrace
		}
		out[n] = l
	}
	return out
}

// compute makes the netmaps anew and wakes the sessions if any of them says
// something new.
func (s *Server) compute() (fresh bool) {
	st := s.cfg.Store.State()
	if _, essential := st.Strange(); st.Settling || essential || s.cfg.Store.SetBack() != nil {
		return false // agents go on with what they hold
	}
	now, fl := time.Now(), s.fleet.Snapshot()
	known := liveOf(st, fl, s.cfg.Tunnel.Bound, now)
	before := fl.Netmaps
	if before == nil {
		before = fl.Earlier
	}
	next := plan.Compute(s.fleet.Shown(st), known, before)
	next.Gone = s.goneList.of(st, s.cfg.Cluster)
	if next.SameAs(fl.Netmaps) {
		return false // most transactions and many statuses change no netmap
	}
	mark := st.Mark(s.cfg.Cluster)
	next.Mark = &mark
	s.fleet.SetNetmaps(next, known, now)
	return true
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
	known, features := s.fleet.Session(n)
	return s.linked(known), features
}
