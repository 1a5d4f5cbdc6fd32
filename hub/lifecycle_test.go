package hub

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/protocol"
)

// Two nodes of a site announce one LAN. Draining the one that carries it moves it
// to the other, in every netmap, and names what nobody else announces.
func TestDrainMovesRoutes(t *testing.T) {
	t.Parallel()
	w := start(t, t.TempDir())
	w.site("a", "10.1.0.0/16")
	w.site("b")
	lan, own := netip.MustParsePrefix("10.1.9.0/24"), netip.MustParsePrefix("10.1.1.0/24")
	one, two := joined(t, w, "one", api.TokenSpec{Site: "a"}), joined(t, w, "two", api.TokenSpec{Site: "a"})
	far := joined(t, w, "far", api.TokenSpec{Site: "b"})
	w.dial(one, func(h *protocol.Hello) { h.Routes = []netip.Prefix{lan, own} })
	f := w.dial(far, nil)
	f.until("one carries it", func(n protocol.Netmap) bool { return slices.Contains(routesOf(n, "one"), lan.String()) })
	b := w.dial(two, func(h *protocol.Hello) { h.Routes = []netip.Prefix{lan} })
	// The range alone makes no group: an operator does.
	var routes []api.Route
	i := -1
	require.Eventually(t, func() bool {
		w.must("GET", "/v1/routes", nil, &routes)
		i = slices.IndexFunc(routes, func(r api.Route) bool { return r.Node == "two" && r.Prefix == lan })
		return i >= 0
	}, patience, 5*time.Millisecond, "the hub heard of it")
	require.Equal(t, protocol.RoutePending, routes[i].State)
	require.Equal(t, "it is the same as route 10.1.9.0/24 of node one, which is approved", routes[i].Why)
	w.must("POST", "/v1/routes/decide", api.RouteDecision{Node: "two", Prefix: lan, Approve: true}, nil)
	n := f.until("two may send from it", func(n protocol.Netmap) bool { return slices.Equal(sourcesOf(n, "two"), []netip.Prefix{lan}) })
	require.Empty(t, sourcesOf(n, "one"))
	require.Empty(t, routesOf(n, "two"), "it stays where it is")

	var d api.Drain
	w.must("POST", "/v1/nodes/one/drain", nil, &d)
	require.True(t, d.Drained)
	n = f.until("two carries it", func(n protocol.Netmap) bool { return slices.Equal(routesOf(n, "two"), []string{lan.String()}) })
	require.Equal(t, []netip.Prefix{lan}, sourcesOf(n, "one"), "what is under way comes back through it")
	require.Equal(t, []string{own.String()}, routesOf(n, "one"))
	require.Eventually(t, func() bool {
		w.must("GET", "/v1/nodes/one/drain", nil, &d)
		return d.Done() && len(d.Confirmed) == 2
	}, patience, 5*time.Millisecond)
	require.Equal(t, []api.MovedRoute{{Prefix: lan, To: "two"}}, d.Moved)
	require.Len(t, d.Kept, 1)
	require.Equal(t, own, d.Kept[0].Prefix)
	require.Contains(t, d.Kept[0].Why, "no other node of site a")
	var node api.Node
	w.must("GET", "/v1/nodes/one", nil, &node)
	require.False(t, node.Drained.IsZero())

	// A drained node is better than none.
	b.m.Close()
	f.until("one carries it again", func(n protocol.Netmap) bool { return slices.Contains(routesOf(n, "one"), lan.String()) })

	w.must("POST", "/v1/nodes/one/undrain", nil, &d)
	require.False(t, d.Drained)
	w.must("POST", "/v1/nodes/one/undrain", nil, &d)
	code, detail := w.call("POST", "/v1/nodes/none/drain", nil, nil)
	require.Equal(t, 404, code)
	require.Contains(t, detail, "causeway node list")
	var audit []api.AuditEntry
	w.must("GET", "/v1/audit", nil, &audit)
	require.Equal(t, "node undrain one", audit[0].Why, "what holds already makes no entry")
	require.Equal(t, []string{"node 2 undrained"}, audit[0].Changes)
}

func TestRename(t *testing.T) {
	w := start(t, t.TempDir())
	w.site("a")
	one, two := joined(t, w, "one", api.TokenSpec{Site: "a"}), joined(t, w, "two", api.TokenSpec{Site: "a"})
	a, b := w.dial(one, nil), w.dial(two, nil)
	b.until("one", func(n protocol.Netmap) bool { return len(n.Peers) == 1 && n.Peers[0].Name == "one" })
	code, detail := w.call("POST", "/v1/nodes/one/rename", api.NodeRename{Name: "two"}, nil)
	require.Equal(t, 409, code)
	require.Contains(t, detail, "the name two is taken")
	code, _ = w.call("POST", "/v1/nodes/one/rename", api.NodeRename{Name: "-x"}, nil)
	require.Equal(t, 422, code)
	var n api.Node
	w.must("POST", "/v1/nodes/one/rename", api.NodeRename{Name: "eins"}, &n)
	require.Equal(t, "eins", n.Name)
	require.Equal(t, one.answer.Number, n.Number)
	b.until("its new name", func(n protocol.Netmap) bool { return len(n.Peers) == 1 && n.Peers[0].Name == "eins" })
	a.until("its own", func(n protocol.Netmap) bool { return n.Self.Name == "eins" })
	code, _ = w.call("GET", "/v1/nodes/one", nil, nil)
	require.Equal(t, 404, code)
	// The name is free for another.
	joined(t, w, "one", api.TokenSpec{Site: "a"})
	w.must("DELETE", "/v1/nodes/eins", nil, nil)
	<-a.ended
	// The log folds to the same again.
	w.stop()
	w = start(t, w.dir)
	var nodes []api.Node
	w.must("GET", "/v1/nodes", nil, &nodes)
	got := map[string]string{}
	for _, n := range nodes {
		got[n.Name] = n.State
	}
	require.Equal(t, api.NodeRevoked, got["eins"])
	require.Contains(t, got, "one")
}

func sourcesOf(n protocol.Netmap, peer string) []netip.Prefix {
	for _, p := range n.Peers {
		if p.Name == peer {
			return p.Sources
		}
	}
	return nil
}
