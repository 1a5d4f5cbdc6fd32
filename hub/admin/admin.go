// Package admin serves the admin API: every operation of hub/api, described by
// OpenAPI. On a unix socket (Serve) the asking user is taken from the peer
// credentials; from elsewhere (ServeRemote) from a certificate that the hub issued.
package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	stdlog "log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"causeway/hub/api"
	"causeway/hub/disk"
	"causeway/hub/facts/event"
	"causeway/hub/facts/flow"
	"causeway/hub/facts/incident"
	"causeway/hub/facts/inventory"
	"causeway/hub/facts/switches"
	"causeway/hub/fleet"
	"causeway/hub/reconcile"
	"causeway/hub/release"
	"causeway/hub/session"
	"causeway/hub/state"
	"causeway/internal/cause"
	"causeway/internal/unixsock"
	"causeway/protocol"
	"causeway/tunnel"
)

// Limits of the server.
const (
	headerTimeout = 10 * time.Second
	bodyTimeout   = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	maxBody       = api.MaxRequest
)

// Config configures a Server.
type Config struct {
	Version string
	Number  protocol.NodeNumber
	HubKey  protocol.WireGuardPrivateKey // for backups
	// ClusterKey signs what packets showed of policies.
	ClusterKey protocol.ClusterPrivateKey
	Pin        protocol.Pin
	Store      *state.Store
	Fleet      *fleet.Table
	Sessions   *session.Server
	Reconcile  *reconcile.Loop
	Inventory  *inventory.Store
	Incidents  *incident.Store
	Flows      *flow.Store
	Switches   *switches.Store
	Events     *event.Log
	Releases   release.Library
	Disk       func() error // why no change can be stored now; nil: it can
	Relay      func() tunnel.RelayStats
	Bound      func(protocol.NodeNumber) []netip.AddrPort
	Settings   []api.Setting // as they are, without secrets
	// ObjectStatus is what is known live of a declared object, by field; nil or empty: nothing.
	ObjectStatus func(state.ObjectKey) map[string]string
	// BackupNote is a file that keeps when the last backup was taken; empty: none.
	BackupNote string
	// PublicZone is the zone of public names that this hub answers; empty: none.
	PublicZone string
	// Conditions are further ones for status, of what only some hubs have.
	Conditions []func() protocol.Condition
	Log        zerolog.Logger

	CA         *CA // nil: nobody comes from elsewhere
	PublicHost string
	AdminPort  string // of ServeRemote, as contexts have it; empty: no admins from elsewhere
	NATSPort   string // empty: no NATS users from elsewhere
}

// Server is the admin API. Its methods may be called concurrently.
type Server struct {
	cfg     Config
	started time.Time
	handler http.Handler
	routes  *routes

	noting sync.Mutex // BackupNote

	explaining chan struct{} // flows that are explained now
	proving    chan struct{} // holds one while policies are proven

	refusals *rate.Limiter // of events that strangers cause
	document *huma.OpenAPI
	watches  watches
	ending   chan struct{} // closed when the server stops
	end      sync.Once
}

// New builds the API. It listens on nothing.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, explaining: make(chan struct{}, mostExplained), proving: make(chan struct{}, 1), ending: make(chan struct{}), started: time.Now().UTC(), refusals: rate.NewLimiter(rate.Every(10*time.Second), 10)}
	mux := &routes{ServeMux: http.NewServeMux()}
	hc := huma.DefaultConfig("Causeway hub", cfg.Version)
	hc.CreateHooks = nil // no $schema in answers: field names are a contract
	hc.DocsPath, hc.SchemasPath = "", ""
	hc.OpenAPIPath = "/v1/openapi"
	hc.Transformers = append(hc.Transformers, boundProblem)
	a := humago.New(mux, hc)
	s.registerSites(a)
	s.registerNodes(a)
	s.registerLifecycle(a)
	s.registerReads(a)
	s.registerAdmins(a)
	s.registerNATS(a)
	s.registerUpgrade(a)
	s.registerHubs(a)
	s.registerInventory(a)
	s.registerDiag(a)
	s.registerIncidents(a)
	s.registerDoctor(a)
	s.registerObjects(a)
	s.registerPolicy(a)
	s.registerServices(a)
	s.registerFlows(a)
	s.registerServiceEvents(a)
	mux.HandleFunc("GET /v1/nodes/{name}/debug/{path...}", s.debug)
	mux.HandleFunc("GET /v1/backup", s.backup)
	mux.HandleFunc("GET /v1/diag/capture", s.capture)
	mux.HandleFunc("POST /v1/policy/prove", s.provePolicies)
	mux.HandleFunc("GET /v1/inventory/watch", s.watchInventory)
	s.registerWatches(mux)
	describe(a.OpenAPI(), s.watches.feeds)
	s.document = a.OpenAPI()
	s.handler = http.MaxBytesHandler(guard(mux.ServeMux, cfg.PublicHost, mux), maxBody)
	s.routes = mux
	return s
}

// Listen makes the unix socket at path, mode 0660, and its directory if that
// is missing. A socket that nobody answers at is replaced. It sets the process's
// umask for a moment, so it belongs at the start, before other files are made.
func Listen(path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("admin socket: make directory %s: %w; make it for the user that runs the hub, or choose another path with --admin-socket", dir, cause.Innermost(err))
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("admin socket: %s exists and is no socket; remove it, or choose another path with --admin-socket", path)
		}
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			return nil, fmt.Errorf("admin socket: another hub answers at %s; choose another path with --admin-socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("admin socket: %w", err)
		}
	}
	l, err := unixsock.Listen(path, 0o660)
	if err != nil {
		return nil, fmt.Errorf("admin socket: listen at %s: %w; is the directory writable for the user that runs the hub?", path, cause.Innermost(err))
	}
	return l, nil
}

// Serve answers on l, a unix socket, which it closes, until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return s.serve(ctx, l) }

func (s *Server) serve(ctx context.Context, l net.Listener) error {
	hs := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: headerTimeout, ReadTimeout: bodyTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 64 << 10,
		ErrorLog: stdlog.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if r, ok := c.(*remoteConn); ok {
				return context.WithValue(ctx, callerKey{}, func() Caller { return s.certCaller(r.sum) })
			}
			return context.WithValue(ctx, callerKey{}, peer(c))
		},
	}
	end := make(chan struct{})
	go func() {
		defer close(end)
		<-ctx.Done()
		s.end.Do(func() { close(s.ending) })
		sctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if hs.Shutdown(sctx) != nil {
			hs.Close()
		}
	}()
	err := hs.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		<-end
		return nil
	}
	return fmt.Errorf("serve admin api: %w", err)
}

// who names the asking user: unix:<user> or admin:<name>.
func who(ctx context.Context) string { return callerOf(ctx).Name }

// peer asks the kernel who is at the other end of a unix connection. Whoever the
// socket's mode lets in is an admin.
func peer(c net.Conn) Caller {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return Caller{}
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return Caller{}
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil || err != nil {
		return Caller{}
	}
	uid := strconv.FormatUint(uint64(cred.Uid), 10)
	if u, err := user.LookupId(uid); err == nil {
		uid = u.Username
	}
	return Caller{"unix:" + uid, Admin}
}

// problem turns an error into a problem document.
func problem(err error) error {
	var e *state.Error
	var stale *staleError
	var full *disk.FullError
	var fullLog *state.FullLogError
	var setBack *state.SetBackError
	var broken *disk.BrokenError
	var short *disk.ShortageError
	var away *state.AwayError
	switch {
	case errors.As(err, &e):
		switch e.Kind {
		case state.NotFound:
			return huma.Error404NotFound(e.Text)
		case state.Conflict, state.Full:
			return huma.Error409Conflict(e.Text)
		case state.Refused:
			return huma.Error403Forbidden(e.Text)
		}
		return huma.Error422UnprocessableEntity(e.Text)
	case errors.As(err, &stale):
		return huma.Error412PreconditionFailed(err.Error())
	case errors.As(err, &full):
		return huma.NewError(http.StatusInsufficientStorage, err.Error())
	case errors.As(err, &fullLog):
		return huma.NewError(http.StatusInsufficientStorage, err.Error())
	case errors.As(err, &setBack):
		return huma.Error409Conflict(setBack.Error())
	case errors.As(err, &away):
		return huma.Error503ServiceUnavailable(away.Error())
	case errors.As(err, &broken), errors.As(err, &short):
		return huma.Error503ServiceUnavailable(err.Error())
	case errors.Is(err, state.ErrBusy):
		return huma.Error503ServiceUnavailable("the hub cannot store the change now; try again, and look at its log")
	case errors.Is(err, session.ErrOffline):
		return huma.Error409Conflict(err.Error())
	}
	return huma.Error500InternalServerError(err.Error())
}

// update decides on behalf of the asking user.
func (s *Server) update(ctx context.Context, why string, decide func(*state.Draft) error) (*state.State, error) {
	st, err := s.cfg.Store.Update(ctx, who(ctx), why, decide)
	if err != nil {
		return nil, problem(err)
	}
	s.cfg.Log.Info().Str("who", who(ctx)).Str("why", why).Msg("state changed")
	return st, nil
}

// body wraps an answer as huma wants it.
type body[T any] struct{ Body T }

func answer[T any](v T, err error) (*body[T], error) {
	if err != nil {
		return nil, err
	}
	return &body[T]{v}, nil
}

type named struct {
	Name string `path:"name" maxLength:"63"`
}

type namedChange struct {
	Name string `path:"name" maxLength:"63"`
	IfMatch
}

// hub returns this hub as the hub list has it.
func (s *Server) hub(st *state.State) protocol.Hub {
	for _, h := range st.Hubs.Hubs {
		if h.Number == s.cfg.Number {
			return h
		}
	}
	return protocol.Hub{}
}

func first(l []string) string {
	if len(l) == 0 {
		return ""
	}
	return l[0]
}

func (s *Server) registerReads(a huma.API) {
	huma.Get(a, "/v1/version", func(context.Context, *struct{}) (*body[api.Version], error) {
		return answer(api.Version{Version: s.cfg.Version, Protocol: protocol.Version}, nil)
	})
	huma.Get(a, "/v1/status", func(ctx context.Context, _ *struct{}) (*body[api.Status], error) {
		s.compiled(ctx)
		return answer(s.status(), nil)
	})
	huma.Get(a, "/v1/settings", func(context.Context, *struct{}) (*body[[]api.Setting], error) {
		return answer(append([]api.Setting{}, s.cfg.Settings...), nil)
	})
	huma.Get(a, "/v1/audit", func(ctx context.Context, in *struct {
		Limit  int    `query:"limit" default:"100" minimum:"1" maximum:"1000"`
		Before uint64 `query:"before" doc:"Show what was before the transaction with this sequence; 0 or none: the newest."`
	}) (*body[[]api.AuditEntry], error) {
		out, err := s.audit(ctx, in.Before, in.Limit)
		if err != nil {
			return nil, problem(err)
		}
		return answer(out, nil)
	})
	huma.Get(a, "/v1/events", func(_ context.Context, in *limited) (*body[[]api.Event], error) {
		return answer(s.cfg.Events.Newest(in.Limit), nil)
	})
}

// audit reads the last entries, or the last before one, newest first.
func (s *Server) audit(ctx context.Context, before uint64, limit int) ([]api.AuditEntry, error) {
	txs, err := s.cfg.Store.Audit(ctx, before, limit)
	if err != nil {
		return nil, err
	}
	out := []api.AuditEntry{}
	for _, t := range txs {
		e := api.AuditEntry{Sequence: t.Sequence, Time: t.Time, Who: t.Who, Why: t.Why, Changes: []string{}}
		for _, c := range t.Changes {
			e.Changes = append(e.Changes, c.Describe())
		}
		for _, d := range s.cfg.Store.Differences(t.Sequence) {
			e.Differences = append(e.Differences, api.Difference(d))
		}
		out = append(out, e)
	}
	return out, nil
}

type limited struct {
	Limit int `query:"limit" default:"100" minimum:"1" maximum:"1000"`
}

func (s *Server) status() api.Status {
	st := s.cfg.Store.State()
	h := s.hub(st)
	out := api.Status{
		Hub: api.HubStatus{Version: s.cfg.Version, Number: s.cfg.Number, Started: s.started, PublicUDP: first(h.UDP), PublicHTTP: first(h.HTTPS),
			Overlay: st.Overlay, LogLength: st.Seq},
		Sites:    []api.SiteStatus{},
		Policies: s.policyStatus(st),
	}
	out.Policies.Stage = s.cfg.Reconcile.Stage().String()
	for _, n := range s.cfg.Fleet.Passed() {
		out.Policies.Behind = append(out.Policies.Behind, st.Nodes.Get(n).Name)
	}
	bySite := map[string]*api.SiteStatus{}
	for _, site := range st.Sites.All() {
		out.Sites = append(out.Sites, api.SiteStatus{Name: site.Name})
	}
	for i := range out.Sites {
		bySite[out.Sites[i].Name] = &out.Sites[i]
	}
	for _, n := range st.LiveNodes() {
		site := bySite[n.Site]
		if site == nil {
			continue
		}
		site.Nodes++
		switch s.cfg.Fleet.Is(n) {
		case api.NodeReady:
			site.Ready++
		case api.NodeDegraded:
			site.Degraded++
		default:
			site.Unreachable++
		}
	}
	r := s.cfg.Relay()
	for _, u := range s.cfg.Fleet.Unknown() {
		if n, ok := st.LiveAt(u.Site, u.Name); ok && n.Number > u.Number {
			continue // it has joined again since
		}
		out.Unknown = append(out.Unknown, api.UnknownNode{Name: u.Name, Site: u.Site, Number: u.Number, ReportedBy: u.By})
	}
	out.Relay = api.RelayStatus{Bound: r.BoundNodes, Forwarded: r.Datagrams, ForwardedBytes: r.Bytes, Dropped: r.Dropped}
	if out.Relay.Dropped == nil {
		out.Relay.Dropped = map[string]uint64{}
	}
	out.Conditions = s.Conditions()
	return out
}

// Conditions are the hub's own, as status shows them.
func (s *Server) Conditions() []protocol.Condition {
	st := s.cfg.Store.State()
	bad := s.cfg.Inventory.Dropped()
	inv := protocol.Condition{Name: "inventory", OK: bad == 0, Since: s.started}
	if bad > 0 {
		inv.Cause = fmt.Sprintf("%d inventory messages made no sense; see 'causeway events'", bad)
	}
	log := protocol.Condition{Name: "state", OK: true, Since: s.started}
	if err := cmp.Or(s.cfg.Store.Err(), s.cfg.Store.SetBack()); err != nil {
		log.OK, log.Cause = false, err.Error()
	}
	space := protocol.Condition{Name: "disk", OK: true, Since: s.started}
	if err := s.cfg.Disk(); err != nil {
		space.OK, space.Cause = false, err.Error()
	}
	archive := protocol.Condition{Name: "archive", OK: true, Since: s.started}
	if err := s.cfg.Store.Archives(); err != nil {
		archive.OK, archive.Cause = false, err.Error()
	}
	out := []protocol.Condition{keysCondition(st, time.Now(), s.started), listCondition(st, time.Now(), s.started), log, space,
		{Name: "tunnel", OK: true, Since: s.started}, inv, archive}
	if l, essential := st.Strange(); len(l) > 0 {
		out = append(out, strangeCondition(l, essential, s.started))
	}
	for _, c := range s.cfg.Conditions {
		out = append(out, c())
	}
	return out
}
