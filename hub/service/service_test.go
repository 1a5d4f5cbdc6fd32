package service

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/protocol"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// lab is a world of two sites with two nodes each, a and b; a1 and a2 carry 10.1.0.0/16, b1 10.2.0.0/16, b2 nothing.
func lab() []Node {
	p := netip.MustParsePrefix
	return []Node{
		{Number: 2, Name: "a1", Site: "a", Own: []netip.Addr{addr("198.18.0.2")}, Carries: []netip.Prefix{p("10.1.0.0/16"), p("10.1.9.0/24")}},
		{Number: 3, Name: "a2", Site: "a", Own: []netip.Addr{addr("198.18.0.3")}, Carries: []netip.Prefix{p("10.1.0.0/16")}},
		{Number: 4, Name: "b1", Site: "b", Own: []netip.Addr{addr("198.18.0.4"), addr("fd63::4")}, Carries: []netip.Prefix{p("10.2.0.0/16")}},
		{Number: 5, Name: "b2", Site: "b", Own: []netip.Addr{addr("198.18.0.5")}},
	}
}

func same(s string) string      { return s }
func undeclared(string) bool    { return false }
func world(nodes []Node) *World { return NewWorld(nodes, same, undeclared) }

func declared(t testing.TB, name, spec string) Declared {
	t.Helper()
	d := Declared{Name: name, Generation: 7, Created: time.Unix(1e9, 0)}
	require.NoError(t, json.Unmarshal([]byte(spec), &d.Service))
	var err error
	d.Service, err = d.Normal()
	require.NoError(t, err)
	return d
}

// texts are the endpoints: of which nodes are told SITE/ADDR=NAME@NODES, of others with ! before.
func texts(r *Result) (out []string) {
	for _, e := range r.Endpoints {
		s := fmt.Sprintf("%s/%s=%s@%v", e.Site, e.Addr, e.Name, e.Nodes)
		if e.Away != "" {
			s = "!" + s
		}
		out = append(out, s)
	}
	return out
}

func findings(r *Result) (out []string) {
	for _, f := range r.Findings {
		out = append(out, f.Check+": "+f.Text)
	}
	return out
}

func running(name, addr string, labels ...string) Container {
	c := Container{ID: name, Name: name, Labels: map[string]string{}, Addrs: []netip.Addr{netip.MustParseAddr(addr)}}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		c.Labels[k] = v
	}
	return c
}

func TestEndpoints(t *testing.T) {
	const head = `{"ports":[{"port":80}],`
	for _, tt := range []struct {
		name, spec string
		want       []string
		findings   []string
	}{
		{"nobody", `"x":0`, nil, []string{"service-empty: nobody takes its connections: it has no backends"}},
		{"selector", `"backends":[{"selector":{"app":"web"}}]`, []string{"a/10.1.1.1=web-1@[2]", "a/10.1.1.2=pod-7@[3]", "b/10.2.1.1=web-b@[4]"},
			[]string{"service-no-route: 10.1.1.9 is said to be of containers at two nodes", "service-no-route: container astray of b1 has 10.9.9.9, which that node does not carry (2 addresses of containers with app=web)"}},
		{"selector at a site", `"backends":[{"site":"b","selector":{"app":"web","tier":"x"}}]`, []string{"b/10.2.1.1=web-b@[4]"}, nil},
		{"selects nobody", `"backends":[{"site":"b","selector":{"app":"db"}},{"node":"a1"}]`, []string{"a/198.18.0.2=a1@[2]"}, []string{"service-selects-nobody: no running container at b has app=db"}},
		{"node", `"backends":[{"node":"b1"},{"node":"gone"}]`, []string{"b/198.18.0.4=b1@[4]", "b/fd63::4=b1@[4]"}, []string{"service-selects-nobody: node gone is gone"}},
		{"addresses", `"backends":[{"site":"a","addresses":["10.1.2.3","10.1.9.3","10.2.2.3","10.3.0.1","198.18.0.2"]}]`, []string{"a/10.1.2.3=10-1-2-3@[2 3]", "a/10.1.9.3=10-1-9-3@[2]"},
			[]string{"service-no-route: 10.2.2.3: no node of a carries it, but b1 of b does", "service-no-route: 10.3.0.1: no node of a carries it", "service-no-route: 198.18.0.2 is node a1 itself; say node: a1"}},
		{"stay", `"stay":["b"],"backends":[{"node":"a1"},{"node":"b2"}]`, []string{"!a/198.18.0.2=a1@[2]", "b/198.18.0.5=b2@[5]"}, nil},
		{"writer", `"mode":"single-writer","writer":"a","backends":[{"node":"a1"},{"node":"b2"}]`, []string{"a/198.18.0.2=a1@[2]", "!b/198.18.0.5=b2@[5]"}, nil},
		{"kept away", `"mode":"single-writer","writer":"b","backends":[{"node":"a1"}]`, []string{"!a/198.18.0.2=a1@[2]"}, []string{"service-empty: nobody takes its connections: none of its 1 backends is used: the writer is b"}},
		{"excluded", `"exclude":["a"],"backends":[{"node":"a1"}]`, []string{"a/198.18.0.2=a1@[2]"}, []string{"service-empty: nobody takes its connections: every site with backends is excluded"}},
		{"no route at all", `"backends":[{"site":"a","addresses":["10.3.0.1"]}]`, nil, []string{"service-empty: nobody takes its connections: 10.3.0.1: no node of a carries it", "service-no-route: 10.3.0.1: no node of a carries it"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := NewTable()
			table.SetWorld(world(lab()))
			table.Put(declared(t, "svc", head+tt.spec+"}"))
			table.SetContainers(2, []Container{running("both", "10.1.1.9", "app=web"), running("web-1", "10.1.1.1", "app=web"), running("x", "10.1.1.5", "app=other")})
			table.SetContainers(3, []Container{running("both", "10.1.1.9", "app=web"), running("sandbox_x", "10.1.1.2", "app=web", podName+"=pod-7")})
			table.SetContainers(4, []Container{running("astray", "10.9.9.9", "app=web"), running("web_B", "10.2.1.1", "app=web", "tier=x"), running("z", "10.1.1.1", "app=web")})
			told := table.Settle()
			r := told.Services["svc"]
			require.Equal(t, tt.want, texts(r))
			require.Equal(t, tt.findings, findings(r))
			require.Same(t, told, table.Settle())

			// Each node is told, what agents take.
			require.Len(t, told.Nodes, 4)
			var item protocol.ServiceItem
			require.NoError(t, json.Unmarshal(told.Nodes[2].Items[0].Body, &item))
			require.NoError(t, item.Check())
			require.NoError(t, told.Nodes[2].Items[0].Check())
			require.Empty(t, item.Backends)
			n := 0
			for _, e := range r.Endpoints {
				if e.Away == "" {
					require.Equal(t, e.ServiceEndpoint, item.Endpoints[n])
					n++
				}
			}
			require.Len(t, item.Endpoints, n)
		})
	}
}

// Clients are the nodes of the segment; nodes beside backends are told, too; addresses are those that clients meet.
func TestSegments(t *testing.T) {
	nodes := lab()
	nodes[0].Segment, nodes[1].Segment, nodes[2].Segment = "prod", "dev", "prod" // a1, a2, b1; b2 is in none
	realm := func(s string) string {
		return map[string]string{"ops": "prod"}[s] + s[:0] + strings.TrimPrefix(s, "ops")
	}
	segments := func(s string) bool { return s == "prod" || s == "dev" || s == "ops" }
	nodes = append(nodes, Node{Number: 6, Name: "o1", Site: "b", Segment: "ops", Own: []netip.Addr{addr("198.18.0.6")}})
	table := NewTable()
	table.SetWorld(NewWorld(nodes, realm, segments))
	table.Put(declared(t, "prod", `{"segment":"prod","ports":[{"port":80}],"backends":[{"site":"a","addresses":["10.1.1.1"]},{"node":"o1"},{"node":"a2"}]}`))
	table.Put(declared(t, "open", `{"ports":[{"port":80}],"backends":[{"node":"b2"}]}`))
	told := table.Settle()
	require.Equal(t, []string{"a/10.1.1.1=10-1-1-1@[2]", "b/198.18.0.6=o1@[6]"}, texts(told.Services["prod"]))
	require.Equal(t, []string{"service-no-route: node a2 is of another segment than its clients, and no rule joins the two"}, findings(told.Services["prod"]))
	names := map[protocol.NodeNumber]string{}
	for n, s := range told.Nodes {
		for _, i := range s.Items {
			names[n] += i.Name
		}
	}
	require.Equal(t, map[protocol.NodeNumber]string{2: "prod", 4: "prod", 5: "open", 6: "prod"}, names)
	require.Same(t, told.Nodes[2], told.Nodes[4])

	// One that is called default is that one.
	nodes[3].Segment = protocol.DefaultSegment
	table.SetWorld(NewWorld(nodes, realm, func(s string) bool { return segments(s) || s == protocol.DefaultSegment }))
	require.Equal(t, "open", table.Settle().Nodes[5].Items[0].Name)
	nodes[3].Away = true // in quarantine
	table.SetWorld(NewWorld(nodes, realm, segments))
	require.Contains(t, findings(table.Settle().Services["open"])[0], "node b2 is in quarantine")
}

func TestBounds(t *testing.T) {
	table := NewTable()
	table.SetWorld(world(lab()))
	table.Put(declared(t, "web", `{"ports":[{"port":80}],"backends":[{"selector":{"app":"web"}}]}`))
	var l []Container
	for i := range protocol.MaxServiceEndpoints + 7 {
		l = append(l, running(fmt.Sprintf("c%04d", i), fmt.Sprintf("10.2.%d.%d", i/250, 1+i%250), "app=web"))
	}
	table.SetContainers(4, l)
	r := table.Settle().Services["web"]
	require.Contains(t, findings(r), "service-surplus: 7 endpoints are more than 250, and nodes are not told of them")
	require.Equal(t, "b/10.2.0.250=c0249@[4]", texts(r)[249])
	require.Equal(t, "!b/10.2.1.1=c0250@[4]", texts(r)[250])

	// As many services as there may be: what was there first stays, whatever its name.
	table = NewTable()
	table.SetWorld(world(lab()))
	for i := range MaxItems + 2 {
		d := declared(t, fmt.Sprintf("s%d", MaxItems+2-i), `{"ports":[{"port":80}],"backends":[{"node":"a1"}]}`)
		d.Created = d.Created.Add(time.Duration(i) * time.Second)
		table.Put(d)
	}
	told := table.Settle()
	require.Len(t, told.Nodes[5].Items, MaxItems)
	require.Equal(t, map[string]bool{"s1": true, "s2": true}, told.LeftOut)
	require.True(t, slices.IsSortedFunc(told.Nodes[5].Items, func(a, b *protocol.Item) int { return protocol.CompareItems(*a, *b) }))
}

// An item that is too large tells of fewer endpoints, and is the same again.
func TestLargeItem(t *testing.T) {
	long := strings.Repeat("x", 60)
	nodes := []Node{{Number: 2, Name: long, Site: long, Carries: []netip.Prefix{netip.MustParsePrefix("fd01::/64")}}}
	table := NewTable()
	table.SetWorld(world(nodes))
	d := declared(t, "web", `{"ports":[{"port":80}],"backends":[{"selector":{"app":"web"}}]}`)
	for i := range 64 {
		d.Ports = append(d.Ports, protocol.ServicePort{Name: fmt.Sprintf("%s%d", long, i), Port: uint16(i + 1), Target: 65535, Protocol: "tcp"})
		d.Exclude = append(d.Exclude, fmt.Sprintf("%s%d", long, i))
		d.Stay = append(d.Stay, fmt.Sprintf("%s%d", long, i), long)
		d.Order = append(d.Order, fmt.Sprintf("%s%d", long, i))
	}
	table.Put(d)
	var l []Container
	for i := range 250 {
		l = append(l, running(fmt.Sprintf("%s%03d", long, i), fmt.Sprintf("fd01::1111:1111:1111:%x", i+4096), "app=web"))
	}
	table.SetContainers(2, l)
	told := table.Settle()
	item := told.Nodes[2].Items[0]
	require.NoError(t, item.Check())
	require.Contains(t, strings.Join(findings(told.Services["web"]), "\n"), "service-surplus: ")
	table.SetWorld(world(nodes))
	require.Same(t, item, table.Settle().Nodes[2].Items[0])
}

// Whatever changes in whatever order, a table says what a new one says; and what is the same is the same pointer.
func TestTableIsAsNew(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		table := NewTable()
		nodes := lab()
		table.SetWorld(world(nodes))
		services, containers := map[string]Declared{}, map[protocol.NodeNumber][]Container{}
		value := func() string { return rapid.SampledFrom([]string{"x", "y"}).Draw(rt, "value") }
		for step := range rapid.IntRange(1, 25).Draw(rt, "steps") {
			switch rapid.IntRange(0, 4).Draw(rt, "step") {
			case 0:
				nodes = slices.Clone(nodes)
				n := &nodes[rapid.IntRange(0, 3).Draw(rt, "node")]
				n.Segment, n.Away = rapid.SampledFrom([]string{"", "s"}).Draw(rt, "segment"), rapid.IntRange(0, 5).Draw(rt, "away") == 0
				table.SetWorld(world(nodes))
			case 1:
				name := fmt.Sprintf("s%d", rapid.IntRange(0, 3).Draw(rt, "name"))
				table.Remove(name)
				delete(services, name)
			case 2:
				d := declared(t, fmt.Sprintf("s%d", rapid.IntRange(0, 3).Draw(rt, "name")), fmt.Sprintf(`{"ports":[{"port":80}],"backends":[{"selector":{"k":"%s","l":"%s"}},{"selector":{"k":"%s"}},{"node":"b2"}]}`, value(), value(), value()))
				d.Generation, d.Segment = uint64(step), rapid.SampledFrom([]string{"default", "s"}).Draw(rt, "segment")
				services[d.Name] = d
				table.Put(d)
			default:
				n := protocol.NodeNumber(rapid.IntRange(2, 4).Draw(rt, "at"))
				var l []Container
				for i := range rapid.IntRange(0, 3).Draw(rt, "containers") {
					l = append(l, running(fmt.Sprintf("c%d", i), fmt.Sprintf("10.%d.0.%d", n/2, 1+rapid.IntRange(0, 3).Draw(rt, "addr")), "k="+value(), "l="+value()))
				}
				containers[n] = l
				table.SetContainers(n, l)
			}
			if rapid.Bool().Draw(rt, "settle") {
				continue
			}
			got := table.Settle()
			require.Same(rt, got, table.Settle())
			anew := NewTable()
			for n, l := range containers {
				anew.SetContainers(n, l)
			}
			anew.SetWorld(world(nodes))
			for n, l := range containers {
				anew.SetContainers(n, l)
			}
			for _, d := range services {
				anew.Put(d)
			}
			want := anew.Settle()
			require.Equal(rt, slices.Sorted(maps.Keys(want.Services)), slices.Sorted(maps.Keys(got.Services)))
			for name, r := range want.Services {
				require.Equal(rt, texts(r), texts(got.Services[name]), name)
				require.Equal(rt, findings(r), findings(got.Services[name]), name)
			}
			require.Equal(rt, len(want.Nodes), len(got.Nodes))
			for n, s := range want.Nodes {
				require.Equal(rt, s.Items, got.Nodes[n].Items)
			}
		}
	})
}

// large are so many services of 50 endpoints each, at 200 nodes.
func large(tb testing.TB, services int) (*Table, []Node) {
	var nodes []Node
	for i := range 200 {
		nodes = append(nodes, Node{Number: protocol.NodeNumber(2 + i), Name: fmt.Sprintf("n%d", i), Site: fmt.Sprintf("s%d", i/20), Own: []netip.Addr{netip.AddrFrom4([4]byte{198, 18, 0, byte(2 + i)})},
			Carries: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16)}})
	}
	table := NewTable()
	table.SetWorld(world(nodes))
	at := make([][]Container, len(nodes))
	for i := range services {
		name := fmt.Sprintf("s%d", i)
		table.Put(declared(tb, name, `{"ports":[{"port":80}],"backends":[{"selector":{"env":"prod","app":"`+name+`"}}]}`))
		for k := range 50 {
			n := (i + k*4) % len(nodes)
			at[n] = append(at[n], container(n, len(at[n]), name))
		}
	}
	for i, l := range at {
		slices.SortFunc(l, CompareContainers)
		table.SetContainers(nodes[i].Number, l)
	}
	return table, nodes
}

func container(n, i int, app string) Container {
	return Container{ID: fmt.Sprintf("%s-%d", app, i), Name: app, Labels: map[string]string{"env": "prod", "app": app}, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(n), byte(i / 250), byte(1 + i%250)})}}
}

func BenchmarkAll(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		table, _ := large(b, 10_000)
		b.StartTimer()
		table.Settle()
	}
}

// BenchmarkJoin: a node joins.
func BenchmarkJoin(b *testing.B) {
	table, nodes := large(b, 10_000)
	table.Settle()
	for b.Loop() {
		nodes = append(nodes, Node{Number: protocol.NodeNumber(2 + len(nodes)), Name: fmt.Sprintf("n%d", len(nodes)), Site: "s1"})
		table.SetWorld(world(nodes))
		table.Settle()
	}
}

// BenchmarkWorld: a route is approved.
func BenchmarkWorld(b *testing.B) {
	table, nodes := large(b, 10_000)
	table.Settle()
	for b.Loop() {
		nodes = slices.Clone(nodes)
		nodes[5].Carries = append(slices.Clip(nodes[5].Carries), netip.MustParsePrefix("10.255.0.0/24"))
		table.SetWorld(world(nodes))
		table.Settle()
	}
}

func BenchmarkContainer(b *testing.B) {
	table, nodes := large(b, 10_000)
	table.Settle()
	n, i := nodes[7].Number, 0
	l := table.containers[n]
	for b.Loop() {
		i++
		now := slices.Clone(l)
		now[100].Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 7, 200, byte(1 + i%250)})}
		l = now
		table.SetContainers(n, now)
		table.Settle()
	}
}

func BenchmarkService(b *testing.B) {
	table, _ := large(b, 10_000)
	table.Settle()
	d := *table.declared["s77"]
	for b.Loop() {
		d.Generation++
		table.Put(d)
		table.Settle()
	}
}
