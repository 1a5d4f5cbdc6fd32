package debug

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"causeway/netns/policy"
	"causeway/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testServer() *Server {
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "causeway_agent_test_total"})
	reg.MustRegister(c)
	return New(Config{
		Status: func() Status {
			return Status{Name: "n1", OK: false, Conditions: []protocol.Condition{{Name: "tunnel", OK: true}, {Name: "hub", Cause: "gone"}}}
		},
		Peers: func() []Peer { return nil },
		Paths: func() []protocol.PathStatus { return nil },
		Netmap: func() Netmap {
			return Netmap{Held: true, Netmap: protocol.Netmap{NetmapVersion: protocol.NetmapVersion{Epoch: 1, Version: 2}}}
		},
		Routes:       func(context.Context) Routes { return Routes{Planned: []string{"ip link set cw0 up"}} },
		Capture:      func(CaptureQuery) (Recording, error) { return recorded("pcapng"), nil },
		MeasureOffer: func(_ context.Context, o protocol.MeasureOffer) protocol.MeasurePlace { return protocol.MeasurePlace{} },
		MeasureRun:   func(_ context.Context, q protocol.MeasureRun) protocol.Measured { return protocol.Measured{} },
		Prove:        func(_ context.Context, _ protocol.ProveWatch, ready func()) error { ready(); return nil },
		ProveSend: func(context.Context, protocol.ProveNow) (protocol.ProveSents, error) {
			return protocol.ProveSents{}, nil
		},
		ProveSeen: func(context.Context, protocol.ProveNow) (protocol.ProveSeens, error) {
			return protocol.ProveSeens{}, nil
		},
		Trace: func(_ context.Context, q protocol.TraceQuestion) protocol.TraceView {
			return protocol.TraceView{Number: q.Peer}
		},
		Connections: func(_ context.Context, most int) (protocol.Connections, error) {
			return protocol.Connections{More: most}, nil
		},
		Evidence: func(_ context.Context, q protocol.EvidenceRequest) (protocol.Evidence, error) {
			if q.Local.String() != "198.18.0.2" {
				return protocol.Evidence{}, errors.New("not here")
			}
			return protocol.Evidence{Version: protocol.Version}, nil
		},
		Ping: func(_ context.Context, q PingRequest) PingResult {
			return PingResult{From: "n1", To: q.To, Sent: q.Count, MinRTT: q.Timeout}
		},
		Leave: func(context.Context) LeaveResult { return LeaveResult{Told: true} },
		Release: func(_ context.Context, p netip.Prefix) (ReleaseResult, error) {
			return ReleaseResult{Released: []HeldRange{{Prefix: p}}}, nil
		},
		Hubs: func() Hubs { return Hubs{} }, SetHubs: func(context.Context, protocol.SignedHubList) HubsResult { return HubsResult{} },
		Repair: func(context.Context) RepairResult {
			return RepairResult{Mended: []string{"routes"}, Stopped: []string{}}
		},
		Services: func(_ context.Context, name string) (protocol.ServicesView, error) {
			if name == "none" {
				return protocol.ServicesView{}, errors.New("no service none")
			}
			return protocol.ServicesView{Services: []protocol.ServiceView{{Name: "web"}}}, nil
		},
		Policy: func(a netip.Addr) Policy {
			p := Policy{InForce: true, Rules: []RuleCount{{Rule: "main/web", Count: policy.Count{Packets: 7, Bytes: 420}}}}
			if a.IsValid() {
				p.Classes = append(p.Classes, ClassOf{Where: "here", Prefix: netip.PrefixFrom(a, 24), Class: 3})
			}
			return p
		},
		Incidents: func() []protocol.Incident { return nil },
		RotateKey: func(context.Context, time.Duration) RotateResult { return RotateResult{Epoch: 2} },
		Metrics:   reg,
	})
}

// recorded is a capture of that text.
type recorded string

func (r recorded) Run(_ context.Context, w io.Writer) error {
	_, err := io.WriteString(w, string(r))
	return err
}

func call(h http.Handler, method, path, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w
}

func TestEndpoints(t *testing.T) {
	s := testServer()
	for _, c := range []struct {
		method, path, body string
		local, remote      int
		want               string
	}{
		{"GET", "/v1/health", "", 200, 200, `{"ok":false,"conditions":[{"name":"tunnel","ok":true`},
		{"GET", "/v1/status", "", 200, 200, `"name":"n1"`},
		{"GET", "/v1/peers", "", 200, 200, `[]`},
		{"GET", "/v1/paths", "", 200, 200, `[]`},
		{"GET", "/v1/netmap", "", 200, 200, `"version":2`},
		{"GET", "/v1/routes", "", 200, 200, `"planned":["ip link set cw0 up"]`},
		{"GET", "/v1/policy", "", 200, 200, `"rules":[{"rule":"main/web","packets":7,"bytes":420}]`},
		{"GET", "/v1/policy?address=10.1.1.11", "", 200, 200, `"classes":[{"where":"here","prefix":"10.1.1.11/24","class":3}]`},
		{"GET", "/v1/services", "", 200, 200, `"services":[{"name":"web"`},
		{"GET", "/v1/services?name=*", "", 200, 200, `"services":[{"name":"web"`},
		{"GET", "/v1/services?name=none", "", 404, 404, "no service none"},
		{"GET", "/v1/services?name=A%20b", "", 400, 400, "name has to be a service's"},
		{"GET", "/v1/policy?address=x", "", 400, 400, "address has to be an address"},
		{"GET", "/metrics", "", 200, 200, "causeway_agent_test_total 0"},
		{"POST", "/v1/ping", `{"to":"198.18.0.3"}`, 200, 200, `"sent":3,"received":0,"min_rtt":"1s"`},
		{"POST", "/v1/ping", `{"to":"198.18.0.3","count":21}`, 400, 400, "count 1 to 20"},
		{"POST", "/v1/ping", `{"to":""}`, 400, 400, "to has to be"},
		{"POST", "/v1/ping", `{"to":"x","timeout":"1m"}`, 400, 400, "timeout up to 10s"},
		{"POST", "/v1/ping", `{"to":"x","timeout":"-1s"}`, 400, 400, "timeout up to 10s"},
		{"POST", "/v1/ping", `{`, 400, 400, "no ping request"},
		{"POST", "/v1/ping", `{"to":"` + strings.Repeat("a", 8192) + `"}`, 400, 400, "no ping request"},
		{"POST", "/v1/leave", "", 200, 404, ""},
		{"GET", "/debug/pprof/", "", 200, 403, ""},
		{"GET", "/debug/pprof/cmdline", "", 200, 403, ""},
		{"GET", "/debug/pprof/symbol", "", 200, 403, ""},
		{"GET", "/debug/pprof/goroutine", "", 200, 403, ""},
		{"GET", "/debug/pprof/profile?seconds=1", "", 200, 403, ""},
		{"GET", "/debug/pprof/trace?seconds=1", "", 200, 403, ""},
		{"GET", "/v1/leave", "", 404, 404, "no such endpoint"},
		{"DELETE", "/v1/status", "", 404, 404, ""},
		{"GET", "/", "", 404, 404, "no such endpoint"},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			w := call(s.Local(), c.method, c.path, c.body)
			require.Equal(t, c.local, w.Code, w.Body)
			require.Contains(t, w.Body.String(), c.want)
			w = call(s.Remote(), c.method, c.path, c.body)
			require.Equal(t, c.remote, w.Code, w.Body)
			if strings.HasPrefix(c.path, "/v1/") {
				require.True(t, json.Valid(w.Body.Bytes()))
			}
		})
	}
}

func TestConcurrencyIsBounded(t *testing.T) {
	s := testServer()
	for range maxPings {
		s.pings <- struct{}{}
	}
	require.Equal(t, http.StatusTooManyRequests, call(s.Local(), "POST", "/v1/ping", `{"to":"x"}`).Code)
	for range maxRequests {
		s.hub <- struct{}{}
	}
	require.Equal(t, http.StatusServiceUnavailable, call(s.Remote(), "GET", "/v1/status", "").Code)
	require.Equal(t, http.StatusOK, call(s.Local(), "POST", "/v1/leave", "").Code, "the hub does not keep its host from leaving")
	for range maxRequests {
		s.local <- struct{}{}
	}
	require.Equal(t, http.StatusServiceUnavailable, call(s.Local(), "GET", "/v1/status", "").Code)
}

// Over a real socket and a real stream, until the end.
func TestRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "causeway", "agent.sock")
	l, err := Listen(context.Background(), path)
	require.NoError(t, err)
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())

	s := testServer()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l, nil) }()

	_, err = Listen(context.Background(), path)
	require.ErrorContains(t, err, "another process answers there")

	c := NewClient(path)
	var got Status
	require.NoError(t, c.Get(ctx, "/v1/status", &got))
	require.Equal(t, "n1", got.Name)
	require.ErrorContains(t, c.Get(ctx, "/v1/none", &got), "no such endpoint")
	r, err := c.Leave(ctx)
	require.NoError(t, err)
	require.True(t, r.Told)

	a, b := net.Pipe()
	go s.ServeConn(a)
	b.SetDeadline(time.Now().Add(5 * time.Second))
	go io.WriteString(b, "GET /v1/health HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
	answer, err := io.ReadAll(b)
	require.NoError(t, err)
	require.Contains(t, string(answer), "200 OK")
	require.Contains(t, string(answer), `"cause":"gone"`)

	cancel()
	require.NoError(t, <-done)
	_, err = os.Stat(path)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorIs(t, c.Get(context.Background(), "/v1/status", &got), ErrNotRunning)
	a, b = net.Pipe()
	s.ServeConn(a)
	_, err = b.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	ctx := context.Background()
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	l.Close()
	n, err := Listen(ctx, stale)
	require.NoError(t, err, "a socket left over from a killed agent")
	n.Close()

	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("x"), 0o600))
	_, err = Listen(ctx, file)
	require.ErrorContains(t, err, "no socket is there")
	_, err = Listen(ctx, filepath.Join(file, "below", "a.sock"))
	require.ErrorContains(t, err, "make its directory")
	_, err = Listen(ctx, filepath.Join(dir, strings.Repeat("a", 120)))
	require.Error(t, err)
	require.NotContains(t, err.Error(), "\n")
}

func TestPing(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root: raw sockets")
		}
		t.Skip("needs root: raw sockets")
	}
	lo := netip.MustParseAddr("127.0.0.1")
	r := Ping(context.Background(), lo, lo, 2, time.Second)
	require.Empty(t, r.Error)
	require.Equal(t, 2, r.Sent)
	require.Equal(t, 2, r.Received)
	require.Positive(t, r.MinRTT)
	require.GreaterOrEqual(t, r.MaxRTT, r.AvgRTT)

	// A source that is no address of this host.
	r = Ping(context.Background(), netip.MustParseAddr("192.0.2.77"), lo, 1, 50*time.Millisecond)
	require.NotEmpty(t, r.Error)
	require.Zero(t, r.Received)
}
