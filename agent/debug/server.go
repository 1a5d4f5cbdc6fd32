package debug

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"causeway/protocol"
)

// Limits of one request and of all.
const (
	maxBody      = 4 << 10
	maxRequests  = 16 // at once, on the socket, and as many of the hub
	maxPings     = 4
	maxSlow      = 2  // logs and conntrack
	hubRate      = 50 // requests of the hub a second
	hubBurst     = 100
	writeTimeout = 60 * time.Second
	pprofTimeout = 5 * time.Minute
)

// Server serves the endpoints.
type Server struct {
	cfg    Config
	local  chan struct{} // requests on the socket: a hub cannot keep its host from leaving
	hub    chan struct{} // requests of the hub
	public chan struct{} // requests on the TCP port
	pings  chan struct{}
	slow   chan struct{} // what costs more than a look
	rate   *rate.Limiter // of the hub's requests
	uses   uses
	start  time.Time
	remote *connListener
}

// New opens nothing.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, local: make(chan struct{}, maxRequests), hub: make(chan struct{}, maxRequests), public: make(chan struct{}, maxRequests),
		pings: make(chan struct{}, maxPings), slow: make(chan struct{}, maxSlow), rate: rate.NewLimiter(hubRate, hubBurst), start: time.Now().UTC(),
		remote: &connListener{conns: make(chan net.Conn), done: make(chan struct{})}}
}

// Listen makes the unix socket path, for this user alone, and its directory.
// A socket that nobody answers on is left over from an agent that was killed
// and is replaced. A symbolic link of root's leads to where the socket shall be: the
// packages' does, to a directory in which the agent alone writes.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("debug socket %s: make its directory: %w; choose another with --debug-socket", path, errnoOf(err))
	}
	st, err := os.Lstat(path)
	if err == nil && st.Mode()&fs.ModeSymlink != 0 && st.Sys().(*syscall.Stat_t).Uid == 0 {
		to, lerr := os.Readlink(path)
		if lerr != nil {
			return nil, fmt.Errorf("debug socket %s: %w", path, errnoOf(lerr))
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
		st, err = os.Lstat(path)
	}
	if err == nil {
		if st.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("debug socket %s: a file that is no socket is there; remove it or choose another with --debug-socket", path)
		}
		if c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path); err == nil {
			c.Close()
			return nil, fmt.Errorf("debug socket %s: another process answers there; stop it or choose another with --debug-socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("debug socket %s: remove the old one: %w", path, errnoOf(err))
		}
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// The mode of the unbound socket becomes that of its file: there is no
		// moment at which others may connect.
		var err error
		if e := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }); e != nil {
			return e
		}
		return err
	}}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("debug socket %s: %w; choose another with --debug-socket", path, errnoOf(err))
	}
	return l, nil
}

// errnoOf leaves out the path that the message names already.
func errnoOf(err error) error {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}

// Run serves l, the streams given to ServeConn and, if it is not nil, the TCP
// port public until ctx ends.
func (s *Server) Run(ctx context.Context, l, public net.Listener) error {
	local, remote, open := s.httpServer(s.Local()), s.httpServer(s.Remote()), s.httpServer(s.Public())
	g, gctx := errgroup.WithContext(ctx)
	serve := func(srv *http.Server, l net.Listener, what string) {
		g.Go(func() error {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) && gctx.Err() == nil {
				return fmt.Errorf("serve %s: %w", what, err)
			}
			return nil
		})
	}
	serve(local, l, "debug socket")
	serve(remote, s.remote, "debug streams")
	if public != nil {
		serve(open, public, "metrics")
	}
	g.Go(func() error {
		<-gctx.Done()
		s.remote.Close()
		open.Close()
		// A leave is answered by the very request that ends the agent.
		short, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if local.Shutdown(short) != nil {
			local.Close()
		}
		remote.Close()
		return nil
	})
	return g.Wait()
}

func (s *Server) httpServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
}

// ServeConn takes over a stream that the hub opened.
func (s *Server) ServeConn(c net.Conn) {
	select {
	case s.remote.conns <- c:
	case <-s.remote.done:
		c.Close()
	}
}

// Local is everything, for the socket.
func (s *Server) Local() http.Handler {
	m := s.common()
	m.HandleFunc("POST "+protocol.DebugLeave, func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusOK, s.cfg.Leave(r.Context()))
	})
	m.HandleFunc("POST "+protocol.DebugRotateKey, func(w http.ResponseWriter, r *http.Request) {
		overlap, err := protocol.ParseDuration(r.URL.Query().Get("overlap"))
		if err != nil || overlap < 0 || overlap > protocol.MaxKeyOverlap {
			fail(w, http.StatusBadRequest, fmt.Sprintf("overlap is no length of time from 0s to %s", protocol.MaxKeyOverlap))
			return
		}
		reply(w, http.StatusOK, s.cfg.RotateKey(r.Context(), overlap))
	})
	m.HandleFunc("POST "+protocol.DebugHubs, func(w http.ResponseWriter, r *http.Request) {
		var l protocol.SignedHubList
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, protocol.MaxHubList)).Decode(&l); err != nil {
			fail(w, http.StatusBadRequest, "body is no hub list: "+err.Error())
			return
		}
		reply(w, http.StatusOK, s.cfg.SetHubs(r.Context(), l))
	})
	m.HandleFunc("POST "+protocol.DebugRepair, func(w http.ResponseWriter, r *http.Request) { reply(w, http.StatusOK, s.cfg.Repair(r.Context())) })
	m.HandleFunc("POST "+protocol.DebugRelease, func(w http.ResponseWriter, r *http.Request) {
		p, err := netip.ParsePrefix(r.URL.Query().Get("prefix"))
		if err != nil || p != p.Masked() {
			fail(w, http.StatusBadRequest, "prefix is none, such as 10.2.0.0/16")
			return
		}
		res, err := s.cfg.Release(r.Context(), p)
		if err != nil {
			fail(w, http.StatusNotFound, err.Error())
			return
		}
		reply(w, http.StatusOK, res)
	})
	m.HandleFunc("GET "+protocol.DebugLogs, s.logs)
	m.HandleFunc("GET "+protocol.DebugCapture, s.capture(true))
	s.measurements(m, false)
	s.proofs(m, false)
	pprofs(m, func(h http.HandlerFunc) http.HandlerFunc { return h })
	return s.audit(FromSocket, limit(m, s.local))
}

// Remote is what the hub may see and do: look, ping, and what the node's config
// allows it besides.
func (s *Server) Remote() http.Handler {
	m := s.common()
	m.HandleFunc("GET "+protocol.DebugLogs, s.allowed(AllowLogs, s.logs))
	m.HandleFunc("GET "+protocol.DebugCapture, s.unlessDenied(DenyCapture, s.capture(slices.Contains(s.cfg.Allow, AllowPayload))))
	s.measurements(m, true)
	s.proofs(m, true)
	pprofs(m, func(h http.HandlerFunc) http.HandlerFunc { return s.allowed(AllowPprof, h) })
	h := limit(m, s.hub)
	return s.audit(FromHub, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.rate.Allow() {
			fail(w, http.StatusTooManyRequests, "too many requests; try again in a second")
			return
		}
		h.ServeHTTP(w, r)
	}))
}

func pprofs(m *http.ServeMux, wrap func(http.HandlerFunc) http.HandlerFunc) {
	for path, h := range map[string]http.HandlerFunc{
		"/debug/pprof/": pprof.Index, "/debug/pprof/cmdline": pprof.Cmdline, "/debug/pprof/profile": pprof.Profile,
		"/debug/pprof/symbol": pprof.Symbol, "/debug/pprof/trace": pprof.Trace,
	} {
		m.HandleFunc("GET "+path, wrap(h))
	}
}

func (s *Server) common() *http.ServeMux {
	m := http.NewServeMux()
	get := func(path string, f func(context.Context) any) {
		m.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) { reply(w, http.StatusOK, f(r.Context())) })
	}
	get(protocol.DebugHealth, func(context.Context) any {
		st := s.cfg.Status()
		return Health{OK: st.OK, Conditions: st.Conditions}
	})
	get(protocol.DebugStatus, func(context.Context) any { return s.cfg.Status() })
	get(protocol.DebugPeers, func(context.Context) any { return notNil(s.cfg.Peers()) })
	get(protocol.DebugPaths, func(context.Context) any { return notNil(s.cfg.Paths()) })
	get(protocol.DebugNetmap, func(context.Context) any { return s.cfg.Netmap() })
	get(protocol.DebugRoutes, func(ctx context.Context) any { return s.cfg.Routes(ctx) })
	get(protocol.DebugHubs, func(context.Context) any { return s.cfg.Hubs() })
	get(protocol.DebugRuntime, func(context.Context) any { return readRuntime(s.start) })
	get(protocol.DebugIncidents, func(context.Context) any { return notNil(s.cfg.Incidents()) })
	get(protocol.DebugUses, func(context.Context) any { return s.uses.newest() })
	m.HandleFunc("GET "+protocol.DebugConntrack, s.flows)
	m.HandleFunc("GET "+protocol.DebugPolicy, s.policy)
	m.HandleFunc("GET "+protocol.DebugServices, s.services)
	m.HandleFunc("POST "+protocol.DebugPing, s.ping)
	m.HandleFunc("POST "+protocol.DebugTrace, s.trace)
	m.HandleFunc("POST "+protocol.DebugEvidence, s.evidence)
	m.HandleFunc("POST "+protocol.DebugConnections, s.connections)
	s.probes(m)
	m.Handle("GET /metrics", promhttp.HandlerFor(s.cfg.Metrics, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	m.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusNotFound, "no such endpoint; there are GET /v1/{health,status,peers,paths,netmap,routes,hubs,runtime,incidents,conntrack,policy,services,capture,logs,uses}, POST /v1/{ping,trace,evidence,connections,measure-offer,measure-run,prove,prove-send,prove-seen}, GET /metrics")
	})
	return m
}

// notNil keeps an empty list from becoming JSON's null.
func notNil[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

func (s *Server) policy(w http.ResponseWriter, r *http.Request) {
	var addr netip.Addr
	if text := r.FormValue("address"); text != "" {
		var err error
		if addr, err = netip.ParseAddr(text); err != nil {
			fail(w, http.StatusBadRequest, "address has to be an address: /v1/policy?address=10.1.1.11")
			return
		}
	}
	release, ok := take(w, s.slow)
	if !ok {
		return
	}
	defer release()
	reply(w, http.StatusOK, s.cfg.Policy(addr.Unmap().WithZone("")))
}

// services answers with all services, or with one, whose connections are counted; name=* counts those of all, and leaves out backends
// that nobody uses.
func (s *Server) services(w http.ResponseWriter, r *http.Request) {
	name := r.FormValue("name")
	if name != "" && name != protocol.ServicesCounted && !protocol.ValidName(name) {
		fail(w, http.StatusBadRequest, "name has to be a service's: /v1/services?name=web")
		return
	}
	release, ok := take(w, s.slow)
	if !ok {
		return
	}
	defer release()
	v, err := s.cfg.Services(r.Context(), name)
	if err != nil {
		fail(w, http.StatusNotFound, err.Error())
		return
	}
	reply(w, http.StatusOK, v)
}

func (s *Server) ping(w http.ResponseWriter, r *http.Request) {
	select {
	case s.pings <- struct{}{}:
		defer func() { <-s.pings }()
	default:
		fail(w, http.StatusTooManyRequests, "too many pings at once; try again")
		return
	}
	var q PingRequest
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	if err := d.Decode(&q); err != nil {
		fail(w, http.StatusBadRequest, "body is no ping request: "+err.Error())
		return
	}
	if q.Count == 0 {
		q.Count = 3
	}
	if q.Timeout == 0 {
		q.Timeout = Duration(time.Second)
	}
	if q.Count < 1 || q.Count > 20 || q.Timeout < 0 || q.Timeout > Duration(10*time.Second) || q.To == "" || len(q.To) > 253 {
		fail(w, http.StatusBadRequest, "to has to be an address or node name, count 1 to 20, timeout up to 10s")
		return
	}
	reply(w, http.StatusOK, s.cfg.Ping(r.Context(), q))
}

// limit bounds how many requests run at once and how long an answer takes.
func limit(h http.Handler, slots chan struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			fail(w, http.StatusServiceUnavailable, "too many requests at once; try again")
			return
		}
		d := writeTimeout
		if strings.HasPrefix(r.URL.Path, "/debug/pprof/") {
			d = pprofTimeout
		}
		if r.Method == http.MethodPost && r.URL.Path == protocol.DebugPing {
			d = 20*10*time.Second + writeTimeout
		}
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(d))
		h.ServeHTTP(w, r)
	})
}

func reply(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		code, b = http.StatusInternalServerError, []byte(`{"error":"the answer could not be encoded"}`)
	}
	if len(b) > protocol.MaxToAgent+1<<20 {
		code, b = http.StatusInternalServerError, []byte(`{"error":"the answer is too long"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(append(b, '\n'))
}

func fail(w http.ResponseWriter, code int, msg string) {
	reply(w, code, protocol.DebugError{Error: msg})
}

// connListener is a net.Listener over connections that come by themselves.
type connListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *connListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *connListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *connListener) Addr() net.Addr { return &net.UnixAddr{Name: "hub", Net: "stream"} }
