package plan

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/hub/service"
	"causeway/protocol"
)

func serviceItem(name string, generation uint64) *protocol.Item {
	return &protocol.Item{Kind: protocol.ItemService, Name: name, Generation: generation, Body: []byte(`{"ports":[{"port":80}]}`)}
}

// Whatever services nodes are told and were told, a change brings an agent from one to the other.
func TestServicesChange(t *testing.T) {
	c := newCluster(t)
	nodes := []protocol.NodeNumber{c.node("a", "a1"), c.node("a", "a2"), c.node("b", "b1")}
	limit(c, "each", `{"node":"*","packets":2}`)
	rapid.Check(t, func(rt *rapid.T) {
		items := map[string]*protocol.Item{}
		var last *Netmaps
		held := map[protocol.NodeNumber]protocol.Netmap{}
		at := map[protocol.NodeNumber]*Netmaps{}
		for step := range uint64(rapid.IntRange(1, 8).Draw(rt, "steps")) {
			for k := range 5 {
				name := fmt.Sprintf("s%d", k)
				switch rapid.IntRange(0, 3).Draw(rt, "what") {
				case 0:
					delete(items, name)
				case 1:
					items[name] = serviceItem(name, step)
				}
			}
			some, all := &service.Set{}, &service.Set{}
			for k := range 5 {
				if i := items[fmt.Sprintf("s%d", k)]; i != nil {
					if all.Items = append(all.Items, i); k%2 == 0 {
						some.Items = append(some.Items, i)
					}
				}
			}
			told := &service.Told{Nodes: map[protocol.NodeNumber]*service.Set{nodes[0]: all, nodes[1]: all, nodes[2]: some}}
			if rapid.IntRange(0, 5).Draw(rt, "none") == 0 {
				told = nil
			}
			v := Compute(c.d.State, nil, nil, told, last)
			require.True(rt, Compute(c.d.State, nil, nil, told, v).SameAs(v))
			for _, n := range nodes {
				want, _ := v.For(n)
				require.LessOrEqual(rt, len(want.Items), 6)
				m, err := sent(t, v.Full(n, v.Version)).Apply(nil)
				require.NoError(rt, err)
				require.Equal(rt, want.Items, m.Items)
				if h := at[n]; h != nil {
					before := held[n]
					next := before.NetmapVersion
					next.Minor++
					u, changed := v.Change(h, n, before.NetmapVersion, next)
					after, err := sent(t, u).Apply(&before)
					require.NoError(rt, err)
					require.Equal(rt, want.Items, after.Items)
					was, _ := h.For(n)
					require.True(rt, changed || len(same(was, want)) == 0, "what comes back after a time without services is sent again, though it is the same")
					m, err = sent(t, v.Confirm(n, before.NetmapVersion, next)).Apply(&before)
					require.NoError(rt, err)
					require.Equal(rt, want.Items, m.Items)
				}
				if rapid.Bool().Draw(rt, "takes") {
					m.NetmapVersion = v.Version
					held[n], at[n] = m, v
				}
			}
			last = v
		}
	})
}

// 3,072 services, of which one changes, for 1,000 nodes.
func BenchmarkServiceChanges(b *testing.B) {
	c := newCluster(b)
	all := &service.Set{}
	for i := range service.MaxItems {
		all.Items = append(all.Items, serviceItem(fmt.Sprintf("s%05d", i), 1))
	}
	told := &service.Told{Nodes: map[protocol.NodeNumber]*service.Set{}}
	var nodes []protocol.NodeNumber
	for i := range 1000 {
		n := c.node("a", fmt.Sprintf("n%d", i))
		nodes = append(nodes, n)
		told.Nodes[n] = all
	}
	v := Compute(c.d.State, nil, nil, told, nil)
	for b.Loop() {
		next := &service.Set{Items: append([]*protocol.Item{serviceItem("s00000", 2)}, all.Items[1:]...)}
		told := &service.Told{Nodes: map[protocol.NodeNumber]*service.Set{}}
		for _, n := range nodes {
			told.Nodes[n] = next
		}
		w := Compute(c.d.State, nil, nil, told, v)
		for _, n := range nodes {
			if _, changed := w.Change(v, n, v.Version, w.Version); !changed {
				b.Fatal("nothing changed")
			}
		}
	}
}
