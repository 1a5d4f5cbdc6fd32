package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/hub/api"
	"causeway/protocol"
)

var today = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// bank is three sites: two of production, one of development whose node ops-1 belongs to production by its label.
func bank() Input {
	node := func(n int, name, site string, labels map[string]string, carries ...string) Node {
		x := Node{Number: protocol.NodeNumber(n), Name: name, Site: site, Labels: labels, Own: []netip.Prefix{pfx(fmt.Sprintf("198.18.0.%d/32", n)), pfx(fmt.Sprintf("fd63::%d/128", n))}}
		for _, c := range carries {
			x.Carries = append(x.Carries, pfx(c))
		}
		return x
	}
	return Input{
		Now:      today,
		Segments: []Segment{{"dev", 0, api.SegmentSpec{Sites: []string{"lab"}}}, {"prod", 0, api.SegmentSpec{Sites: []string{"sh", "eu"}, Labels: map[string]string{"env": "prod"}}}},
		Nodes: []Node{
			node(2, "web-1", "sh", map[string]string{"app": "web"}, "10.1.1.0/24"),
			node(3, "gw-1", "sh", nil, "10.1.2.0/24", "192.168.7.0/24"),
			node(4, "gw-2", "sh", map[string]string{"app": "web"}, "192.168.7.0/24"),
			node(5, "db-1", "eu", nil, "10.2.1.0/24"),
			node(6, "lab-1", "lab", nil, "10.3.1.0/24"),
			node(7, "ops-1", "lab", map[string]string{"env": "prod"}, "10.3.2.0/24"),
		},
		Policies: []Policy{{"main", 0, api.PolicySpec{Rules: []api.PolicyRule{
			{Name: "web-to-db", From: api.PolicyEndpoint{Site: "sh", Labels: map[string]string{"app": "web"}}, To: api.PolicyEndpoint{Site: "eu", CIDR: pfx("10.2.1.2/32")}, Allow: []string{"tcp/5432", "icmp"}},
			{Name: "registry", Across: []string{"dev", "prod"}, From: api.PolicyEndpoint{Segment: "dev"}, To: api.PolicyEndpoint{Node: "db-1"}, Allow: []string{"tcp/443"}, Until: "2027-01-31"},
		}}}},
	}
}

func compile(t testing.TB, in Input, before *Compiled) *Compiled {
	t.Helper()
	c, err := Compile(in, before)
	require.NoError(t, err)
	return c
}

func ports(s string) protocol.Ports {
	p, err := protocol.ParsePorts(s)
	if err != nil {
		panic(err)
	}
	return p
}

func TestVerdicts(t *testing.T) {
	c := compile(t, bank(), nil)
	require.Equal(t, time.Date(2027, 2, 1, 0, 0, 0, 0, time.UTC), c.Next)
	for _, tt := range []struct{ from, to, port, want string }{
		{"10.1.1.2", "10.2.1.2", "tcp/5432", "open by rule main/web-to-db"},
		{"10.1.1.2", "10.2.1.2", "icmp", "open by rule main/web-to-db"},
		{"198.18.0.2", "10.2.1.2", "tcp/5432", "open by rule main/web-to-db"},
		{"10.1.1.2", "10.2.1.2", "tcp/22", "closed: no rule opens it; the nearest is main/web-to-db, but it opens tcp/5432, icmp and not tcp/22"},
		{"10.1.1.2", "10.2.1.3", "tcp/5432", "closed: no rule opens it; the nearest is main/web-to-db, but it opens it to site eu, cidr 10.2.1.2/32"},
		{"10.1.2.2", "10.2.1.2", "tcp/5432", "closed: no rule opens it; the nearest is main/web-to-db, but it opens it from site sh, labels app=web"},
		{"192.168.7.1", "10.2.1.2", "tcp/5432", "closed: no rule opens it; the nearest is main/web-to-db, but it opens it from site sh, labels app=web"}, // gw-1, too, carries it
		{"10.2.1.2", "10.1.1.2", "tcp/5432", "closed: no rule opens it; the nearest is main/web-to-db, but it opens the other direction"},
		{"10.3.1.9", "198.18.0.5", "tcp/443", "open by rule main/registry"},
		{"10.3.1.9", "10.2.1.5", "tcp/443", "closed: no rule opens it; the nearest is main/registry, but it opens it to node db-1"}, // the host, not what is behind it
		{"10.3.2.9", "198.18.0.5", "tcp/443", "closed: no rule opens it; the nearest is main/registry, but it opens it from segment dev"},
		{"10.1.1.2", "10.1.2.2", "tcp/1", "closed: no rule opens it"},
	} {
		v, err := c.Decide(addr(tt.from), addr(tt.to), ports(tt.port))
		require.NoError(t, err)
		require.Equal(t, tt.want, v.String(), tt)
	}
	_, err := c.Decide(addr("10.9.9.9"), addr("10.2.1.2"), ports("tcp/1"))
	require.EqualError(t, err, "no node has 10.9.9.9, or an approved route to it")

	in := bank()
	in.Now = c.Next
	after := compile(t, in, c)
	require.Zero(t, after.Next)
	v, err := after.Decide(addr("10.3.1.9"), addr("198.18.0.5"), ports("tcp/443"))
	require.NoError(t, err)
	require.Equal(t, "closed: no rule opens it; the nearest is main/registry, but it ended with 2027-01-31", v.String())
}

// Walls stand without a policy too, and nothing declared is open.
func TestWalls(t *testing.T) {
	in := bank()
	in.Policies = nil
	c := compile(t, in, nil)
	for to, open := range map[string]bool{"10.2.1.1": true, "10.3.2.1": true, "10.3.1.1": false} {
		v, err := c.Decide(addr("10.1.1.1"), addr(to), ports("tcp/1"))
		require.NoError(t, err)
		require.Equal(t, open, v.Open, to)
	}
	in.Segments = nil
	require.True(t, compile(t, in, nil).Open)

	in = bank()
	in.Policies[0].Rules[0].From = api.PolicyEndpoint{Site: "lab"}
	v, err := compile(t, in, nil).Decide(addr("10.3.1.1"), addr("10.2.1.2"), ports("tcp/5432"))
	require.NoError(t, err)
	require.Equal(t, "closed: no rule opens it; the nearest is main/web-to-db, but it does not say across, and they are in segment dev and in segment prod", v.String())

	in = bank()
	in.Segments = append(in.Segments, Segment{"test", 0, api.SegmentSpec{Labels: map[string]string{"app": "web"}}})
	in.Nodes[0].Labels["env"] = "prod"
	c = compile(t, in, nil)
	require.Contains(t, c.Doubts, "node web-1 is in segments prod and test by its labels")
	v, err = c.Decide(addr("10.1.1.2"), addr("10.2.1.2"), ports("tcp/5432"))
	require.NoError(t, err)
	require.Equal(t, "closed: no rule opens it; the nearest is main/web-to-db, but one side belongs to two segments", v.String())
}

func TestTests(t *testing.T) {
	c := compile(t, bank(), nil)
	for _, tt := range []struct {
		test api.PolicyTest
		want string
	}{
		{api.PolicyTest{From: "10.1.1.2", To: "10.2.1.2", Port: "tcp/5432", Want: "open", By: "web-to-db"}, ""},
		{api.PolicyTest{From: "lab/*", To: "10.2.1.2", Port: "tcp/5432", Want: "closed"}, ""},
		{api.PolicyTest{From: "lab-1", To: "db-1", Port: "tcp/443", Want: "open", By: "main/registry"}, ""},
		{api.PolicyTest{From: "lab/*", To: "db-1", Port: "tcp/443", Want: "open"}, "test from lab/* to db-1, tcp/443: wanted open, and it is closed: no rule opens it; the nearest is main/registry, but it opens it from segment dev"},
		{api.PolicyTest{From: "10.1.1.2", To: "10.2.1.2", Port: "tcp/5432", Want: "open", By: "registry"}, "test from 10.1.1.2 to 10.2.1.2, tcp/5432: wanted open by registry, and it is open by rule main/web-to-db"},
		{api.PolicyTest{From: "nobody", To: "db-1", Port: "tcp/443", Want: "open"}, `test from nobody to db-1, tcp/443: "nobody" is no address, no SEGMENT/ADDRESS, no node and no SITE/*`},
		{api.PolicyTest{From: "db-1", To: "lab-1", Port: "tcp/443", Want: "yes"}, `test from db-1 to lab-1, tcp/443: want: "yes" is neither open nor closed`},
		{api.PolicyTest{From: "db-1", To: "10.9.9.9", Port: "tcp/443", Want: "closed"}, `test from db-1 to 10.9.9.9, tcp/443: no node has 10.9.9.9, or an approved route to it`},
	} {
		err := c.Test([]api.PolicyTest{tt.test}, false)
		if tt.want == "" {
			require.NoError(t, err)
		} else {
			require.EqualError(t, err, tt.want)
		}
	}
	require.NoError(t, c.Met(0))
	require.NoError(t, c.Over(0))
	in := bank()
	in.Policies[0].Rules[0].To.CIDR = pfx("10.99.0.0/16")
	require.EqualError(t, compile(t, in, nil).Met(0), "rule main/web-to-db: to: site eu, cidr 10.99.0.0/16: no address of any node is meant; correct it, or say expect_empty: true")
	in.Policies[0].Rules[0].ExpectEmpty = true
	require.NoError(t, compile(t, in, nil).Met(0))
}

func TestPods(t *testing.T) {
	in := bank()
	in.Policies[0].Rules = append(in.Policies[0].Rules, api.PolicyRule{Name: "pods", From: api.PolicyEndpoint{Node: "lab-1", Pods: map[string]string{"app": "ci"}},
		To: api.PolicyEndpoint{Segment: "dev"}, Allow: []string{"tcp/22"}})
	in.Pods = []Pod{
		{Node: 6, Addrs: []netip.Addr{addr("10.3.1.7")}, Labels: map[string]string{"app": "ci"}},
		{Node: 6, Addrs: []netip.Addr{addr("10.2.1.7"), addr("198.18.0.5")}, Labels: map[string]string{"app": "ci"}}, // not its own
	}
	c := compile(t, in, nil)
	for from, open := range map[string]bool{"10.3.1.7": true, "10.3.1.8": false, "10.2.1.7": false} {
		v, err := c.Decide(addr(from), addr("10.3.1.1"), ports("tcp/22"))
		require.NoError(t, err)
		require.Equal(t, open, v.Open, from)
	}
	u, err := c.only(addr("10.3.1.7"))
	require.NoError(t, err)
	require.Equal(t, pfx("10.3.1.7/32"), u.Prefix)
}

func TestRefusedRules(t *testing.T) {
	ok := func() api.PolicyRule {
		return api.PolicyRule{Name: "a", From: api.PolicyEndpoint{Site: "x"}, To: api.PolicyEndpoint{Site: "y"}, Allow: []string{"tcp/1"}}
	}
	for _, tt := range []struct {
		change func(*api.PolicyRule)
		want   string
	}{
		{func(r *api.PolicyRule) { r.Name = "A" }, `"A" cannot name a rule`},
		{func(r *api.PolicyRule) { r.Allow = nil }, "rule a: allow: say what it opens"},
		{func(r *api.PolicyRule) { r.Allow = []string{"tcp/0"} }, `rule a: allow: "0": ports are 1 to 65535`},
		{func(r *api.PolicyRule) { r.Allow = []string{"tcp/65536"} }, "ports are 1 to 65535"},
		{func(r *api.PolicyRule) { r.Allow = []string{"tcp/+1"} }, "ports are 1 to 65535"},
		{func(r *api.PolicyRule) { r.Allow = []string{"tcp/9-2"} }, "the first port of a range is not above its last"},
		{func(r *api.PolicyRule) { r.Allow = []string{"icmp/8"} }, "icmp has no ports"},
		{func(r *api.PolicyRule) { r.Allow = []string{"gre"} }, `"gre" is no protocol and port`},
		{func(r *api.PolicyRule) { r.From = api.PolicyEndpoint{} }, "rule a: from: say who"},
		{func(r *api.PolicyRule) { r.To.CIDR = pfx("10.0.0.1/8") }, "rule a: to: cidr: 10.0.0.1/8 has bits beyond its length; write 10.0.0.0/8"},
		{func(r *api.PolicyRule) { r.To.Site = "X" }, `rule a: to: site: "X" cannot name one`},
		{func(r *api.PolicyRule) { r.Across = []string{"a"} }, "rule a: across: write two segments"},
		{func(r *api.PolicyRule) { r.Across = []string{"a", "a"} }, "rule a: across: write two segments"},
		{func(r *api.PolicyRule) { r.Until = "31.1.2027" }, `rule a: until: "31.1.2027" is no day`},
	} {
		r := ok()
		tt.change(&r)
		_, err := ReadRule("main", r)
		require.ErrorContains(t, err, tt.want)
	}
	_, err := ReadRule("main", ok())
	require.NoError(t, err)
	for _, s := range []string{"tcp", "udp/53", "tcp/1-2", "icmp", "any"} {
		require.Equal(t, s, ports(s).String())
	}
}

// What classes say is what the rules say of each pair of addresses, read one by one.
func TestClassesSayWhatRulesSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := generated(t)
		c, err := Compile(in, nil)
		require.NoError(t, err)
		addrs := []netip.Addr{}
		for i := range 6 {
			for _, host := range []int{1, 2, 3, 130} {
				addrs = append(addrs, netip.AddrFrom4([4]byte{10, byte(i), 0, byte(host)}))
			}
			addrs = append(addrs, netip.AddrFrom4([4]byte{198, 18, 0, byte(i + 2)}))
		}
		node := rapid.IntRange(2, 7)
		places := [][2]protocol.NodeNumber{{}, {protocol.NodeNumber(node.Draw(t, "at")), protocol.NodeNumber(node.Draw(t, "at"))}, {protocol.NodeNumber(node.Draw(t, "at")), 0}}
		for _, at := range places {
			for _, a := range addrs {
				for _, b := range addrs {
					if a == b && at[0] == at[1] {
						continue
					}
					p := protocol.Ports{Proto: protocol.ProtoTCP, First: 80, Last: 80}
					from, to := Met{a, at[0]}, Met{b, at[1]}
					want, known := oracle(in, from, to, p)
					v, err := c.DecideAt(from, to, p)
					require.Equal(t, known, err == nil, "%v to %v: %v", from, to, err)
					require.Equal(t, want, v.Open, "%v to %v: %s", from, to, v)
				}
			}
		}
		if !c.Open {
			g := c.All().groups()
			for _, a := range in.Nodes {
				for _, b := range in.Nodes {
					talk := false
					for _, x := range c.Units {
						for _, y := range c.Units {
							talk = talk || slices.Contains(x.At, a.Number) && slices.Contains(y.At, b.Number) && c.Talk(x.Class, y.Class)
						}
					}
					require.Equal(t, talk, g.Talk(g.Nodes[a.Number], g.Nodes[b.Number]), "%s and %s", a.Name, b.Name)
				}
			}
		}
		// The same again keeps each class its number, and a node that goes takes no number from another.
		in.Nodes = in.Nodes[:len(in.Nodes)-1]
		d, err := Compile(in, c)
		require.NoError(t, err)
		for _, k := range d.Classes {
			if had := c.byID[k.ID]; had != nil && had.key != k.key {
				require.False(t, slices.ContainsFunc(d.Classes, func(x *Class) bool { return x.key == had.key }), "class %d", k.ID)
			}
		}
	})
}

func generated(t *rapid.T) Input {
	labels := rapid.MapOfN(rapid.SampledFrom([]string{"app", "env"}), rapid.SampledFrom([]string{"a", "b"}), 0, 2)
	site, segment := rapid.SampledFrom([]string{"s0", "s1", "s2"}), rapid.SampledFrom([]string{"g0", "g1", "g2"})
	in := Input{Now: today}
	for _, name := range []string{"g0", "g1", "g2"}[:rapid.IntRange(0, 3).Draw(t, "segments")] {
		in.Segments = append(in.Segments, Segment{name, 0, api.SegmentSpec{Sites: rapid.SliceOfNDistinct(site, 0, 2, rapid.ID).Draw(t, "sites"), Labels: labels.Draw(t, "segment labels")}})
	}
	for i := range 6 {
		n := Node{Number: protocol.NodeNumber(i + 2), Name: fmt.Sprintf("n%d", i), Site: site.Draw(t, "site"), Labels: labels.Draw(t, "labels"), Own: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, 0, byte(i + 2)}), 32)}}
		for _, k := range rapid.SliceOfNDistinct(rapid.IntRange(0, 5), 0, 3, rapid.ID).Draw(t, "carries") {
			n.Carries = append(n.Carries, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(k), 0, 0}), rapid.SampledFrom([]int{16, 24}).Draw(t, "length")))
		}
		in.Nodes = append(in.Nodes, n)
		for range rapid.IntRange(0, 2).Draw(t, "pods") {
			in.Pods = append(in.Pods, Pod{Node: n.Number, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(rapid.IntRange(0, 5).Draw(t, "net")), 0, byte(rapid.IntRange(1, 3).Draw(t, "pod"))})}, Labels: labels.Draw(t, "pod labels")})
		}
	}
	endpoint := func(what string) (e api.PolicyEndpoint) {
		for sideText(e) == "" {
			for _, field := range rapid.SliceOfNDistinct(rapid.IntRange(0, 5), 1, 3, rapid.ID).Draw(t, what) {
				switch field {
				case 0:
					e.Segment = segment.Draw(t, "segment")
				case 1:
					e.Site = site.Draw(t, "site")
				case 2:
					e.Node = rapid.SampledFrom([]string{"n0", "n1", "n2"}).Draw(t, "node")
				case 3:
					e.Labels = labels.Draw(t, "labels")
				case 4:
					bits := rapid.SampledFrom([]int{8, 16, 24, 25, 32}).Draw(t, "bits")
					e.CIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(rapid.IntRange(0, 5).Draw(t, "net")), 0, byte(rapid.IntRange(1, 3).Draw(t, "host"))}), bits).Masked()
				case 5:
					e.Pods = labels.Draw(t, "pods")
				}
			}
		}
		return e
	}
	var rules []api.PolicyRule
	for i := range rapid.IntRange(0, 6).Draw(t, "rules") {
		r := api.PolicyRule{Name: fmt.Sprintf("r%d", i), From: endpoint("from"), To: endpoint("to"), Allow: rapid.SliceOfN(rapid.SampledFrom([]string{"tcp/80", "tcp", "udp/80", "any", "tcp/81-90", "tcp/70-80"}), 1, 2).Draw(t, "allow")}
		if rapid.Bool().Draw(t, "across") {
			r.Across = rapid.SliceOfNDistinct(segment, 2, 2, rapid.ID).Draw(t, "segments")
		}
		r.Until = rapid.SampledFrom([]string{"", "2026-11-29", "2026-11-30"}).Draw(t, "until")
		rules = append(rules, r)
	}
	if len(rules) > 0 || rapid.Bool().Draw(t, "policy") {
		in.Policies = []Policy{{"p", 0, api.PolicySpec{Rules: rules}}}
	}
	return in
}

// oracle reads the rules for one pair of addresses, as DESIGN says them and as slowly as can be.
func oracle(in Input, a, b Met, p protocol.Ports) (open, known bool) {
	if len(in.Policies) == 0 && len(in.Segments) == 0 {
		return true, true
	}
	type view struct {
		at  []Node
		own bool
		pod map[string]string
	}
	asked := func(labels map[string]string) bool { // whether a side means such a pod
		for _, p := range in.Policies {
			for _, r := range p.Rules {
				for _, e := range []api.PolicyEndpoint{r.From, r.To} {
					if len(e.Pods) > 0 && hasAll(labels, e.Pods) {
						return true
					}
				}
			}
		}
		return false
	}
	segmentOf := func(n Node) string {
		s, found := "", 0
		for _, g := range in.Segments {
			if len(g.Labels) > 0 && hasAll(n.Labels, g.Labels) {
				s, found = g.Name, found+1
			}
		}
		if found == 0 {
			for _, g := range in.Segments {
				if slices.Contains(g.Sites, n.Site) {
					s, found = g.Name, found+1
				}
			}
		}
		if found > 1 {
			return "?"
		}
		return s
	}
	realmOf := func(n Node) string { // of all segments that are reached by rules across, one after the other, the first
		joined := []string{segmentOf(n)}
		for i := 0; i < len(joined); i++ {
			for _, p := range in.Policies {
				for _, r := range p.Rules {
					if slices.Contains(r.Across, joined[i]) {
						joined = append(joined, slices.DeleteFunc(slices.Clone(r.Across), func(s string) bool { return slices.Contains(joined, s) })...)
					}
				}
			}
		}
		return slices.Min(joined)
	}
	lookIn := func(x netip.Addr, realm string) (v view, ok bool) {
		best := -1
		for _, n := range in.Nodes {
			for i, q := range append(slices.Clone(n.Own), n.Carries...) {
				if !q.Contains(x) || q.Bits() < best || realmOf(n) != realm {
					continue
				}
				if q.Bits() > best {
					best, v = q.Bits(), view{}
				}
				v.at, v.own = append(v.at, n), i < len(n.Own)
			}
		}
		labels, from := map[string]string{}, map[protocol.NodeNumber]bool{}
		unclear := map[string]bool{}
		for _, pod := range in.Pods {
			if slices.Contains(pod.Addrs, x) && slices.ContainsFunc(v.at, func(n Node) bool { return n.Number == pod.Node }) {
				from[pod.Node] = true
				for k, l := range pod.Labels {
					unclear[k] = unclear[k] || labels[k] != "" && labels[k] != l
					labels[k] = l
				}
			}
		}
		maps.DeleteFunc(labels, func(k, _ string) bool { return unclear[k] })
		if len(from) == 1 && !v.own && asked(labels) {
			i := slices.IndexFunc(v.at, func(n Node) bool { return from[n.Number] })
			v.at, v.pod = v.at[i:i+1], labels
		}
		return v, best >= 0
	}
	look := func(e Met) (v view, ok bool) {
		realms := map[string]bool{}
		for _, n := range in.Nodes {
			if n.Number == e.Node {
				if v, ok := lookIn(e.Addr, realmOf(n)); ok {
					return v, true
				}
			}
			if _, ok := lookIn(e.Addr, realmOf(n)); ok {
				realms[realmOf(n)] = true
			}
		}
		if len(realms) > 1 {
			delete(realms, "?")
		}
		if len(realms) != 1 {
			return v, false
		}
		for r := range realms {
			v, ok = lookIn(e.Addr, r)
		}
		return v, ok
	}
	segment := func(v view) string {
		s := segmentOf(v.at[0])
		for _, n := range v.at {
			if segmentOf(n) != s {
				return "?"
			}
		}
		return s
	}
	va, ok := look(a)
	vb, ok2 := look(b)
	if !ok || !ok2 {
		return false, false
	}
	sa, sb := segment(va), segment(vb)
	if sa == "?" || sb == "?" {
		return false, true
	}
	if len(in.Policies) == 0 {
		return sa == sb, true
	}
	means := func(e api.PolicyEndpoint, x netip.Addr, v view) bool {
		for _, n := range v.at {
			if e.Segment != "" && e.Segment != segmentOf(n) || e.Site != "" && e.Site != n.Site || e.Node != "" && e.Node != n.Name || !hasAll(n.Labels, e.Labels) {
				return false
			}
		}
		bare := e.Node != "" && !e.CIDR.IsValid() && len(e.Pods) == 0
		return (!e.CIDR.IsValid() || e.CIDR.Contains(x)) && (len(e.Pods) == 0 || v.pod != nil && hasAll(v.pod, e.Pods)) && (!bare || v.own)
	}
	for _, r := range in.Policies[0].Rules {
		across := len(r.Across) == 2 && sa != sb && slices.Contains(r.Across, sa) && slices.Contains(r.Across, sb)
		if r.Until == "2026-11-29" || !across && (len(r.Across) > 0 || sa != sb) || !means(r.From, a.Addr, va) || !means(r.To, b.Addr, vb) {
			continue
		}
		for _, x := range r.Allow {
			if slices.Contains([]string{"tcp/80", "tcp", "any", "tcp/70-80"}, x) {
				return true, true
			}
		}
	}
	return false, true
}
