package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"causeway/hub/conns"
)

// Limits of the port. Whoever reaches it may read it.
const (
	readTimeout       = 5 * time.Second
	writeTimeout      = 15 * time.Second
	scrapeTimeout     = 10 * time.Second
	idleTimeout       = 2 * time.Minute // a Prometheus comes back every minute or sooner
	maxHeader         = 8 << 10
	maxScrapes        = 4 // at once
	maxConns          = 64
	maxConnsPerSource = 32
)

// Handler serves /metrics; /healthz, which says that the process is alive; and
// /readyz, which says 503 and one word while the hub cannot do its work.
func (s *Server) Handler() http.Handler {
	m := http.NewServeMux()
	m.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes, Timeout: scrapeTimeout}))
	m.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { say(w, http.StatusOK, "ok") })
	m.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := s.cfg.Unready(); why != "" {
			say(w, http.StatusServiceUnavailable, "not ready: "+why)
			return
		}
		say(w, http.StatusOK, "ok")
	})
	return m
}

func say(w http.ResponseWriter, code int, line string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	io.WriteString(w, line+"\n")
}

// Serve answers on l, which it closes, until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	hs := &http.Server{Handler: s.Handler(), ReadTimeout: readTimeout, ReadHeaderTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader, ErrorLog: stdlog.New(io.Discard, "", 0)} // of strangers; nothing an operator can act on
	end := make(chan struct{})
	go func() {
		defer close(end)
		<-ctx.Done()
		hs.Close()
	}()
	err := hs.Serve(conns.New(l, maxConns, maxConnsPerSource))
	if errors.Is(err, http.ErrServerClosed) {
		<-end
		return nil
	}
	return fmt.Errorf("serve metrics: %w", err)
}
