package probe

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// know makes w's hub and the agents named know agent a by key.
func (w *world) know(a protocol.NodeNumber, key protocol.WireGuardPublicKey, agents ...protocol.NodeNumber) {
	var out Output
	var nodes []Node
	for _, n := range w.numbers() {
		k := w.agents[n].key.Public()
		if n == a {
			k = key
		}
		nodes = append(nodes, Node{Number: n, Key: k})
	}
	require.NoError(w.t, w.hub.SetNodes(w.now, nodes, &out))
	for _, n := range agents {
		x := w.agents[n]
		for i := range x.peers {
			if x.peers[i].Number == a {
				x.peers[i].Key = key
			}
		}
		require.NoError(w.t, x.SetPeers(w.now, x.peers, &out))
	}
}

// While a node's key is rotated its paths stay, to the hub, to a peer that has
// heard of the new key and to one that has not; a restart with both keys finds
// all of them again.
func TestNodeKeyRotates(t *testing.T) {
	w := newWorld(t, 3)
	a, b, c := w.agents[10], w.agents[11], w.agents[12]
	for _, x := range []*simAgent{a, b, c} {
		for _, y := range []*simAgent{a, b, c} {
			if x != y {
				x.candidates(y.number, y.addr)
				x.busy[y.number] = true
			}
		}
	}
	w.pass(3 * time.Second)
	reached := func(what string) {
		t.Helper()
		for i := 0; i < 100; i++ {
			w.pass(50 * time.Millisecond)
			require.True(t, a.HubAlive(w.now, simHubNumber), what)
			for _, x := range []*simAgent{b, c} {
				require.Equal(t, protocol.PathDirect, a.Route(x.number).Kind, what)
				require.Equal(t, protocol.PathDirect, x.Route(a.number).Kind, what)
			}
		}
		require.NotEmpty(t, w.hub.Bound(a.number), what)
	}
	reached("before")
	old, next := OwnKey{a.key, 1}, OwnKey{w.newKey(), 2}
	a.SetKeys([]OwnKey{old, next})
	reached("made")
	w.know(a.number, next.Key.Public(), b.number)
	reached("told")
	a.SetKeys([]OwnKey{next, old})
	reached("taken")

	a.key = next.Key
	a.start()
	a.SetKeys([]OwnKey{next, old})
	for _, x := range []*simAgent{b, c} {
		a.candidates(x.number, x.addr)
		a.busy[x.number] = true
	}
	w.pass(3 * time.Second)
	reached("started again")

	w.know(a.number, next.Key.Public(), c.number)
	a.SetKeys([]OwnKey{next})
	reached("done")
	require.Zero(t, w.hub.nodes[a.number].keys.use)
}

// A hub whose key is rotated is heard under both, and nothing is unbound.
func TestHubKeyRotates(t *testing.T) {
	w := newWorld(t, 2)
	w.pass(3 * time.Second)
	bound := func(what string) {
		t.Helper()
		for i := 0; i < 100; i++ {
			w.pass(50 * time.Millisecond)
			for _, n := range w.numbers() {
				require.True(t, w.agents[n].HubAlive(w.now, simHubNumber), what)
				require.NotEmpty(t, w.hub.Bound(n), what)
			}
		}
	}
	bound("before")
	next := w.newKey()
	w.hub.SetKeys([]OwnKey{{Key: next}, {Key: w.hub.key}})
	bound("made")
	a := w.agents[10]
	var out Output
	require.NoError(t, a.SetHubs(w.now, []Hub{{Number: simHubNumber, Key: next.Public(), Addrs: a.hubs[simHubNumber].Addrs}}, &out))
	bound("one agent knows")
	w.hub.SetKeys([]OwnKey{{Key: next}})
	w.pass(2 * time.Minute)
	require.True(t, a.HubAlive(w.now, simHubNumber))
	require.False(t, w.agents[11].HubAlive(w.now, simHubNumber), "the old key is good no more")
	require.Empty(t, w.hub.Bound(11))
}
