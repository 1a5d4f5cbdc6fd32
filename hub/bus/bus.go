// Package bus is the hub's NATS server, embedded: the state log and the
// inventory live in its JetStream. It listens on no socket. The hub's own
// clients reach it in-process; an agent reaches it through a stream of its
// control session, as that session's node and nobody else (Server.ServeAgent);
// users of role reader over TLS (Server.ServeReaders).
//
// Two accounts share nothing: the state log's, which only the hub's own client
// ever enters, and the agents'.
package bus

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"causeway/protocol"
)

// Accounts of the server.
const (
	accountState  = "CAUSEWAY_STATE"
	accountAgents = "CAUSEWAY_AGENTS"
)

// Limits of the JetStream store.
const (
	MaxStateBytes     = 4 << 30
	MaxInventoryBytes = 2 << 30
	MaxFlowBytes      = 256 << 20
	maxMemory         = 64 << 20
	// maxPayload leaves room for headers beside the largest payload.
	maxPayload = protocol.MaxInventory + 64<<10
	// maxPending is how far a client may be behind in reading. It holds what hub/follow
	// asks for at once, twice. Nobody who publishes waits for those who do not read.
	maxPending = 4 << 20
	// What may wait in memory to be stored in one stream: several nodes' budgets at once.
	maxBuffered         = 32 << 20
	maxBufferedMessages = 10_000
	readyTimeout        = 30 * time.Second
)

// Config configures a Server.
type Config struct {
	Dir string // of JetStream's files
	// Forwarded says that what agents publish goes to another cluster (Forward): their
	// account keeps nothing.
	Forwarded bool
	// Budget is each node's; zero: NodeBudget.
	Budget Budget
	// Space returns why nothing may be written now; nil: it always may.
	Space func() error
	Log   zerolog.Logger
}

// Server is a running NATS server. Its methods may be called concurrently.
type Server struct {
	log    zerolog.Logger
	space  func() error
	away   bool // the agents' streams are elsewhere
	opts   *server.Options
	failed atomic.Bool // a write failed; the streams concerned take no more
	ns     *server.Server
	state  credential
	agents credential

	budget  Budget
	refused *prometheus.CounterVec // by reason

	mu        sync.Mutex
	sessions  map[[32]byte]session // by SHA-256 of the credential
	purses    map[protocol.NodeNumber]*purse
	connected int // of purses, those of nodes with a stream
	closed    bool
}

// session is what a credential stands for.
type session struct {
	account string
	perms   *server.Permissions // nil: everything in the account
}

// credential opens one session. It is random, lives in memory alone and never
// leaves the process.
type credential string

func newCredential() (credential, error) {
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return credential(hex.EncodeToString(b[:])), nil
}

// Start starts the server and returns when JetStream works. Close ends it.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	s := &Server{log: cfg.Log, space: cfg.Space, away: cfg.Forwarded, budget: budgetOf(cfg.Budget), refused: newRefused(),
		sessions: map[[32]byte]session{}, purses: map[protocol.NodeNumber]*purse{}}
	var err error
	if s.state, err = s.open(session{account: accountState}); err != nil {
		return nil, err
	}
	if s.agents, err = s.open(session{account: accountAgents}); err != nil {
		return nil, err
	}
	opts := &server.Options{
		ServerName: "causeway-hub", DontListen: true, NoSigs: true, NoLog: true,
		JetStream: true, StoreDir: cfg.Dir, SyncAlways: true, DisableJetStreamBanner: true,
		JetStreamMaxMemory: maxMemory, JetStreamMaxStore: MaxStateBytes + MaxInventoryBytes + MaxFlowBytes,
		MaxPayload: maxPayload, MaxPending: maxPending, NoFastProducerStall: true, StreamMaxBufferedSize: maxBuffered, StreamMaxBufferedMsgs: maxBufferedMessages, MaxControlLine: maxLine, MaxSubs: maxReaderSubs, MaxClosedClients: 16,
		Accounts:                   []*server.Account{server.NewAccount(accountState), server.NewAccount(accountAgents)},
		CustomClientAuthentication: s,
		// A client has connectTimeout for its first line, which is judged before the server
		// sees it: over a slow link, or amid thousands, the server's own two seconds are too few.
		AuthTimeout: (2 * connectTimeout).Seconds(),
	}
	if s.space == nil {
		s.space = func() error { return nil }
	}
	s.opts = opts
	if s.ns, err = server.NewServer(opts); err != nil {
		return nil, fmt.Errorf("start nats: %w", err)
	}
	lg := &logger{log: cfg.Log, fatal: make(chan string, 1), failed: &s.failed, violations: rate.NewLimiter(1, 20)}
	s.ns.SetLoggerV2(lg, false, false, false)
	s.ns.Start()
	if err := s.waitReady(ctx, lg); err != nil {
		s.Close()
		return nil, err
	}
	if err := s.enableAccounts(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// enableAccounts gives each account its share of JetStream.
func (s *Server) enableAccounts() error {
	for name, limit := range map[string]int64{accountState: MaxStateBytes, accountAgents: MaxInventoryBytes + MaxFlowBytes} {
		if name == accountAgents && s.away {
			continue
		}
		a, err := s.ns.LookupAccount(name)
		if err == nil && !a.JetStreamEnabled() {
			err = a.EnableJetStream(map[string]server.JetStreamAccountLimits{"": {
				MaxMemory: maxMemory / 2, MaxStore: limit, MaxStreams: 8, MaxConsumers: 256, MaxAckPending: -1,
				MemoryMaxStreamBytes: -1, StoreMaxStreamBytes: -1,
			}}, nil)
		}
		if err != nil {
			return fmt.Errorf("start nats: jetstream of account %s: %w", name, err)
		}
	}
	return nil
}

// Failed reports whether a write failed since the last Reopen: JetStream then
// takes nothing more into that stream, or has ended.
func (s *Server) Failed() bool { return s.failed.Load() || !s.ns.JetStreamEnabled() }

// Reopen opens JetStream anew from what is on disk. Connections stay.
func (s *Server) Reopen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.failed.Store(false)
	if err := s.ns.ShutdownJetStream(); err != nil {
		return fmt.Errorf("reopen jetstream: %w", err)
	}
	err := s.ns.EnableJetStream(&server.JetStreamConfig{
		StoreDir: s.opts.StoreDir, SyncAlways: s.opts.SyncAlways, SyncInterval: s.opts.SyncInterval,
		MaxMemory: s.opts.JetStreamMaxMemory, MaxStore: s.opts.JetStreamMaxStore, Strict: !s.opts.NoJetStreamStrict,
	})
	if err != nil {
		return fmt.Errorf("reopen jetstream: %w", err)
	}
	return s.enableAccounts()
}

// waitReady waits until the server works, or says why it does not.
func (s *Server) waitReady(ctx context.Context, lg *logger) error {
	deadline := time.NewTimer(readyTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !s.ns.ReadyForConnections(time.Millisecond) || !s.ns.JetStreamEnabled() {
		select {
		case reason := <-lg.fatal:
			return fmt.Errorf("start nats: %s", reason)
		case <-deadline.C:
			return errors.New("start nats: not ready after " + readyTimeout.String())
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	select {
	case reason := <-lg.fatal:
		return fmt.Errorf("start nats: %s", reason)
	default:
		return nil
	}
}

// Close stops the server and waits until its files are closed.
func (s *Server) Close() {
	s.mu.Lock()
	done := s.closed
	s.closed = true
	s.mu.Unlock()
	if done {
		return
	}
	s.ns.Shutdown()
	s.ns.WaitForShutdown()
}

// StateConn connects to the account of the state log.
func (s *Server) StateConn() (*nats.Conn, error) { return s.connect("state", s.state) }

// AgentsConn connects to the agents' account, with every right in it.
func (s *Server) AgentsConn() (*nats.Conn, error) { return s.connect("agents", s.agents) }

func (s *Server) connect(name string, c credential) (*nats.Conn, error) {
	nc, err := nats.Connect("", nats.InProcessServer(s.ns), nats.Name("causeway-hub "+name), nats.Token(string(c)),
		nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(), nats.IgnoreDiscoveredServers(),
		nats.ReconnectWait(50*time.Millisecond), nats.ReconnectJitter(50*time.Millisecond, 50*time.Millisecond),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			s.log.Warn().Err(err).Str("account", name).Msg("nats client")
		}))
	if err != nil {
		return nil, fmt.Errorf("connect to nats: %w", err)
	}
	return nc, nil
}

// open makes a credential for ses.
func (s *Server) open(ses session) (credential, error) {
	c, err := newCredential()
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	s.sessions[sha256.Sum256([]byte(c))] = ses
	s.mu.Unlock()
	return c, nil
}

// drop makes c worthless. Connections that it opened stay until they are closed.
func (s *Server) drop(c credential) {
	s.mu.Lock()
	delete(s.sessions, sha256.Sum256([]byte(c)))
	s.mu.Unlock()
}

// Check decides whether a client may connect, and as whom (server.Authentication).
// Credentials are looked up by hash, so that the time taken says nothing.
func (s *Server) Check(c server.ClientAuthentication) bool {
	s.mu.Lock()
	ses, ok := s.sessions[sha256.Sum256([]byte(c.GetOpts().Token))]
	s.mu.Unlock()
	if !ok || c.Kind() != server.CLIENT {
		return false
	}
	a, err := s.ns.LookupAccount(ses.account)
	if err != nil {
		return false
	}
	c.RegisterUser(&server.User{Account: a, Permissions: ses.perms})
	return true
}

// logger passes the server's log on and catches its fatal errors, with which the
// server would only log and stay half started.
type logger struct {
	log    zerolog.Logger
	fatal  chan string
	failed *atomic.Bool
	// violations bounds the lines that clients cause by what they may not do.
	violations *rate.Limiter
}

func (l *logger) Noticef(f string, v ...any) {
	l.log.Debug().Str("detail", fmt.Sprintf(f, v...)).Msg("nats server")
}
func (l *logger) Warnf(f string, v ...any) {
	l.log.Warn().Str("detail", fmt.Sprintf(f, v...)).Msg("nats server")
}

// writeFailed are the beginnings of what the server says when a write failed. It
// has no other way to tell: it does not even answer the publish.
var writeFailed = []string{"JetStream failed to store a msg", "JetStream out of", "Critical write error", "Filesystem permission denied"}

func (l *logger) Errorf(f string, v ...any) {
	msg := fmt.Sprintf(f, v...)
	if slices.ContainsFunc(writeFailed, func(s string) bool { return strings.Contains(msg, s) }) {
		l.failed.Store(true)
	}
	if strings.Contains(msg, " Violation - Subject ") {
		if l.violations.Allow() {
			l.log.Warn().Str("detail", msg).Msg("nats server")
		}
		return
	}
	l.log.Error().Str("detail", msg).Msg("nats server")
}

func (l *logger) Debugf(string, ...any) {}
func (l *logger) Tracef(string, ...any) {}

func (l *logger) Fatalf(f string, v ...any) {
	msg := fmt.Sprintf(f, v...)
	l.log.Error().Str("detail", msg).Msg("nats server")
	select {
	case l.fatal <- msg:
	default:
	}
}
