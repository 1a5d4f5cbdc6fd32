package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/session"
	"causeway/hub/state"
	"causeway/internal/cause"
	"causeway/protocol"
)

// Limits of asking agents.
const (
	debugTimeout = 60 * time.Second // pprof profiles take 30 s
	maxDebug     = 64 << 20
	pingDefault  = 3
	pingMax      = 20
)

// agentClient speaks HTTP with node n's agent through a debug stream, beside netmaps: for answers
// that are short.
func (s *Server) agentClient(n protocol.NodeNumber, timeout time.Duration) *http.Client {
	return client(func(ctx context.Context) (net.Conn, error) { return s.cfg.Sessions.Debug(ctx, n) }, timeout)
}

// bulkClient is agentClient for answers that may be long.
func (s *Server) bulkClient(n protocol.NodeNumber, timeout time.Duration) *http.Client {
	return client(func(ctx context.Context) (net.Conn, error) { return s.cfg.Sessions.Bulk(ctx, n) }, timeout)
}

// short are endpoints whose answers never are long. They say how an agent is, also while there is
// no connection for another one.
var short = []string{protocol.DebugHealth, protocol.DebugStatus, protocol.DebugHubs, protocol.DebugRuntime, "/healthz", "/readyz"}

func client(dial func(context.Context) (net.Conn, error), timeout time.Duration) *http.Client {
	return &http.Client{Timeout: timeout, Transport: &http.Transport{
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// agentError words why an agent did not answer.
func agentError(node string, err error) error {
	switch {
	case errors.Is(err, state.ErrBusy):
		return problem(err)
	case errors.Is(err, session.ErrBulkFull):
		return huma.Error429TooManyRequests(fmt.Sprintf("node %s: %v", node, session.ErrBulkFull))
	}
	return huma.Error502BadGateway(fmt.Sprintf("node %s does not answer: %v; see 'causeway node show %s'", node, cause.Innermost(err), node))
}

// debug passes a read of an agent's debug endpoints on.
func (s *Server) debug(w http.ResponseWriter, r *http.Request) {
	n, err := s.cfg.Store.State().FindNode(r.PathValue("name"))
	if err != nil {
		writeProblem(w, problem(err))
		return
	}
	path := "/" + strings.TrimPrefix(r.PathValue("path"), "/")
	ask := s.bulkClient
	if slices.Contains(short, path) {
		ask = s.agentClient
	}
	u := "http://agent" + path
	if r.URL.RawQuery != "" {
		u += "?" + r.URL.RawQuery
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, u, nil)
	if err != nil {
		writeProblem(w, huma.Error422UnprocessableEntity("not a path"))
		return
	}
	req.Header.Set(protocol.DebugWho, who(r.Context()))
	resp, err := ask(n.Number, debugTimeout).Do(req)
	if err != nil {
		writeProblem(w, agentError(n.Name, err))
		return
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); ct != "" {
		w.Header().Set("Content-Type", ct)
	}
	w.WriteHeader(resp.StatusCode)
	passOn(w, io.LimitReader(resp.Body, maxDebug))
}

// passOn copies an answer as it comes: of a log that is followed, each line at once.
func passOn(w http.ResponseWriter, r io.Reader) {
	c := http.NewResponseController(w)
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil || c.Flush() != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func writeProblem(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	var se huma.StatusError
	if errors.As(err, &se) {
		status = se.GetStatus()
	}
	if p, ok := err.(*huma.ErrorModel); ok {
		err = boundedProblem(p)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(err)
}

// agentPing is what the agent is asked; its answer has the fields of
// api.PingResult.
type agentPing struct {
	To      string       `json:"to"` // an address
	Count   int          `json:"count"`
	Timeout api.Duration `json:"timeout"`
}

// ping asks node From to ping To: a node, a pod or any address.
func (s *Server) ping(ctx context.Context, in api.PingRequest) (api.PingResult, error) {
	st := s.cfg.Store.State()
	from, err := st.FindNode(in.From)
	if err != nil {
		return api.PingResult{}, problem(err)
	}
	if in.Count == 0 {
		in.Count = pingDefault
	}
	if in.Timeout == 0 {
		in.Timeout = api.Duration(time.Second)
	}
	if t := time.Duration(in.Timeout); in.Count < 1 || in.Count > pingMax || t < time.Millisecond || t > 10*time.Second {
		return api.PingResult{}, huma.Error422UnprocessableEntity("a ping sends 1 to 20 packets and waits 1ms to 10s for each")
	}
	to, err := s.resolver(st).resolveNear(in.To, &from)
	if err != nil {
		// An address that nobody announces may be pinged all the same.
		addr, bad := netip.ParseAddr(in.To)
		if bad != nil || addr.Zone() != "" {
			return api.PingResult{}, err
		}
		to.Addr = addr
	}
	budget := time.Duration(in.Count)*(time.Duration(in.Timeout)+time.Second) + 10*time.Second
	out := api.PingResult{}
	if err := s.ask(ctx, from, protocol.DebugPing, agentPing{to.Addr.String(), in.Count, in.Timeout}, &out, budget); err != nil {
		return api.PingResult{}, err
	}
	out.Error, out.Path, out.Addr = protocol.OneLine(out.Error, protocol.MaxFactText), protocol.OneLine(out.Path, 16), out.Addr.WithZone("")
	out.From, out.To = from.Name, in.To
	if !out.Addr.IsValid() {
		out.Addr = to.Addr
	}
	return out, nil
}
