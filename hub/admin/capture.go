package admin

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/protocol"
)

const (
	// captureStall is how long the caller may take for one piece.
	captureStall = 30 * time.Second
	// captureSlack is what an agent may need beside the capture's own time.
	captureSlack = 30 * time.Second
)

// capture passes on what an agent records: of a node's tunnel interface, or of a pod's.
func (s *Server) capture(w http.ResponseWriter, r *http.Request) {
	in := r.URL.Query()
	on, err := s.resolver(s.cfg.Store.State()).resolve(in.Get("on"))
	if err != nil {
		writeProblem(w, err)
		return
	}
	length := api.CaptureDefaultTime
	if v := in.Get("for"); v != "" {
		if length, err = protocol.ParseDuration(v); err != nil || length <= 0 || length > api.CaptureMaxTime {
			writeProblem(w, huma.Error422UnprocessableEntity("for has to be a time up to "+api.CaptureMaxTime.String()))
			return
		}
	}
	q := url.Values{"for": {length.String()}}
	for _, k := range []string{"filter", "bytes", "payload"} {
		if v := in.Get(k); v != "" {
			q.Set(k, v)
		}
	}
	if on.behind.IsValid() {
		q.Set("pod", on.behind.String())
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, "http://agent/v1/capture?"+q.Encode(), nil)
	if err != nil {
		writeProblem(w, problem(err))
		return
	}
	req.Header.Set(protocol.DebugWho, who(r.Context()))
	resp, err := s.bulkClient(on.node.Number, length+captureSlack).Do(req)
	if err != nil {
		writeProblem(w, agentError(on.Node, err))
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != api.CaptureType {
		var p struct{ Error string }
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		if json.Unmarshal(b, &p) != nil || p.Error == "" {
			p.Error = "its agent is too old for captures"
		}
		status := http.StatusBadGateway
		if resp.StatusCode == http.StatusBadRequest || resp.StatusCode == http.StatusConflict || resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusTooManyRequests {
			status = http.StatusConflict
		}
		writeProblem(w, huma.NewError(status, fmt.Sprintf("node %s: %s", on.Node, protocol.OneLine(p.Error, protocol.MaxFactText))))
		return
	}
	s.cfg.Log.Info().Str("who", who(r.Context())).Str("node", on.Node).Str("filter", protocol.OneLine(in.Get("filter"), 200)).Msg("capture")
	w.Header().Set("Content-Type", api.CaptureType)
	rc := http.NewResponseController(w)
	left := int64(api.CaptureMaxBytes) + 1<<20
	buf := make([]byte, 32<<10)
	for {
		n, err := resp.Body.Read(buf)
		if left -= int64(n); left < 0 {
			panic(http.ErrAbortHandler)
		}
		rc.SetWriteDeadline(time.Now().Add(captureStall))
		if _, werr := w.Write(buf[:n]); werr != nil || rc.Flush() != nil {
			return
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler) // it is not whole
		}
	}
}
