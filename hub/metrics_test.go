package hub

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/internal/docpage"
	"causeway/protocol"
)

// get asks the port of metrics and health.
func (w *world) get(path string) (code int, body string) {
	w.t.Helper()
	c := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get("http://" + w.hub.parts.Load().metrics.String() + path)
	require.NoError(w.t, err)
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	require.NoError(w.t, err)
	return r.StatusCode, string(b)
}

// metric is the value of a series, as the text format writes it; -1: there is none.
func (w *world) metric(series string) float64 {
	w.t.Helper()
	code, text := w.get("/metrics")
	require.Equal(w.t, 200, code, text)
	for l := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(l, series+" "); ok {
			f, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			require.NoError(w.t, err, l)
			return f
		}
	}
	return -1
}

// becomes waits for a series to have a value.
func (w *world) becomes(series string, want float64) {
	w.t.Helper()
	require.Eventually(w.t, func() bool { return w.metric(series) == want }, patience, 20*time.Millisecond, "%s %v", series, want)
}

func TestMetrics(t *testing.T) {
	w, err := tryStart(t, t.TempDir(), func(c *Config) { c.ListenMetrics, c.ListenAdmin = "127.0.0.1:0", "127.0.0.1:0" })
	require.NoError(t, err)
	for path, want := range map[string]string{"/healthz": "200 ok\n", "/readyz": "200 ok\n", "/debug/pprof/": "404 404 page not found\n", "/": "404 404 page not found\n"} {
		code, body := w.get(path)
		require.Equal(t, want, fmt.Sprint(code, " ", body), path)
	}
	require.Equal(t, 1.0, w.metric(`causeway_hub_info{version="test"}`))
	require.Equal(t, 1.0, w.metric("causeway_hub_ready"))
	require.Greater(t, w.metric("causeway_hub_disk_free_bytes"), 0.0)
	for _, c := range []string{"https", "admin-ca"} {
		require.Greater(t, w.metric(`causeway_hub_certificate_expiry_timestamp_seconds{certificate="`+c+`"}`), float64(time.Now().Unix()))
	}

	w.site("a")
	require.Equal(t, 0.0, w.metric(`causeway_hub_nodes{site="a",state="ready"}`))
	tok := w.token(api.TokenSpec{Site: "a"})
	one, two := newHost(t), joined(t, w, "two", api.TokenSpec{Site: "a"})
	require.Nil(t, one.join(t, tok, "one", nil).Refused)
	require.NotNil(t, newHost(t).join(t, tok, "thief", nil).Refused)
	r, err := (&http.Client{Transport: http.DefaultTransport}).Get("http://" + w.hub.parts.Load().metrics.String() + "/readyz?" + strings.Repeat("x", 16<<10))
	require.NoError(t, err)
	r.Body.Close()
	require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, r.StatusCode)
	require.Equal(t, 2.0, w.metric(`causeway_hub_joins_total{result="accepted"}`))
	require.Equal(t, 1.0, w.metric(`causeway_hub_joins_total{result="refused"}`))
	require.Equal(t, 0.0, w.metric(`causeway_hub_joins_total{result="busy"}`))
	require.Equal(t, 1.0, w.metric(`causeway_hub_events_total{kind="join_refused"}`))
	require.Equal(t, 2.0, w.metric(`causeway_hub_nodes{site="a",state="joined"}`))
	require.Equal(t, 0.0, w.metric(`causeway_hub_node_up{node="one",site="a"}`))
	var st api.Status
	w.must("GET", "/v1/status", nil, &st)
	require.Equal(t, float64(st.Hub.LogLength), w.metric("causeway_hub_state_sequence"))

	// One is there; two takes no netmap.
	a := w.dial(one, func(h *protocol.Hello) { h.Routes = prefixes("10.9.0.0/24") })
	a.ready()
	w.becomes("causeway_hub_control_sessions", 1)
	w.becomes("causeway_hub_netmap_behind_nodes", 0)
	require.Equal(t, 0.0, w.metric("causeway_hub_netmap_lag_seconds"))
	require.Equal(t, 1.0, w.metric(`causeway_hub_routes{state="pending"}`))
	w.becomes(`causeway_hub_node_up{node="one",site="a"}`, 1)
	w.becomes(`causeway_hub_nodes{site="a",state="ready"}`, 1)
	b := w.dial(two, nil)
	b.mu.Lock()
	b.mute = true
	b.mu.Unlock()
	w.site("b") // of no concern to nodes
	w.must("POST", "/v1/routes/decide", api.RouteDecision{Node: "one", Prefix: netip.MustParsePrefix("10.9.0.0/24"), Approve: true}, nil)
	w.becomes("causeway_hub_netmap_behind_nodes", 1)
	lag := w.metric("causeway_hub_netmap_lag_seconds")
	require.Greater(t, lag, 0.0)
	require.Eventually(t, func() bool { return w.metric("causeway_hub_netmap_lag_seconds") > lag }, patience, 20*time.Millisecond)
	b.m.Close()
	w.becomes("causeway_hub_netmap_behind_nodes", 0)
	w.becomes("causeway_hub_control_sessions", 1)

	// Inventory, of which one message makes no sense.
	nc, err := nats.Connect("nats://hub:4222", nats.SetCustomDialer(natsDialer{a}), nats.SkipHostLookup(), nats.NoReconnect(), nats.CustomInboxPrefix(protocol.InboxPrefix(one.answer.Number)))
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	for _, m := range []string{`{"nonsense":`, `{"v":1,"sequence":1,"hostname":"one"}`} {
		_, err = js.Publish(t.Context(), protocol.InventorySubject("a", one.answer.Number), []byte(m))
		require.NoError(t, err)
	}
	w.becomes(`causeway_hub_inventory_messages_total{result="malformed"}`, 1)
	w.becomes(`causeway_hub_inventory_messages_total{result="taken"}`, 1)
	require.Equal(t, 0.0, w.metric(`causeway_hub_condition{condition="inventory"}`))
	require.Equal(t, 1.0, w.metric(`causeway_hub_condition{condition="state"}`))
	require.GreaterOrEqual(t, w.metric(`causeway_hub_doctor_findings{severity="warning"}`), 0.0)

	_, text := w.get("/metrics")
	problems, err := promlint.New(bytes.NewReader([]byte(text))).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)

	// Whoever holds connections open keeps nobody out.
	for range 100 {
		c, err := net.Dial("tcp", w.hub.parts.Load().metrics.String())
		require.NoError(t, err)
		defer c.Close()
	}
	code, _ := w.get("/readyz")
	require.Equal(t, 200, code)
}

// docs/METRICS.md has what a hub gives that has everything, and nothing else.
func TestMetricsTable(t *testing.T) {
	w, err := tryStart(t, t.TempDir(), func(c *Config) {
		c.ListenMetrics, c.ListenAdmin = "127.0.0.1:0", "127.0.0.1:0"
		c.ListenDNS, c.DNSZone, c.DNSServers = "127.0.0.1:0", "lb.example.com", "ns.example.com"
	})
	require.NoError(t, err)
	w.site("a")
	joined(t, w, "one", api.TokenSpec{Site: "a"})
	_, text := w.get("/metrics")
	docpage.Check(t, "../docs/METRICS.md", "hub", docpage.Metrics(t, text))
}
