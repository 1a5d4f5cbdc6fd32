package debug

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"time"

	"causeway/protocol"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
)

// Bounds of following the log.
const (
	maxLogTime  = 45 * time.Second
	maxLogBytes = 1 << 20
	// maxFlows bounds an answer of conntrack.
	maxFlows = 200
)

// What a node's config may allow the hub beyond looking (debug: {allow: …}).
const (
	AllowLogs    = "logs"
	AllowPayload = "payload" // of captures
	AllowPprof   = "pprof"
)

// Allowable are the words of debug: {allow: …}.
func Allowable() []string { return []string{AllowLogs, AllowPayload, AllowPprof} }

// Runtime is the agent's process.
type Runtime struct {
	Go         string    `json:"go"`
	Started    time.Time `json:"started"`
	Now        time.Time `json:"now"`
	PID        int       `json:"pid"`
	Processors int       `json:"processors"`
	Goroutines int       `json:"goroutines"`
	Files      int       `json:"files"` // open descriptors
	HeapBytes  uint64    `json:"heap_bytes"`
	SysBytes   uint64    `json:"sys_bytes"`
	GCs        uint32    `json:"gcs"`
}

func readRuntime(started time.Time) Runtime {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	files, _ := os.ReadDir("/proc/self/fd")
	return Runtime{Go: runtime.Version(), Started: started, Now: time.Now().UTC(), PID: os.Getpid(), Processors: runtime.GOMAXPROCS(0),
		Goroutines: runtime.NumGoroutine(), Files: len(files), HeapBytes: m.HeapAlloc, SysBytes: m.Sys, GCs: m.NumGC}
}

// FlowQuery picks entries of conntrack: those with these addresses on either
// side, and this port if it is not 0.
type FlowQuery struct {
	A, B netip.Addr
	Port uint16
}

// Flow is one entry of conntrack.
type Flow struct {
	Proto   string        `json:"proto"`
	Orig    [2]string     `json:"orig"`  // source and destination, with ports
	Reply   [2]string     `json:"reply"` // the same of answers: differs where NAT is at work
	Packets [2]uint64     `json:"packets"`
	Bytes   [2]uint64     `json:"bytes"`
	Mark    uint32        `json:"mark,omitempty"`
	Timeout uint32        `json:"timeout_seconds"`
	NAT     bool          `json:"nat"`
	addrs   [4]netip.Addr // of Orig and Reply
	ports   [4]uint16
}

// Matches reports whether the entry is one that q asks for.
func (f Flow) Matches(q FlowQuery) bool {
	has := func(a netip.Addr) bool {
		for _, x := range f.addrs {
			if x == a {
				return true
			}
		}
		return false
	}
	port := q.Port == 0
	for _, p := range f.ports {
		port = port || p == q.Port
	}
	return has(q.A) && (!q.B.IsValid() || has(q.B)) && port
}

func (s *Server) flows(w http.ResponseWriter, r *http.Request) {
	var q FlowQuery
	var err error
	if q.A, err = netip.ParseAddr(r.FormValue("addr")); err != nil {
		fail(w, http.StatusBadRequest, "addr has to be an address: /v1/conntrack?addr=10.1.1.11&peer=10.2.1.11&port=443")
		return
	}
	if p := r.FormValue("peer"); p != "" {
		if q.B, err = netip.ParseAddr(p); err != nil {
			fail(w, http.StatusBadRequest, "peer has to be an address")
			return
		}
	}
	if p := r.FormValue("port"); p != "" {
		if _, err := fmt.Sscanf(p, "%d", &q.Port); err != nil {
			fail(w, http.StatusBadRequest, "port has to be 1 to 65535")
			return
		}
	}
	release, ok := take(w, s.slow)
	if !ok {
		return
	}
	defer release()
	all, err := s.cfg.Flows(r.Context(), q)
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	reply(w, http.StatusOK, notNil(all[:min(len(all), maxFlows)]))
}

// connections tells what crosses the tunnel.
func (s *Server) connections(w http.ResponseWriter, r *http.Request) {
	release, ok := take(w, s.slow)
	if !ok {
		return
	}
	defer release()
	var q protocol.ConnectionsQuestion
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&q); err != nil || q.Most < 1 || q.Most > protocol.MaxConnections {
		fail(w, http.StatusBadRequest, fmt.Sprintf("body has to be {\"most\": N}, with 1 to %d", protocol.MaxConnections))
		return
	}
	c, err := s.cfg.Connections(r.Context(), q.Most)
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	reply(w, http.StatusOK, c)
}

func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	level, wait := zerolog.InfoLevel, 10*time.Second
	var err error
	if v := r.FormValue("level"); v != "" {
		if level, err = zerolog.ParseLevel(v); err != nil {
			fail(w, http.StatusBadRequest, "level has to be trace, debug, info, warn or error")
			return
		}
	}
	if v := r.FormValue("for"); v != "" {
		if wait, err = protocol.ParseDuration(v); err != nil || wait <= 0 || wait > maxLogTime {
			fail(w, http.StatusBadRequest, "for has to be a time up to "+maxLogTime.String())
			return
		}
	}
	if s.cfg.Logs == nil {
		fail(w, http.StatusServiceUnavailable, "this agent's log cannot be followed")
		return
	}
	release, ok := take(w, s.slow)
	if !ok {
		return
	}
	defer release()
	lines, stop := s.cfg.Logs.follow(level)
	dropped := 0
	defer func() {
		if dropped += stop(); dropped > 0 {
			b, _ := json.Marshal(map[string]any{"level": "warn", "message": "lines were left out", "lines": dropped})
			w.Write(append(b, '\n'))
		}
	}()
	w.Header().Set("Content-Type", "application/x-ndjson")
	rc := http.NewResponseController(w)
	rc.Flush()
	end := time.NewTimer(wait)
	defer end.Stop()
	for n := 0; ; {
		select {
		case <-r.Context().Done():
			return
		case <-end.C:
			return
		case l := <-lines:
			if n += len(l); n > maxLogBytes {
				dropped++
				return
			}
			if _, err := w.Write(l); err != nil {
				return
			}
			rc.Flush()
		}
	}
}

// take takes one of few places for what is costly.
func take(w http.ResponseWriter, slots chan struct{}) (release func(), ok bool) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, true
	default:
		fail(w, http.StatusTooManyRequests, "too many of these at once; try again")
		return nil, false
	}
}

// allowed refuses the hub what the node's config does not name.
func (s *Server) allowed(what string, h http.HandlerFunc) http.HandlerFunc {
	for _, a := range s.cfg.Allow {
		if a == what {
			return h
		}
	}
	return func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusForbidden, "this node does not allow the hub '"+what+"'; its agent's config does so with debug: {allow: ["+what+"]}")
	}
}

// ListenPublic listens for what may be read over TCP; nil for an empty addr.
func ListenPublic(ctx context.Context, addr string) (net.Listener, error) {
	if addr == "" {
		return nil, nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("metrics on %s: %w; choose another address with debug: {metrics: …}", addr, errnoOf(err))
	}
	return l, nil
}

// Public is what a TCP port may serve: figures, and whether the agent lives
// (/healthz) and all its conditions hold (/readyz).
func (s *Server) Public() http.Handler {
	m := http.NewServeMux()
	m.Handle("GET /metrics", promhttp.HandlerFor(s.cfg.Metrics, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	s.probes(m)
	return limit(m, s.public)
}

// probes are for load balancers and supervisors.
func (s *Server) probes(m *http.ServeMux) {
	m.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok\n")) })
	m.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if s.cfg.Status().OK {
			w.Write([]byte("ok\n"))
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		w.Write([]byte("not ready\n"))
	})
}
