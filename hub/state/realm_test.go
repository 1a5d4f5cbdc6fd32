package state_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/object"
	"causeway/hub/state"
	"causeway/protocol"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// world is a cluster whose every change goes through the log.
type world struct {
	t  testing.TB
	st *state.State
}

func newWorld(t testing.TB, sites ...string) *world {
	w := &world{t, state.New()}
	require.NoError(t, w.change(func(d *state.Draft) error {
		cs := []state.Change{state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4}}, state.HubAdded{Number: 1}}
		for _, s := range sites {
			cs = append(cs, state.SiteCreated{Name: s})
		}
		return add(d, cs...)
	}))
	return w
}

func add(d *state.Draft, cs ...state.Change) error {
	for _, c := range cs {
		if err := d.Add(c); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) change(decide func(d *state.Draft) error) error {
	next, err := state.Transact(w.st, decide)
	if err == nil {
		w.st = next
	}
	return err
}

// node joins a node, whose token grants routes.
func (w *world) node(name, site string, labels map[string]string, grants ...string) (n protocol.NodeNumber) {
	w.t.Helper()
	require.NoError(w.t, w.change(func(d *state.Draft) error {
		n = d.NextNumber
		id, secret := protocol.TokenID{byte(n)}, protocol.TokenSecret{byte(n)}
		hash := secret.Hash()
		c := state.TokenCreated{ID: id, Hash: hash[:], Site: site, Expires: d.Now.Add(time.Hour), Labels: labels}
		for _, g := range grants {
			c.Routes = append(c.Routes, pfx(g))
		}
		c.Over = d.Over(site, labels, c.Routes, "")
		if err := add(d, c); err != nil {
			return err
		}
		return state.Redeem(d, state.RedeemRequest{Token: id, Secret: secret, Name: name, WireGuardKey: protocol.WireGuardPublicKey{byte(n), 9}, IdentityKey: protocol.IdentityPrivateKey{byte(n), 9}.Public()})
	}))
	return n
}

func (w *world) approve(node, prefix string) error {
	return w.change(func(d *state.Draft) error {
		n, err := d.FindNode(node)
		if err != nil {
			return err
		}
		d.Announced(n.Number, []netip.Prefix{pfx(prefix)})
		return state.DecideRoute(d, node, pfx(prefix), true, "olga")
	})
}

func (w *world) put(kind, name, spec string) error {
	return w.change(func(d *state.Draft) error { return state.PutObject(d, kind, name, json.RawMessage(spec)) })
}

func (w *world) drop(kind, name string) error {
	return w.change(func(d *state.Draft) error { return d.Add(state.ObjectDeleted{Kind: kind, Name: name}) })
}

func (w *world) is(n protocol.NodeNumber, prefix string) protocol.RouteState {
	return w.st.Routes.Get(state.RouteKey{Node: n, Prefix: pfx(prefix)}).State
}

const (
	prodSites = `{"sites":["p1","p2"],"labels":{"env":"prod"}}`
	devSites  = `{"sites":["d1","d2"],"labels":{"env":"dev"}}`
	across    = `{"rules":[{"name":"registry","across":["dev","prod"],"from":{"segment":"dev"},"to":{"site":"p1"},"allow":["tcp/443"]}]}`
	keep      = "; first reject one of them, or keep the segments apart"
)

func (w *world) segments() {
	w.t.Helper()
	require.NoError(w.t, w.put(object.SegmentKind, "prod", prodSites))
	require.NoError(w.t, w.put(object.SegmentKind, "dev", devSites))
}

// Nodes of segments that no rule joins may have the same addresses: by an admin, a range or a token.
func TestClaimsBySegment(t *testing.T) {
	w := newWorld(t, "p1", "p2", "d1", "d2", "free")
	w.node("p-1", "p1", nil)
	d1 := w.node("d-1", "d1", nil)
	w.node("d-2", "d2", nil)
	require.NoError(t, w.approve("p-1", "10.1.0.0/16"))
	require.EqualError(t, w.approve("d-1", "10.1.0.0/16"), "10.1.0.0/16 overlaps route 10.1.0.0/16 of node p-1 (site p1); reject that one first")
	w.segments()
	require.NoError(t, w.put(object.PolicyKind, "main", across))
	require.EqualError(t, w.approve("d-1", "10.1.7.0/24"), "10.1.7.0/24 overlaps route 10.1.0.0/16 of node p-1 (site p1), and rule main/registry joins segments dev and prod; reject that one first")
	require.NoError(t, w.drop(object.PolicyKind, "main"))
	require.False(t, w.st.BySegment, "no hub of before is stopped by it")

	before := w.st
	require.NoError(t, w.approve("d-1", "10.1.0.0/16"))
	require.True(t, w.st.BySegment)
	announced, decided := state.RouteAnnounced{Node: d1, Prefix: pfx("10.1.0.0/16"), State: protocol.RoutePending}, state.RouteDecided{Node: d1, Prefix: pfx("10.1.0.0/16"), State: protocol.RouteApproved, By: "olga"}
	_, err := state.FoldMore(before, announced, decided)
	require.ErrorContains(t, err, "overlaps route 10.1.0.0/16 of node p-1", "a log holds it behind that word alone")
	folded, err := state.FoldMore(before, announced, state.ClaimsBySegment{}, decided)
	require.NoError(t, err)
	require.Equal(t, protocol.RouteApproved, folded.Routes.Get(state.RouteKey{Node: d1, Prefix: pfx("10.1.0.0/16")}).State)

	require.ErrorContains(t, w.approve("d-2", "10.1.7.0/24"), "10.1.7.0/24 overlaps route 10.1.0.0/16 of node d-1 (site d1); reject", "of the same segment")
	for _, site := range []string{"p2", "d2", "free"} { // which is in no segment, as in one of its own
		require.NoError(t, w.put(state.KindSite, site, `{"ranges":["10.2.0.0/16"]}`))
	}
	require.EqualError(t, w.put(state.KindSite, "d1", `{"ranges":["10.2.9.0/24"]}`), "10.2.9.0/24 overlaps range 10.2.0.0/16 of site d2")
	for _, site := range []string{"p2", "d2", "free"} {
		n := w.node(site+"-3", site, nil)
		require.NoError(t, w.change(func(d *state.Draft) error { return state.AnnounceRoutes(d, n, []netip.Prefix{pfx("10.2.1.0/24")}) }))
		require.Equal(t, protocol.RouteApproved, w.is(n, "10.2.1.0/24"), "by its site's range: it meets nobody in %s", site)
	}
	require.Equal(t, protocol.RouteApproved, w.is(w.node("f-1", "free", nil, "10.1.0.0/16"), "10.1.0.0/16"), "by its token")
	n := w.node("x", "d2", nil)
	require.NoError(t, w.change(func(d *state.Draft) error { return state.AnnounceRoutes(d, n, []netip.Prefix{pfx("10.2.1.0/24")}) }))
	require.Zero(t, w.is(n, "10.2.1.0/24"), "a neighbour in its segment has it")

	// A snapshot says so too.
	b, err := state.EncodeSnapshot(w.st)
	require.NoError(t, err)
	w.st, err = state.DecodeSnapshot(b)
	require.NoError(t, err)
	require.True(t, w.st.BySegment)
	require.ErrorContains(t, w.put(object.PolicyKind, "main", across), "and rule main/registry joins segments")
}

// What has the same addresses does not come together: by no rule, segment or label, whatever else is done with it.
func TestRealmsKeepApart(t *testing.T) {
	w := newWorld(t, "p1", "p2", "d1", "d2", "free", "mixed")
	w.segments()
	for node, site := range map[string]string{"p-1": "p1", "d-1": "d1", "f-1": "free"} {
		w.node(node, site, nil, "10.1.0.0/16")
	}
	w.node("m-1", "mixed", map[string]string{"env": "prod"}, "10.9.0.0/16")
	w.node("m-2", "mixed", map[string]string{"env": "dev"}, "10.9.0.0/16")
	require.True(t, w.st.BySegment)
	label := func(node, env string) error {
		return w.change(func(d *state.Draft) error { return state.Label(d, node, map[string]string{"env": env}) })
	}
	sure := func(err error, parts ...string) {
		t.Helper()
		for _, p := range parts {
			require.ErrorContains(t, err, p)
		}
		require.NotContains(t, err.Error(), "\n")
	}
	sure(w.put(object.PolicyKind, "main", across), "of node p-1 (site p1)", "of node d-1 (site d1)", "and rule main/registry joins segments", keep)
	sure(label("d-1", "prod"), "route 10.1.0.0/16 of node d-1 (site d1) overlaps route 10.1.0.0/16 of node p-1 (site p1), and both would be in segment prod"+keep)
	sure(label("m-2", "prod"), "route 10.9.0.0/16 of node m-2 (site mixed) overlaps route 10.9.0.0/16 of node m-1 (site mixed), and both would be in segment prod"+keep)
	sure(w.drop(object.SegmentKind, "dev"), "of node d-1 (site d1)", "of node f-1 (site free)", "and both would be in segment unassigned"+keep)
	sure(w.change(func(d *state.Draft) error { // a site moves
		if err := state.PutObject(d, object.SegmentKind, "dev", json.RawMessage(`{"sites":["d2"]}`)); err != nil {
			return err
		}
		return state.PutObject(d, object.SegmentKind, "prod", json.RawMessage(`{"sites":["p1","p2","d1"],"labels":{"env":"prod"}}`))
	}), "and both would be in segment prod")
	// Nor through a third segment, nor within one transaction.
	require.NoError(t, w.put(object.SegmentKind, "shared", `{"labels":{"env":"shared"}}`))
	rule := func(with string) string {
		return strings.NewReplacer("prod", with, "dev", "shared").Replace(across)
	}
	require.NoError(t, w.put(object.PolicyKind, "one", rule("prod")))
	sure(w.put(object.PolicyKind, "two", rule("dev")), "and rules ", "one/registry", "two/registry", " join segments ")
	require.NoError(t, w.drop(object.PolicyKind, "one"))
	sure(w.change(func(d *state.Draft) error {
		n, _ := d.FindNode("d-1")
		d.Announced(n.Number, []netip.Prefix{pfx("10.5.0.0/16")})
		p, _ := d.FindNode("p-1")
		d.Announced(p.Number, []netip.Prefix{pfx("10.5.0.0/16")})
		for _, node := range []string{"d-1", "p-1"} {
			if err := state.DecideRoute(d, node, pfx("10.1.0.0/16"), false, "olga"); err != nil {
				return err
			}
			if err := state.DecideRoute(d, node, pfx("10.5.0.0/16"), true, "olga"); err != nil {
				return err
			}
		}
		if err := state.DecideRoute(d, "m-2", pfx("10.9.0.0/16"), false, "olga"); err != nil {
			return err
		}
		return state.PutObject(d, object.PolicyKind, "main", json.RawMessage(across))
	}), "10.5.0.0/16")

	// Segments may go by another name, and once nothing overlaps they may be joined.
	require.NoError(t, w.change(func(d *state.Draft) error {
		if err := d.Add(state.ObjectDeleted{Kind: object.SegmentKind, Name: "dev"}); err != nil {
			return err
		}
		return state.PutObject(d, object.SegmentKind, "lab", json.RawMessage(devSites))
	}))
	for _, r := range [][2]string{{"d-1", "10.1.0.0/16"}, {"m-2", "10.9.0.0/16"}} {
		require.NoError(t, w.change(func(d *state.Draft) error { return state.DecideRoute(d, r[0], pfx(r[1]), false, "olga") }))
	}
	require.NoError(t, w.put(object.PolicyKind, "main", strings.ReplaceAll(across, "dev", "lab")))
	sure(w.approve("d-1", "10.1.0.0/16"), "and rule main/registry joins segments lab and prod; reject that one first")
}

// While a change may go back by itself, nothing is decided that would keep it from that.
func TestRealmsThatMayGoBack(t *testing.T) {
	w := newWorld(t, "p1", "p2", "d1", "d2", "mixed")
	w.segments()
	require.NoError(t, w.put(object.PolicyKind, "main", across))
	for node, site := range map[string]string{"p-1": "p1", "d-1": "d1", "m-1": "mixed", "m-2": "mixed", "x": "p2"} {
		w.node(node, site, nil)
	}
	for node, route := range map[string]string{"p-1": "10.1.0.0/16", "m-1": "10.9.0.0/16", "m-2": "10.9.0.0/16"} {
		require.NoError(t, w.approve(node, route))
	}
	confirming := func(decide func(d *state.Draft) error) error {
		return w.change(func(d *state.Draft) error {
			was := object.Talk(d.State)
			if err := decide(d); err != nil {
				return err
			}
			return object.AskToConfirm(d, was, "olga", time.Minute)
		})
	}
	unjoin := func(d *state.Draft) error {
		return d.Add(state.ObjectDeleted{Kind: object.PolicyKind, Name: "main"})
	}
	back := "as it will be if the change that waits for 'causeway policy confirm' goes back"
	require.ErrorContains(t, confirming(func(d *state.Draft) error {
		if err := unjoin(d); err != nil {
			return err
		}
		n, err := d.FindNode("d-1")
		if err != nil {
			return err
		}
		d.Announced(n.Number, []netip.Prefix{pfx("10.1.0.0/16")})
		return state.DecideRoute(d, "d-1", pfx("10.1.0.0/16"), true, "olga")
	}), back, "in the same transaction")
	require.NoError(t, confirming(unjoin))
	require.EqualError(t, w.approve("d-1", "10.1.2.0/24"), "10.1.2.0/24 overlaps route 10.1.0.0/16 of node p-1 (site p1), and rule main/registry joins segments dev and prod, "+back+"; reject that one first")
	require.NoError(t, w.approve("d-1", "10.3.0.0/16"))
	require.NoError(t, w.change(object.GoBack))
	require.ErrorContains(t, w.approve("d-1", "10.1.2.0/24"), "and rule main/registry joins segments dev and prod; reject")

	// What was one group and is parted for a while comes together again.
	require.NoError(t, w.change(func(d *state.Draft) error { return state.Label(d, "m-2", map[string]string{"role": "lab"}) }))
	require.NoError(t, confirming(func(d *state.Draft) error {
		return state.PutObject(d, object.SegmentKind, "lab", json.RawMessage(`{"labels":{"role":"lab"}}`))
	}))
	require.NoError(t, w.change(object.GoBack))

	// Once it is confirmed it counts alone.
	require.NoError(t, confirming(unjoin))
	require.NoError(t, w.change(object.Confirm))
	require.NoError(t, w.approve("d-1", "10.1.2.0/24"))
	require.ErrorContains(t, w.put(object.PolicyKind, "main", across), "and rule main/registry joins segments")
}
