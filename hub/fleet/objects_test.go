package fleet

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	_ "causeway/hub/object"
	"causeway/hub/state"
	"causeway/protocol"
)

func TestHas(t *testing.T) {
	d := &state.Draft{State: state.New(), Now: time.Unix(1e9, 0).UTC()}
	add := func(c state.Change) { t.Helper(); require.NoError(t, d.Add(c)) }
	add(state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 3, Overlay: []netip.Prefix{protocol.DefaultOverlay4}})
	add(state.HubAdded{Number: 1})
	add(state.SiteCreated{Name: "a"})
	for b := byte(1); b <= 5; b++ {
		hash := protocol.TokenSecret{b}.Hash()
		add(state.TokenCreated{ID: protocol.TokenID{b}, Hash: hash[:], Site: "a", Expires: d.Now.Add(time.Hour)})
		require.NoError(t, state.Redeem(d, state.RedeemRequest{Token: protocol.TokenID{b}, Secret: protocol.TokenSecret{b}, WireGuardKey: protocol.WireGuardPublicKey{b}, IdentityKey: protocol.IdentityPublicKey{b}, Name: string(rune('a' + b))}))
	}
	d.Seq = 9
	require.NoError(t, state.PutObject(d, protocol.ItemLimit, "l", json.RawMessage(`{"site":"a","packets":1}`)))
	o := d.Objects.Get(state.ObjectKey{Kind: protocol.ItemLimit, Name: "l"})
	version := func(epoch, v uint64) protocol.NetmapVersion { return protocol.NetmapVersion{Epoch: epoch, Version: v} }
	s := Snapshot{}
	for n, x := range map[protocol.NodeNumber]Node{
		2: {Acked: version(3, 10)},
		3: {Acked: version(3, 9)},
		4: {Acked: version(3, 12), Refused: []protocol.RefusedPart{{Kind: protocol.ItemLimit, Name: "l", Reason: "no"}}},
		5: {Acked: version(2, 99)},
	} {
		s.Nodes.Set(n, &x)
	}
	have, lack := s.Has(d.State, o)
	require.Equal(t, []protocol.NodeNumber{2}, have)
	require.Equal(t, []protocol.NodeNumber{3, 4, 5, 6}, lack)
}
