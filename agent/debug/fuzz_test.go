package debug

import (
	"bufio"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// FuzzRemote: a hub that was taken over sends an agent's debug endpoints whatever
// it likes. It gets an answer of the endpoints' own form, and never what belongs to
// the host alone: a leave, a profile.
func FuzzRemote(f *testing.F) {
	s := testServer()
	h := s.Remote()
	for _, r := range []string{
		"GET /v1/status HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /v1/ping HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\n{\"to\":\"198.18.0.3\",\"count\":1,\"timeout\":\"1s\"}",
		"POST /v1/ping HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n{",
		"POST /v1/leave HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /v1//./leave HTTP/1.1\r\nHost: a\r\n\r\n",
		"PUT /v1/log HTTP/1.1\r\nHost: a\r\nContent-Length: 17\r\n\r\n{\"level\":\"debug\"}",
		"GET /debug/pprof/../pprof/profile?seconds=1 HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET http://b/debug/pprof/heap HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		f.Add([]byte(r))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(string(b))))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		body := w.Body.String()
		if strings.Contains(body, `"told"`) || strings.Contains(body, "goroutine ") || strings.Contains(body, "heap profile") {
			t.Fatalf("%s %s: %.100s", r.Method, r.URL, body)
		}
		if w.Header().Get("Content-Type") == "application/json" && !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%s %s answers %q", r.Method, r.URL, body)
		}
	})
}
