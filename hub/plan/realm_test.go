package plan

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/hub/object"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/protocol"
)

func enforced(t require.TestingT, s *state.State) *policy.Enforcement {
	c, err := policy.Compile(object.PolicyInput(s, nil, time.Unix(0, 0)), nil)
	require.NoError(t, err)
	return c.Enforce()
}

// Whatever operators decide of segments, rules, labels, ranges and routes: no node is told of two that have an address,
// but for a longer prefix inside another of one site.
func TestNoNetmapHasTwoOwners(t *testing.T) {
	pool := []string{"10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16"}
	overlaps, refused := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		c := newCluster(t)
		for i := range 4 {
			c.add(state.SiteCreated{Name: fmt.Sprintf("s%d", i)})
		}
		label := rapid.SampledFrom([]string{"", "g0", "g1", "g2"})
		site := rapid.SampledFrom([]string{"s0", "s1", "s2", "s3"})
		route := rapid.SampledFrom(pool)
		name := func(what string) string { return rapid.SampledFrom([]string{"g0", "g1", "g2"}).Draw(rt, what) }
		for i := range 6 {
			c.node(site.Draw(rt, "site"), fmt.Sprintf("n%d", i))
		}
		// now does what one transaction would, or nothing.
		now := func(decide func(d *state.Draft) error) {
			next := *c.d.State
			d := &state.Draft{State: &next, Now: c.d.Now}
			err := decide(d)
			if err == nil {
				err = state.CheckAll(d, nil)
			}
			if err != nil {
				refused++
				return
			}
			c.d.State = d.State
			c.d.Seq++
		}
		var before *Netmaps
		stale := []*policy.Enforcement{nil}
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			node := fmt.Sprintf("n%d", rapid.IntRange(0, 5).Draw(rt, "node"))
			switch rapid.IntRange(0, 6).Draw(rt, "what") {
			case 0:
				spec := map[string]any{"labels": map[string]string{"env": name("label")}}
				if rapid.Bool().Draw(rt, "by site") {
					spec = map[string]any{"sites": rapid.SliceOfNDistinct(site, 1, 2, rapid.ID).Draw(rt, "sites")}
				}
				b, _ := json.Marshal(spec)
				now(func(d *state.Draft) error { return state.PutObject(d, object.SegmentKind, name("segment"), b) })
			case 1:
				now(func(d *state.Draft) error {
					return d.Add(state.ObjectDeleted{Kind: object.SegmentKind, Name: name("segment")})
				})
			case 2:
				a, b := name("a"), name("b")
				rule := `{"name":"r","from":{"cidr":"10.0.0.0/8"},"to":{"cidr":"10.0.0.0/8"},"allow":["any"]}`
				if a != b {
					rule += fmt.Sprintf(`,{"name":"x","across":["%s","%s"],"from":{"cidr":"0.0.0.0/1"},"to":{"cidr":"0.0.0.0/1"},"allow":["any"]}`, a, b)
				}
				now(func(d *state.Draft) error {
					return state.PutObject(d, object.PolicyKind, rapid.SampledFrom([]string{"p", "q"}).Draw(rt, "policy"), json.RawMessage(`{"rules":[`+rule+`]}`))
				})
			case 3:
				now(func(d *state.Draft) error {
					return state.Label(d, node, map[string]string{"env": label.Draw(rt, "env")})
				})
			case 4, 5:
				p := pfx(route.Draw(rt, "route"))
				approve := rapid.IntRange(0, 4).Draw(rt, "approve") > 0
				now(func(d *state.Draft) error {
					n, err := d.FindNode(node)
					if err != nil {
						return err
					}
					d.Announced(n.Number, []netip.Prefix{p})
					return state.DecideRoute(d, node, p, approve, "x")
				})
			case 6:
				b, _ := json.Marshal(map[string]any{"ranges": []string{route.Draw(rt, "range")}})
				now(func(d *state.Draft) error { return state.PutObject(d, state.KindSite, site.Draw(rt, "site"), b) })
			}
			who := enforced(rt, c.d.State)
			stale = append(stale, who)
			before = Compute(c.d.State, nil, who, nil, before)
			overlaps += oneOwner(rt, c.d.State, before, true)
			// Netmaps of a state that is ahead of who may talk: nobody is told of one prefix twice.
			oneOwner(rt, c.d.State, Compute(c.d.State, nil, rapid.SampledFrom(stale).Draw(rt, "stale"), nil, before), false)
		}
	})
	require.NotZero(t, overlaps, "the same prefix in two realms")
	require.NotZero(t, refused)
}

// oneOwner checks all netmaps, and counts prefixes that two nodes own. Strictly: no address has two owners in one of
// them, but for longer prefixes inside others of one site.
func oneOwner(t *rapid.T, s *state.State, v *Netmaps, strictly bool) (twice int) {
	for _, n := range s.LiveNodes() {
		m, ok := v.For(n.Number)
		require.True(t, ok)
		type owned struct {
			site, name string
			netip.Prefix
		}
		var all []owned
		for _, p := range v.own[n.Number] {
			all = append(all, owned{n.Site, n.Name, p})
		}
		for _, p := range m.Peers {
			for _, r := range p.Routes {
				all = append(all, owned{p.Site, p.Name, r})
			}
		}
		for i, a := range all {
			for _, b := range all[:i] {
				if a.name == b.name || !a.Overlaps(b.Prefix) {
					continue
				}
				require.NotEqual(t, a.Prefix, b.Prefix, "%s hears of %v and %v", n.Name, a, b)
				require.False(t, strictly && a.site != b.site, "%s hears of %v and %v", n.Name, a, b)
			}
		}
	}
	for p, o := range v.Owners {
		require.NotEmpty(t, o, p)
		require.Equal(t, len(o), len(slices.Compact(slices.Clone(o))))
		if len(o) > 1 {
			twice++
		}
	}
	return twice
}

// Two nodes of one site that labels put into two segments own the same prefix each, and keep it; a node that goes over
// to the other segment hears of its owner in place of the one before.
func TestOwnersByRealm(t *testing.T) {
	c := newCluster(t)
	for name, spec := range map[string]string{"prod": `{"labels":{"env":"prod"}}`, "dev": `{"labels":{"env":"dev"}}`} {
		require.NoError(t, state.PutObject(c.d, object.SegmentKind, name, json.RawMessage(spec)))
	}
	const p = "10.1.0.0/16"
	env := func(name, env string) { require.NoError(t, state.Label(c.d, name, map[string]string{"env": env})) }
	n := map[string]protocol.NodeNumber{}
	for name, e := range map[string]string{"a1": "prod", "a2": "prod", "b1": "dev", "b2": "dev", "x": "prod"} {
		n[name] = c.node("a", name)
		env(name, e)
	}
	for _, name := range []string{"a1", "a2", "b1", "b2"} {
		require.NoError(t, state.AnnounceRoutes(c.d, n[name], []netip.Prefix{pfx(p)}))
		c.d.Announced(n[name], []netip.Prefix{pfx(p)})
		require.NoError(t, state.DecideRoute(c.d, name, pfx(p), true, "x"))
	}
	live := map[protocol.NodeNumber]Live{n["a2"]: {Online: true}, n["b2"]: {Online: true}}
	v := Compute(c.d.State, live, enforced(t, c.d.State), nil, nil)
	require.ElementsMatch(t, []protocol.NodeNumber{n["a2"], n["b2"]}, v.Owners[pfx(p)])
	require.Equal(t, n["a2"], v.Owner(n["x"], pfx(p)))
	m, _ := v.For(n["x"])
	require.Equal(t, map[string][]string{"a2": {p}}, owned(m))
	m, _ = v.For(n["b1"])
	require.Empty(t, owned(m), "what it announces itself does not come back to it")

	// Another takes over in its own segment alone, and keeps it once both are there; a change of segments changes no owner.
	live = map[protocol.NodeNumber]Live{n["a1"]: {Online: true}, n["b2"]: {Online: true}}
	v = Compute(c.d.State, live, enforced(t, c.d.State), nil, v)
	require.ElementsMatch(t, []protocol.NodeNumber{n["a1"], n["b2"]}, v.Owners[pfx(p)])
	for name := range n {
		live[n[name]] = Live{Online: true}
	}
	require.NoError(t, state.PutObject(c.d, object.SegmentKind, "also", json.RawMessage(`{"labels":{"env":"also"}}`)))
	require.NoError(t, state.PutObject(c.d, object.PolicyKind, "main", json.RawMessage(`{"rules":[{"name":"r","across":["also","prod"],"from":{"segment":"prod"},"to":{"segment":"also"},"allow":["any"]},{"name":"s","from":{"site":"a"},"to":{"site":"a"},"allow":["any"]}]}`)))
	v = Compute(c.d.State, live, enforced(t, c.d.State), nil, v)
	require.ElementsMatch(t, []protocol.NodeNumber{n["a1"], n["b2"]}, v.Owners[pfx(p)])

	env("x", "dev")
	next := Compute(c.d.State, live, enforced(t, c.d.State), nil, v)
	u, changed := next.Change(v, n["x"], v.Version, next.Version)
	require.True(t, changed)
	require.Contains(t, u.Netmap.Removed, n["a1"])
	m, _ = next.For(n["x"])
	require.Equal(t, map[string][]string{"b2": {p}}, owned(m))
}
