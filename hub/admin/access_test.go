package admin

import (
	"context"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every route stands in the table, and the table holds nothing else.
func TestEveryRouteHasARole(t *testing.T) {
	got := slices.Sorted(slices.Values(New(Config{}).routes.patterns))
	require.Equal(t, slices.Sorted(maps.Keys(access)), got)
}

// Every route × every caller: what a caller's role does not allow never reaches a
// handler, and nothing does that comes by a foreign name or from a web page.
func TestAccess(t *testing.T) {
	mux := New(Config{}).routes.ServeMux
	reached := 0
	h := guard(mux, "", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached++ }))
	cases, refused := 0, 0
	for pattern, need := range access {
		method, path, _ := strings.Cut(pattern, " ")
		path = strings.NewReplacer("{name}", "x", "{id}", "x", "{path...}", "v1/status").Replace(path)
		for _, c := range []struct {
			what string
			edit func(r *http.Request) *http.Request
			want int
		}{
			{"no credential", as(NoRole), http.StatusUnauthorized},
			{"viewer", as(Viewer), status(Viewer, need)},
			{"operator", as(Operator), status(Operator, need)},
			{"admin", as(Admin), http.StatusOK},
			{"foreign host", foreign("evil.example"), http.StatusMisdirectedRequest},
			{"foreign host with port", foreign("127.0.0.1:8080"), http.StatusMisdirectedRequest},
			{"no host", foreign(""), http.StatusMisdirectedRequest},
			{"web page", header("Origin", "http://hub"), http.StatusForbidden},
			{"opaque origin", header("Origin", "null"), http.StatusForbidden},
			{"browser", header("Sec-Fetch-Site", "same-origin"), http.StatusForbidden},
		} {
			r := c.edit(httptest.NewRequest(method, "http://hub"+path, nil))
			w, before := httptest.NewRecorder(), reached
			h.ServeHTTP(w, r)
			require.Equal(t, c.want, w.Code, "%s by %s", pattern, c.what)
			require.Equal(t, c.want == http.StatusOK, reached > before, "%s by %s", pattern, c.what)
			cases++
			if w.Code != http.StatusOK {
				refused++
			}
		}
	}
	// What is no route, or one in disguise, reaches no route's handler.
	for _, target := range []string{"/v1/nothing", "/", "//v1/backup", "/v1/../v1/backup", "/v1/sites/%2e%2e/backup", "/V1/backup"} {
		r := as(Viewer)(httptest.NewRequest(http.MethodGet, "http://hub"+target, nil))
		_, pattern := mux.Handler(r)
		if access[pattern] == Admin {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			require.Equal(t, http.StatusForbidden, w.Code, target)
		}
	}
	t.Logf("%d routes, %d requests: %d refused as they have to be", len(access), cases, refused)
}

func as(role Role) func(*http.Request) *http.Request {
	return func(r *http.Request) *http.Request {
		if role == NoRole {
			return r
		}
		return r.WithContext(context.WithValue(r.Context(), callerKey{}, Caller{"test", role}))
	}
}

func status(have, need Role) int {
	if have < need {
		return http.StatusForbidden
	}
	return http.StatusOK
}

func foreign(host string) func(*http.Request) *http.Request {
	return func(r *http.Request) *http.Request {
		r = as(Admin)(r)
		r.Host = host
		return r
	}
}

func header(k, v string) func(*http.Request) *http.Request {
	return func(r *http.Request) *http.Request {
		r = as(Admin)(r)
		r.Header.Set(k, v)
		return r
	}
}

// A connection that is no unix socket has no role, whatever it says.
func TestOnlyTheSocketVouches(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New(Config{}).Serve(ctx, l) }()
	r, err := http.NewRequest(http.MethodGet, "http://"+l.Addr().String()+"/v1/version", nil)
	require.NoError(t, err)
	r.Host = "hub"
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	res.Body.Close()
	require.Equal(t, http.StatusUnauthorized, res.StatusCode)
	http.DefaultClient.CloseIdleConnections()
	cancel()
	require.NoError(t, <-done)

	u, err := Listen(filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	defer u.Close()
	go net.Dial("unix", u.Addr().String())
	c, err := u.Accept()
	require.NoError(t, err)
	defer c.Close()
	who := peer(c)
	require.Equal(t, Admin, who.Role)
	require.True(t, strings.HasPrefix(who.Name, "unix:"), who.Name)
}
