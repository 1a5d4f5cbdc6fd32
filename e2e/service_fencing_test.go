package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// writers are two sites that serve a single-writer, a client that may be cut off, and one beside the hub.
type writers struct {
	s     *System
	nodes []*smallNode
	vip   string
	pods  map[string]*Pod // by site
}

func newWriters(t *testing.T) *writers {
	s, nodes := newSmall(t, 4)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3", "n4"))
	w := &writers{s: s, nodes: nodes, pods: map[string]*Pod{"s2": nodes[1].Pod, "s3": nodes[2].Pod}}
	for _, p := range w.pods {
		startServer(t, s, p)
		p.Host.Sh(fmt.Sprintf("nft 'table inet count { counter c { }; chain i { type filter hook input priority 0; ip saddr { %s, %s } tcp dport 7005 tcp flags & rst == 0 counter name c; }; }'", nodes[0].Pod.V4, nodes[3].Pod.V4))
	}
	w.declare(t, "")
	w.vip = vipOf(t, s, "db")
	return w
}

func (w *writers) declare(t *testing.T, more string) {
	t.Helper()
	applyText(t, w.s, fmt.Sprintf("kind: service\nname: db\nports: [{port: 80, target: 7005}]\nbackends:\n- {site: s2, addresses: [%s]}\n- {site: s3, addresses: [%s]}\nmode: single-writer\nwriter: s2\n%s",
		w.pods["s2"].V4, w.pods["s3"].V4, more))
}

// show is the service as the hub has it.
func (w *writers) show(t *testing.T) (v api.Service) {
	t.Helper()
	require.NoError(t, w.s.Ask(step(t), &v, "service", "show", "db"))
	return v
}

// who serves a client; empty: nobody.
func (w *writers) who(t *testing.T, from *Pod) string {
	t.Helper()
	out, err := from.Host.Run(step(t), w.s.Bin.Labtool, "gaps", w.vip+":80", "-every", "5ms", "-streams", "10")
	if err != nil {
		return ""
	}
	var g Gaps
	require.NoError(t, json.Unmarshal([]byte(out[strings.IndexByte(out, '{'):]), &g))
	site := ""
	for name, p := range w.pods {
		if g.By[p.V4] > 0 {
			require.Empty(t, site, "two sites serve at once: %v", g.By)
			site = name
		}
	}
	return site
}

func (w *writers) serves(t *testing.T, from *Pod, site string) {
	t.Helper()
	require.NoError(t, Wait(t, func() error {
		if got := w.who(t, from); got != site {
			return fmt.Errorf("%q serves, not %q", got, site)
		}
		return nil
	}))
}

var counterText = regexp.MustCompile(`packets (\d+)`)

// arrived is how many packets of clients came to a site's backend. Resets are none: a pod's kernel answers with one what a server sends on a
// connection that ended at the client.
func (w *writers) arrived(t *testing.T, site string) string {
	t.Helper()
	out := w.pods[site].Host.Sh("nft list counter inet count c")
	m := counterText.FindStringSubmatch(out)
	require.NotNil(t, m, out)
	return m[1]
}

// quiet has clients write for a while, old connections and new ones, and none of that comes to a site.
func (w *writers) quiet(t *testing.T, site string, clients ...*Pod) {
	t.Helper()
	before := w.arrived(t, site)
	for until := time.Now().Add(2 * time.Second); time.Now().Before(until); {
		for _, c := range clients {
			require.NotEqual(t, site, w.who(t, c))
		}
	}
	require.Equal(t, before, w.arrived(t, site), "packets of clients come to %s", site)
}

// apart has a node hear nothing of the hub, nor the hub of it, by any path; it reaches other nodes.
func (w *writers) apart(t *testing.T, n *smallNode) (end func()) {
	t.Helper()
	n.Host.Sh(fmt.Sprintf("nft 'table inet apart { chain i { type filter hook input priority -300; ip saddr %[1]s drop; }; chain o { type filter hook output priority -300; ip daddr %[1]s drop; }; }'", HubAddr))
	return func() { n.Host.Sh("nft delete table inet apart") }
}

// A single-writer is switched while its clients write: planned, with the old site cut off from the hub but not from a client that is cut off, too, and by
// force. After the second transaction no packet of a client comes to the old site.
func TestServiceFencing(t *testing.T) {
	t.Parallel()
	lab.Counts(t)
	w := newWriters(t)
	stale, fresh := w.nodes[0].Pod, w.nodes[3].Pod
	w.serves(t, stale, "s2")
	w.serves(t, fresh, "s2")

	// Planned: all hear of it.
	writes := startClient(t, w.s, stale.Host, "connected to "+w.pods["s2"].V4, "wait", w.vip+":80", "-streams", "10", "-every", "10ms")
	idle := startClient(t, w.s, fresh.Host, "connected to "+w.pods["s2"].V4, "wait", w.vip+":80", "-streams", "10", "-every", "0")
	begun := time.Now()
	out, err := w.s.CLI(step(t), "service", "switch", "db", "s3", "--wait=20s", "--yes")
	require.NoError(t, err, out)
	measured(t, "a planned switch of a single-writer", time.Since(begun).Seconds(), promised(5))
	w.quiet(t, "s2", stale, fresh)
	for _, c := range []Client{writes, idle} {
		var v waited
		require.NoError(t, c.End(step(t), &v))
		require.Zero(t, v.Open, "what was open has ended: %v", v.Errors)
	}
	w.serves(t, stale, "s3")
	require.NoError(t, Wait(t, func() error {
		if v := w.show(t); len(v.Fenced) > 0 {
			return fmt.Errorf("%v is still fenced, for %v", v.Fenced, v.Unaware)
		}
		return nil
	}))
	out, err = w.s.CLI(step(t), "service", "switch", "db", "s2", "--wait=20s", "--yes")
	require.NoError(t, err, out)
	w.quiet(t, "s3", stale, fresh)
	w.serves(t, stale, "s2")

	// The old site and a client of it are cut off from the hub: it waits, and comes through when the lease is over.
	w.declare(t, "lease: 15s\n")
	require.NoError(t, Wait(t, func() error {
		if v := w.show(t); len(v.Fenced)+len(v.Lack) > 0 {
			return fmt.Errorf("%v %v", v.Fenced, v.Lack)
		}
		return nil
	}))
	w.serves(t, stale, "s2")
	heal := []func(){w.apart(t, w.nodes[0]), w.apart(t, w.nodes[1])}
	cutAt := time.Now()
	out, err = w.s.CLI(step(t), "service", "switch", "db", "s3", "--wait=2s", "--yes")
	require.ErrorContains(t, err, "it waits for n2 (", out)
	require.Equal(t, "s2", w.who(t, stale), "until then it goes on where it was")
	require.Empty(t, w.who(t, fresh), "who has heard of it uses nobody")
	writes = startClient(t, w.s, stale.Host, "connected to "+w.pods["s2"].V4, "wait", w.vip+":80", "-streams", "10", "-every", "10ms")
	require.NoError(t, Wait(t, func() error {
		if v := w.show(t); v.To != "" {
			return fmt.Errorf("waits for %v", v.Waits)
		}
		return nil
	}))
	t.Logf("through %s after the cut", time.Since(cutAt).Round(time.Second/10))
	require.Greater(t, time.Since(cutAt), 15*time.Second)
	w.quiet(t, "s2", stale)
	w.serves(t, fresh, "s3")
	var v waited
	require.NoError(t, writes.End(step(t), &v))
	require.Zero(t, v.Open, v.Errors)

	// Its agent starts anew, with the netmap of before and no hub: it lets nothing through that the one before did not.
	w.nodes[1].Proc.Kill()
	require.NoError(t, w.nodes[1].Start())
	w.quiet(t, "s2", stale)
	w.quiet(t, "s2", stale)
	for _, f := range heal {
		f()
	}
	require.NoError(t, w.s.WaitReady(step(t), "n1", "n2", "n3", "n4"))
	w.serves(t, stale, "s3")
	w.quiet(t, "s2", stale, fresh)

	// By force.
	end := w.apart(t, w.nodes[2])
	defer end()
	out, err = w.s.CLI(step(t), "service", "switch", "db", "s2", "--force", "--yes")
	require.NoError(t, err, out)
	w.serves(t, fresh, "s2")
	out, err = w.s.CLI(step(t), "audit")
	require.NoError(t, err)
	require.Contains(t, out, "switch to s2 by force: nobody is waited for")
	if os.Getenv("CAUSEWAY_SOAK") != "" {
		w.quiet(t, "s3", fresh)
	}
}
