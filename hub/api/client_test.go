package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers on a unix socket with h and returns a client for it.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "cw") // t.TempDir can be too long for a socket
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "hub.sock")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	srv := httptest.NewUnstartedServer(h)
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	return newClient(t, ClientConfig{Socket: socket})
}

func newClient(t *testing.T, cfg ClientConfig) *Client {
	t.Helper()
	c, err := NewClient(cfg)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func TestRequests(t *testing.T) {
	type seen struct{ Method, URL, Body string }
	var got seen
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = seen{r.Method, r.URL.String(), string(b)}
		if r.Method == http.MethodDelete {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if strings.HasPrefix(r.URL.Path, "/v1/nodes/") || r.Method != http.MethodGet {
			io.WriteString(w, `{"$schema":"x","future":1}`)
			return
		}
		io.WriteString(w, `[]`)
	})
	ctx := t.Context()
	call := func(err error) seen {
		t.Helper()
		require.NoError(t, err)
		return got
	}
	_, err := c.Nodes(ctx)
	require.Equal(t, seen{"GET", "/v1/nodes", ""}, call(err))
	_, err = c.Node(ctx, "a/../b?c")
	require.Equal(t, seen{"GET", "/v1/nodes/a%2F..%2Fb%3Fc", ""}, call(err))
	_, err = c.CreateToken(ctx, TokenSpec{Site: "s", TTL: Duration(time.Hour)})
	require.Equal(t, seen{"POST", "/v1/tokens", `{"site":"s","ttl":"1h0m0s"}`}, call(err))
	_, err = c.PatchNode(ctx, "n", NodePatch{Labels: map[string]string{"a": ""}})
	require.Equal(t, seen{"PATCH", "/v1/nodes/n", `{"labels":{"a":""}}`}, call(err))
	_, err = c.PatchSite(ctx, "s", SitePatch{MaxAge: Forever})
	require.Equal(t, seen{"PATCH", "/v1/sites/s", `{"max_age":"forever"}`}, call(err))
	require.Equal(t, seen{"DELETE", "/v1/sites/s", ""}, call(c.DeleteSite(ctx, "s")))
	_, err = c.Audit(ctx, 7)
	require.Equal(t, seen{"GET", "/v1/audit?limit=7", ""}, call(err))
	_, err = c.Events(ctx, 0)
	require.Equal(t, seen{"GET", "/v1/events", ""}, call(err))
}

func TestProblems(t *testing.T) {
	for _, tc := range []struct {
		name, kind, body string
		status           int
		want             string
	}{
		{"detail", "application/problem+json", `{"title":"Conflict","status":409,"detail":"site a exists already"}`, 409, "site a exists already"},
		{"parts", "application/problem+json", `{"detail":"validation failed","errors":[{"message":"too long","location":"body.name"},{"message":"odd"}]}`, 422, "validation failed: too long (body.name); odd"},
		{"title alone", "application/problem+json; charset=utf-8", `{"title":"Not Found"}`, 404, "not found"},
		{"not JSON", "application/json", `<html>`, 502, "bad gateway"},
		{"page", "text/html", `<html><body>nope`, 503, "service unavailable"},
		{"text", "text/plain; charset=utf-8", "404 page not found\n", 404, "404 page not found"},
		{"empty", "", "", 500, "internal server error"},
		{"unknown status", "", "", 499, "status 499"},
		{"lines and escapes", "application/problem+json", `{"detail":"a\nb\u001b[2Jc"}`, 400, "a b [2Jc"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", tc.kind)
				w.WriteHeader(tc.status)
				io.WriteString(w, tc.body)
			})
			_, err := c.Status(t.Context())
			require.EqualError(t, err, tc.want)
			var e *Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, tc.status, e.Status)
			require.Equal(t, tc.status == 404, errors.Is(err, ErrNotFound))
		})
	}
}

func TestNoHub(t *testing.T) {
	dir, err := os.MkdirTemp("", "cw")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })

	missing := filepath.Join(dir, "none.sock")
	_, err = newClient(t, ClientConfig{Socket: missing}).Status(t.Context())
	require.ErrorIs(t, err, ErrNoHub)
	require.EqualError(t, err, "no hub at "+missing+": is causeway-hub running on this host? (use --socket)")

	stale := filepath.Join(dir, "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	l.Close()
	_, err = newClient(t, ClientConfig{Socket: stale}).Status(t.Context())
	require.ErrorIs(t, err, ErrNoHub)
	require.ErrorContains(t, err, "does not run")

	_, err = newClient(t, ClientConfig{Socket: "/" + strings.Repeat("a", 200)}).Status(t.Context())
	require.ErrorContains(t, err, "too long")
}

func TestTimeout(t *testing.T) {
	done := make(chan struct{})
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-done:
		}
	})
	t.Cleanup(func() { close(done) })
	c.cfg.Timeout = 50 * time.Millisecond
	_, err := c.Status(t.Context())
	require.ErrorContains(t, err, "did not answer within 50ms")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.Status(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

// TestLongAnswer has a server that never stops sending.
func TestLongAnswer(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		block := []byte(strings.Repeat(" ", 1<<20))
		for {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})
	c.cfg.Timeout = 2 * time.Minute // it is the length that ends it
	_, err := c.Status(t.Context())
	require.ErrorContains(t, err, "longer than")
}

func TestBrokenAnswers(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"hub":`) })
	_, err := c.Status(t.Context())
	require.ErrorContains(t, err, "read the hub's answer to GET /v1/status")

	abort := func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }
	half := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, `{"hub":`)
	}
	for what, h := range map[string]http.HandlerFunc{"before the answer": abort, "in the answer": half} {
		far := httptest.NewTLSServer(h)
		defer far.Close()
		for _, c := range []*Client{serve(t, h), newClient(t, ClientConfig{Transport: far.Client().Transport, BaseURL: far.URL})} {
			_, err = c.Status(t.Context())
			require.ErrorIs(t, err, ErrCut, what)
			require.NotContains(t, err.Error(), "EOF", what)
			require.ErrorContains(t, err, "look, then try again", what)
		}
	}
}

// TestTransport is the seam for contexts: a hub that is not on this host.
func TestTransport(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(Version{Version: "v9", Protocol: 1})
	}))
	t.Cleanup(srv.Close)
	c := newClient(t, ClientConfig{Transport: srv.Client().Transport, BaseURL: srv.URL + "/"})
	v, err := c.Version(t.Context())
	require.NoError(t, err)
	require.Equal(t, "v9", v.Version)

	_, err = NewClient(ClientConfig{Transport: http.DefaultTransport, BaseURL: "nowhere"})
	require.ErrorContains(t, err, "names no host")
}

// A hub, or what is before it, that says 'come again' is asked again; a change is not sent twice
// unless nothing was done.
func TestComesAgain(t *testing.T) {
	for name, c := range map[string]struct {
		method, after string
		status, tries int
	}{
		"too many":                  {http.MethodPost, "0", 429, 2},
		"away, looked":              {http.MethodGet, "0", 503, 2},
		"away, changed":             {http.MethodPost, "0", 503, 1},
		"does not say to":           {http.MethodGet, "", 503, 1},
		"longer than anybody waits": {http.MethodGet, "3600", 429, 1},
		"final":                     {http.MethodGet, "0", 404, 1},
	} {
		tries := 0
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if tries++; tries > 1 {
				w.Write([]byte("{}"))
				return
			}
			if c.after != "" {
				w.Header().Set("Retry-After", c.after)
			}
			w.WriteHeader(c.status)
		}))
		defer s.Close()
		cl, err := NewClient(ClientConfig{Transport: http.DefaultTransport, BaseURL: s.URL})
		require.NoError(t, err)
		var in any
		if c.method == http.MethodPost {
			in = struct{}{}
		}
		err = cl.do(t.Context(), c.method, "/", in, nil)
		require.Equal(t, c.tries, tries, name)
		require.Equal(t, c.tries == 2, err == nil, name)
	}
}
