package debug

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
)

// Every endpoint of docs/DEBUG.md answers on the socket, and the hub gets what
// the table says: always, where the config allows it, or never.
func TestTable(t *testing.T) {
	b, err := os.ReadFile("../../docs/DEBUG.md")
	require.NoError(t, err)
	rows := regexp.MustCompile("(?m)^\\| `(GET|POST) (/[^`]*)` \\|.*\\| `?([a-z]+)`? \\|$").FindAllStringSubmatch(string(b), -1)
	require.Len(t, rows, 33)
	plain := testServer()
	allowing := testServer()
	allowing.cfg.Allow = Allowable()
	for _, s := range []*Server{plain, allowing} {
		s.cfg.Logs = NewLogs(&bytes.Buffer{}, zerolog.InfoLevel)
		s.cfg.Flows = func(context.Context, FlowQuery) ([]Flow, error) { return []Flow{{Proto: "tcp"}}, nil }
	}
	served := map[string]bool{}
	for _, row := range rows {
		method, path, hub := row[1], row[2], row[3]
		served[strings.SplitN(path, "?", 2)[0]] = true
		body := ""
		switch path {
		case "/v1/ping":
			body = `{"to":"198.18.0.3"}`
		case "/v1/hubs":
			body = map[string]string{"POST": "{}"}[method]
		case "/v1/connections":
			body = `{"most":2}`
			require.Equal(t, http.StatusBadRequest, call(plain.Remote(), method, path, `{"most":100000}`).Code, path)
		case "/v1/trace":
			body = `{"peer":3}`
		case "/v1/evidence":
			body = `{"local":"198.18.0.2","remote":"198.18.0.3","proto":"icmp"}`
		case "/v1/capture?filter=tcp&for=1s":
			denying := testServer()
			denying.cfg.Deny = Deniable()
			require.Equal(t, http.StatusForbidden, call(denying.Remote(), method, path, body).Code, path)
			require.Equal(t, http.StatusForbidden, call(plain.Remote(), method, path+"&payload=true", body).Code, path)
			require.Equal(t, http.StatusOK, call(allowing.Remote(), method, path+"&payload=true", body).Code, path)
			for _, bad := range []string{"&for=1h", "&bytes=1", "&pod=x", "&pod=fe80::1%25e"} {
				require.Equal(t, http.StatusBadRequest, call(plain.Remote(), method, strings.Replace(path, "&for=1s", bad, 1), body).Code, bad)
			}
		case "/v1/prove", "/v1/prove-send", "/v1/prove-seen":
			body = `{"secret":3}`
			denying := testServer()
			denying.cfg.Deny = Deniable()
			require.Equal(t, http.StatusForbidden, call(denying.Remote(), method, path, body).Code, path)
			require.Equal(t, http.StatusBadRequest, call(plain.Remote(), method, path, `{"secret":"x"}`).Code, path)
		case "/v1/measure-offer", "/v1/measure-run":
			body = `{"kind":"tcp","peer":3}`
			denying := testServer()
			denying.cfg.Deny = Deniable()
			require.Equal(t, http.StatusForbidden, call(denying.Remote(), method, path, body).Code, path)
			require.Equal(t, http.StatusOK, call(denying.Local(), method, path, body).Code, path)
			require.Equal(t, http.StatusOK, call(denying.Remote(), method, path, `{"kind":"mtu","peer":3}`).Code, path)
		}
		want := http.StatusOK
		if path == "/readyz" {
			want = http.StatusServiceUnavailable // testServer's hub is gone
		}
		require.Equal(t, want, call(plain.Local(), method, path, body).Code, path)
		switch hub {
		case "yes":
			require.Equal(t, want, call(plain.Remote(), method, path, body).Code, path)
		case "never":
			require.Equal(t, http.StatusNotFound, call(allowing.Remote(), method, path, body).Code, path)
		default:
			w := call(plain.Remote(), method, path, body)
			require.Equal(t, http.StatusForbidden, w.Code, path)
			require.Contains(t, w.Body.String(), "debug: {allow: ["+hub+"]}")
			require.Equal(t, want, call(allowing.Remote(), method, path, body).Code, path)
		}
	}
	// What is served is in the table.
	m, _ := os.ReadFile("server.go")
	for _, p := range regexp.MustCompile(`"(?:(?:GET|POST) )?(/(?:v1/|metrics)[a-z-]*)"`).FindAllStringSubmatch(string(m), -1) {
		require.True(t, served[p[1]], p[1])
	}
	for _, path := range []string{"/v1/status", "/v1/leave", "/debug/pprof/", "/v1/logs"} {
		require.Equal(t, http.StatusNotFound, call(plain.Public(), "GET", path, "").Code, path)
	}
	for path, code := range map[string]int{"/metrics": 200, "/healthz": 200, "/readyz": 503} {
		require.Equal(t, code, call(plain.Public(), "GET", path, "").Code, path)
	}
}

// Each use is noted, who is behind the hub's and refused ones too, bounded.
func TestUses(t *testing.T) {
	s := testServer()
	var heard []Use
	s.cfg.Used = func(u Use) { heard = append(heard, u) }
	call(s.Local(), "GET", "/v1/status?x=1", "")
	call(s.Remote(), "GET", "/debug/pprof/heap", "")
	require.Len(t, heard, 2)
	require.Equal(t, []any{FromSocket, "/v1/status?x=1", 200}, []any{heard[0].From, heard[0].Path, heard[0].Status})
	require.Equal(t, []any{FromHub, "/debug/pprof/heap", 403}, []any{heard[1].From, heard[1].Path, heard[1].Status})
	for range maxUses {
		s.uses.add(Use{})
	}
	s.uses.add(Use{Path: "/last"})
	var got []Use
	require.NoError(t, json.Unmarshal(call(s.Local(), "GET", "/v1/uses", "").Body.Bytes(), &got))
	require.Len(t, got, maxUses)
	require.Equal(t, "/last", got[0].Path)
}

// The hub cannot ask without end.
func TestHubRate(t *testing.T) {
	s := testServer()
	h := s.Remote()
	codes := map[int]int{}
	for range 3 * hubBurst {
		codes[call(h, "GET", "/healthz", "").Code]++
	}
	require.Positive(t, codes[http.StatusTooManyRequests])
	require.Equal(t, http.StatusOK, call(s.Local(), "GET", "/healthz", "").Code)
}

// Following the log at a lower level than the process's gives more lines to the
// follower alone; afterwards the level is as before.
func TestLogs(t *testing.T) {
	var out bytes.Buffer
	s := testServer()
	s.cfg.Logs = NewLogs(&out, zerolog.InfoLevel)
	log := s.cfg.Logs.Logger()
	log.Debug().Msg("before")
	lines, stop := s.cfg.Logs.follow(zerolog.DebugLevel)
	log.Debug().Msg("fine")
	log.Info().Msg("coarse")
	require.Contains(t, string(<-lines), "fine")
	require.Contains(t, string(<-lines), "coarse")
	for range logQueue + 7 {
		log.Debug().Msg("many")
	}
	require.Equal(t, 7, stop())
	log.Debug().Msg("after")
	require.NotContains(t, out.String(), "fine")
	require.NotContains(t, out.String(), "after")
	require.Contains(t, out.String(), "coarse")
	require.Equal(t, zerolog.InfoLevel, zerolog.GlobalLevel())
	for _, q := range []string{"?level=loud", "?for=1h", "?for=-1s"} {
		require.Equal(t, http.StatusBadRequest, call(s.Local(), "GET", "/v1/logs"+q, "").Code, q)
	}
	got := make(chan string)
	go func() { got <- call(s.Local(), "GET", "/v1/logs?level=debug&for=300ms", "").Body.String() }()
	require.Eventually(t, func() bool { log.Debug().Msg("told"); return zerolog.GlobalLevel() == zerolog.DebugLevel }, 5*time.Second, time.Millisecond)
	log.Debug().Msg("told at last")
	require.Contains(t, <-got, "told at last")
}

func TestFlowMatches(t *testing.T) {
	a, b, c := netip.MustParseAddr("10.1.1.11"), netip.MustParseAddr("10.2.1.11"), netip.MustParseAddr("10.3.1.11")
	f := Flow{addrs: [4]netip.Addr{a, b, b, a}, ports: [4]uint16{40000, 443, 443, 40000}}
	for q, want := range map[FlowQuery]bool{{A: a}: true, {A: b, B: a}: true, {A: a, B: c}: false, {A: c}: false, {A: a, Port: 443}: true, {A: a, Port: 80}: false} {
		require.Equal(t, want, f.Matches(q), q)
	}
}
