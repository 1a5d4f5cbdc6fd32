package join

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/state"
	"causeway/protocol"
)

// Who holds the identity key of a node hears what the hub knows of that node, and nobody else does. A
// question by a key that was rotated out, or of a node that is gone, is noted.
func TestStanding(t *testing.T) {
	s := server(t)
	id, err := protocol.NewIdentityPrivateKey()
	require.NoError(t, err)
	other, err := protocol.NewIdentityPrivateKey()
	require.NoError(t, err)
	own := protocol.WireGuardPublicKey{3}
	stated := protocol.NodeStatement{Number: 5, WireGuardKey: own, Epoch: 3}.Sign(id)
	node := state.Node{Number: 5, Name: "sh", Site: "a", WireGuardKey: own, IdentityKey: id.Public(), Statement: &stated, Joined: time.Unix(1700000000, 0)}
	st := state.New()
	st.Nodes.Set(5, node)
	var noted []netip.Addr
	s.cfg.Stray = func(n state.Node, _ protocol.NodeAsk, from netip.Addr) { noted = append(noted, from) }
	nonce := protocol.ListNonce{1}
	ask := func(k protocol.IdentityPrivateKey, change func(*protocol.NodeAsk)) *protocol.Standing {
		a := protocol.NodeAsk{Number: 5, WireGuardKey: own, Epoch: 3, Time: time.Now()}
		if change != nil {
			change(&a)
		}
		return s.standing(st, a.Sign(nonce, k), nonce, "[::ffff:192.0.2.7]:4711")
	}
	require.Nil(t, ask(other, nil), "another's key")
	require.Nil(t, ask(id, func(a *protocol.NodeAsk) { a.Number = 6 }), "no node")
	got := ask(id, nil)
	require.NotNil(t, got)
	require.True(t, got.SignedBy(nonce, s.cfg.Keys.Cluster.Public()))
	require.Equal(t, [3]any{"sh", uint32(3), own}, [3]any{got.Name, got.KeyEpoch, got.WireGuardKey})
	ask(id, func(a *protocol.NodeAsk) { a.WireGuardKey, a.Epoch = protocol.WireGuardPublicKey{4}, 4 })
	require.Empty(t, noted, "the node's own key, or one to come")

	old := func(a *protocol.NodeAsk) { a.WireGuardKey, a.Epoch = protocol.WireGuardPublicKey{2}, 2 }
	require.Empty(t, ask(id, old).Gone)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("192.0.2.7")}, noted)
	ask(id, func(a *protocol.NodeAsk) { old(a); a.Time = time.Now().Add(-2 * askedWithin) })
	require.Len(t, noted, 1, "said long ago")

	node.Gone = state.GoneLeft
	st.Nodes.Set(5, node)
	got = ask(id, nil)
	require.Equal(t, protocol.StandingLeft, got.Gone)
	require.False(t, got.Taken)
	require.Len(t, noted, 2)
}
