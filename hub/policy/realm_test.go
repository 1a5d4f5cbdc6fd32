package policy

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
)

// Two segments that no rule joins may have the same addresses; who asks has to say which are meant.
func TestSameRangeInTwoSegments(t *testing.T) {
	in := bank()
	in.Nodes[4].Carries = append(in.Nodes[4].Carries, pfx("10.1.1.0/24"), pfx("10.2.0.0/16")) // lab-1, of dev: as web-1, and around db-1's
	in.Policies[0].Rules = append(in.Policies[0].Rules[:1:1], api.PolicyRule{Name: "in-dev", From: api.PolicyEndpoint{Segment: "dev", CIDR: pfx("10.1.1.0/25")}, To: api.PolicyEndpoint{Segment: "dev"}, Allow: []string{"tcp/1"}})
	c := compile(t, in, nil)
	require.Empty(t, c.Doubts)
	for _, tt := range []struct{ from, to, port, want string }{
		{"prod/10.1.1.2", "10.2.1.2", "tcp/5432", "2 segments have 10.2.1.2: dev by lab-1, prod by db-1; write dev/10.2.1.2 or prod/10.2.1.2"},
		{"10.1.1.2", "prod/10.2.1.2", "tcp/5432", "2 segments have 10.1.1.2: dev by lab-1, prod by web-1; write dev/10.1.1.2 or prod/10.1.1.2"},
		{"prod/10.1.1.2", "prod/10.2.1.2", "tcp/5432", "open by rule main/web-to-db"},
		{"dev/10.1.1.2", "dev/10.2.1.2", "tcp/1", "open by rule main/in-dev"},
		{"dev/10.1.1.200", "dev/10.2.1.2", "tcp/1", "closed: no rule opens it; the nearest is main/in-dev, but it opens it from segment dev, cidr 10.1.1.0/25"},
		{"dev/10.1.1.2", "prod/10.2.1.2", "tcp/1", "closed: no rule opens it; the nearest is main/in-dev, but it opens it to segment dev"},
		{"web-1", "prod/10.2.1.2", "icmp", "open by rule main/web-to-db"},
		{"10.3.1.5", "10.2.3.4", "tcp/1", "closed: no rule opens it; the nearest is main/in-dev, but it opens it from segment dev, cidr 10.1.1.0/25"},
		{"unassigned/10.1.1.2", "db-1", "tcp/1", "no node of segment unassigned has 10.1.1.2, or an approved route to it"},
		{"test/10.1.1.2", "db-1", "tcp/1", `there is no segment "test"`},
	} {
		v, err := c.Ask(tt.from, tt.to, tt.port, "")
		if err != nil {
			require.EqualError(t, err, tt.want, tt)
			continue
		}
		require.Equal(t, tt.want, v.String(), tt)
	}
	v, err := c.DecideAt(Met{addr("10.1.1.2"), 2}, Met{addr("10.2.1.2"), 5}, ports("tcp/5432"))
	require.NoError(t, err)
	require.True(t, v.Open, "at their nodes")
	v, err = c.DecideAt(Met{addr("10.1.1.2"), 6}, Met{addr("10.2.1.2"), 5}, ports("tcp/5432"))
	require.NoError(t, err)
	require.False(t, v.Open)
	e := c.Enforce()
	require.NotEqual(t, e.RealmOf(2), e.RealmOf(6))
	require.Equal(t, e.RealmOf(2), e.RealmOf(7))
	require.False(t, e.Talk(e.Nodes[2], e.Nodes[6]))

	// A rule joins them, and the same range is of two segments at once: open to nobody.
	in = bank()
	in.Nodes[4].Carries = append(in.Nodes[4].Carries, pfx("10.1.1.0/24"))
	c = compile(t, in, nil)
	require.Equal(t, []string{"10.1.1.0/24 is carried by nodes of two segments, web-1 and lab-1"}, c.Doubts)
	v, err = c.Decide(addr("10.1.1.2"), addr("10.2.1.2"), ports("tcp/5432"))
	require.NoError(t, err)
	require.False(t, v.Open)
}

// Segments are of one realm if rules lead from one to the other, whichever way they were declared.
func TestRealms(t *testing.T) {
	var segments []Segment
	for _, s := range []string{"a", "b", "c", "d", "e"} {
		segments = append(segments, Segment{Name: s, SegmentSpec: api.SegmentSpec{Sites: []string{"s" + s}, Labels: map[string]string{"env": s}}})
	}
	segments = append(segments, Segment{Name: "f", SegmentSpec: api.SegmentSpec{Sites: []string{"sa"}, Labels: map[string]string{"app": "f"}}})
	rules := []api.PolicyRule{{Name: "x", Across: []string{"c", "b"}}, {Name: "y", Across: []string{"d", "c"}, Until: "2001-01-01"}, {Name: "z", Across: []string{"e", "gone"}}, {Name: "w"}}
	for range 2 {
		slices.Reverse(rules)
		r := NewRealms(segments, []Policy{{Name: "p", PolicySpec: api.PolicySpec{Rules: rules}}})
		for s, want := range map[string]string{"a": "a", "b": "b", "c": "b", "d": "b", "e": "e", "gone": "e", "f": "f", Unassigned: Unassigned} {
			require.Equal(t, want, r.Of(s), s)
		}
		require.Equal(t, "rules p/x, p/y join segments b and d", r.Joined("b", "d"))
		require.Equal(t, "rule p/x joins segments c and b", r.Joined("c", "b"))
		for _, none := range [][2]string{{"b", "b"}, {"a", "b"}, {"a", Unassigned}} {
			require.Empty(t, r.Joined(none[0], none[1]))
		}
		for _, tt := range []struct {
			site, env, app, want string
		}{{"sb", "", "", "b"}, {"sb", "c", "", "c"}, {"sz", "", "", Unassigned}, {"sa", "", "", torn}, {"sa", "a", "", "a"}, {"sb", "a", "f", torn}} {
			got := r.Segment(tt.site, map[string]string{"env": tt.env, "app": tt.app})
			require.Equal(t, tt.want, got, tt)
		}
	}
}

// What was logged at a node is of its own segment.
func TestPlacesByRealm(t *testing.T) {
	in := bank()
	in.Policies = nil
	in.Nodes[4].Carries = append(in.Nodes[4].Carries, pfx("10.1.1.0/24"), pfx("10.2.0.0/16"))
	p := NewPlaces(in, in.Nodes)
	for _, tt := range []struct{ node, addr, site, prefix, text string }{
		{"web-1", "10.1.1.2", "sh", "10.1.1.0/24", "prod/10.1.1.2"}, {"lab-1", "10.1.1.2", "lab", "10.1.1.0/24", "dev/10.1.1.2"},
		{"db-1", "10.2.1.2", "eu", "10.2.1.0/24", "prod/10.2.1.2"}, {"lab-1", "10.2.1.2", "lab", "10.2.0.0/16", "dev/10.2.1.2"},
		{"web-1", "10.3.1.2", "lab", "10.3.1.0/24", "10.3.1.2"}, {"", "10.3.1.2", "lab", "10.3.1.0/24", "10.3.1.2"}, {"", "10.1.1.2", "", "", "10.1.1.2"},
	} {
		at, ok := p.Of(tt.node, addr(tt.addr))
		require.Equal(t, tt.site != "", ok, tt)
		require.Equal(t, tt.site, at.Site, tt)
		if ok {
			require.Equal(t, pfx(tt.prefix), at.Prefix, tt)
		}
		require.Equal(t, tt.text, p.write(tt.node, addr(tt.addr)), tt)
	}
	s, err := Suggest("x", in, in.Nodes, []Seen{{Node: "web-1", From: addr("10.1.1.2"), To: addr("10.2.1.2"), Proto: 6, Port: 1}, {Node: "lab-1", From: addr("10.1.1.2"), To: addr("10.2.1.2"), Proto: 6, Port: 2}}, today, today)
	require.NoError(t, err)
	in.Policies = []Policy{{Name: "x", PolicySpec: s.Document.PolicySpec}}
	require.Len(t, s.Document.Tests, 2)
	require.NoError(t, compile(t, in, nil).Test(s.Document.Tests, false))
}
