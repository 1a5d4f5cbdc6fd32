package plan

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	_ "causeway/hub/object"
	"causeway/hub/state"
	"causeway/protocol"
)

func limit(c *cluster, name, spec string) {
	c.t.Helper()
	require.NoError(c.t, state.PutObject(c.d, protocol.ItemLimit, name, json.RawMessage(spec)))
	c.d.Seq++
}

func itemNames(m protocol.Netmap) (out []string) {
	for _, i := range m.Items {
		out = append(out, fmt.Sprintf("%s@%d", i.Name, i.Generation))
	}
	return out
}

// Nodes are told what concerns them, by changes too, and an agent that was away gets all.
func TestItems(t *testing.T) {
	c := newCluster(t)
	a, b := c.node("a", "a1"), c.node("b", "b1")
	bare := Compute(c.d.State, nil, nil, nil, nil)
	limit(c, "site", `{"site":"a","packets":1}`)
	limit(c, "each", `{"node":"*","packets":2}`)
	v := Compute(c.d.State, nil, nil, nil, bare)
	require.False(t, v.SameAs(bare))
	ma, _ := v.For(a)
	mb, _ := v.For(b)
	require.Equal(t, []string{"each@52", "site@51"}, itemNames(ma))
	require.Equal(t, []string{"each@52"}, itemNames(mb))
	require.JSONEq(t, `{"site":"a","packets":1}`, string(ma.Items[1].Body))
	require.True(t, Compute(c.d.State, nil, nil, nil, v).SameAs(v))

	apply := func(u Update, held protocol.Netmap) protocol.Netmap {
		t.Helper()
		m, err := sent(t, u).Apply(&held)
		require.NoError(t, err)
		return m
	}
	full, err := sent(t, bare.Full(a, bare.Version)).Apply(nil)
	require.NoError(t, err)
	u, changed := v.Change(bare, a, bare.Version, v.Version)
	require.True(t, changed)
	held := apply(u, full)
	require.Empty(t, same(ma, held))

	limit(c, "each", `{"node":"*","packets":3}`)
	require.NoError(t, c.d.Add(state.ObjectDeleted{Kind: protocol.ItemLimit, Name: "site"}))
	c.d.Seq++
	w := Compute(c.d.State, nil, nil, nil, v)
	u, changed = w.Change(v, a, v.Version, w.Version)
	require.True(t, changed)
	require.Equal(t, []protocol.ItemKey{{Kind: protocol.ItemLimit, Name: "site"}}, u.Netmap.RemovedItems)
	require.Equal(t, []string{"each@53"}, itemNames(sent(t, u)))
	ma, _ = w.For(a)
	require.Empty(t, same(ma, apply(u, held)))
	require.Empty(t, same(ma, apply(w.Confirm(a, held.NetmapVersion, w.Version), held)), "one that has the right peers")
	_, changed = w.Change(v, b, v.Version, w.Version)
	require.True(t, changed)

	// Nothing is left of an item when its object goes, and nobody else hears of it.
	c.add(state.ObjectDeleted{Kind: protocol.ItemLimit, Name: "each"})
	c.d.Seq++
	x := Compute(c.d.State, nil, nil, nil, w)
	ma, _ = x.For(a)
	require.Empty(t, ma.Items)
	limit(c, "only", `{"node":"a1","packets":3}`)
	y := Compute(c.d.State, nil, nil, nil, x)
	_, changed = y.Change(x, b, x.Version, y.Version)
	require.False(t, changed, "what does not concern b1")
}
