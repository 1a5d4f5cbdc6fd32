// Package session is the hub's side of the control channel: it knows the host of
// each connection by the overlay address it comes from (WireGuard's cryptokey
// routing vouches for it) and the node by a proof of its identity key. Then it takes
// Hello and status, pushes netmaps, hands nats streams to the bus and opens debug streams.
//
// What it hears goes into the fleet, and netmaps come from there; it decides nothing.
package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"causeway/hub/facts/event"
	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
)

// Times of the control channel.
const (
	helloTimeout = 10 * time.Second
	silence      = 3 * protocol.StatusInterval // without a word a session is dead
	writeTimeout = 15 * time.Second
	ackTimeout   = 10 * time.Second       // then it is slow: a warning
	ackLimit     = time.Minute            // then the session ends
	farewell     = 500 * time.Millisecond // for a revoked node to hear so
	redialLull   = 50 * time.Millisecond
	// Open at once in one session, of the agent's making: control, NATS, and NATS before that, while
	// its end is under way. Each may bring a window that nobody has read yet.
	maxStreams    = 4
	maxConnsTotal = 1 << 16
	// A stream that was refused stays in the session until the agent closes it,
	// with what the agent sent on it: so many may be opened at once and each second.
	streamBurst = 4
	streamRate  = 1
)

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
	Events  *event.Log
	// RequireProof refuses agents that cannot prove their node's identity key, those of
	// nodes that never did, too.
	RequireProof bool
	Log          zerolog.Logger
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

// Run stores what nodes say of themselves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	var recording sync.WaitGroup
	recording.Go(func() { s.recordHellos(ctx) })
	recording.Go(func() { s.storeWaiting(ctx) })
	recording.Wait()
	return nil
}

// Farewell tells the agent of a session that its node is gone and closes the session, within the time of a farewell. It
// does not wait for that; done is called when it is over.
func (s *Server) Farewell(known *fleet.Session, done func()) {
	ses := s.linked(known)
	if ses == nil { // it has just ended
		done()
		return
	}
	ses.log.Info().Msg("node revoked")
	go func() {
		ses.farewell()
		done()
	}()
}

// TellMark sends the agent of a session the mark of the state, if it can, and does not wait for that.
func (s *Server) TellMark(known *fleet.Session, m protocol.StateMark) {
	ses := s.linked(known)
	if ses == nil {
		return
	}
	go func() { // ends within writeTimeout
		if err := ses.send(protocol.KindMark, m); err != nil {
			ses.log.Debug().Err(err).Msg("mark of the state not sent")
		}
	}()
}

// ErrOffline says that a node has no control session.
var ErrOffline = errors.New("the node has no control session with this hub")

// Debug opens a debug stream to node n: HTTP/1.1 to the agent's debug endpoints. It fails with ErrOffline where there is no
// session.
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
