package statetest

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/state"
	"causeway/protocol"
)

// What benchmarks and their targets are for.
const (
	LargeNodes  = 10_000
	LargeSites  = 300
	LargeRoutes = 30_000
)

// Large is a state of 10,000 nodes in 300 sites, with 30,000 approved routes: three of each node, which lie in
// its site's range. Nodes are n2 and so on, node n is of site n%300.
func Large(t testing.TB) *state.Draft {
	t.Helper()
	d := &state.Draft{State: state.New(), Now: time.Unix(1000, 0)}
	add := func(cs ...state.Change) {
		for _, c := range cs {
			require.NoError(t, d.Add(c))
		}
	}
	add(state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6}}, state.HubAdded{Number: 1})
	for i := range LargeSites {
		add(state.SiteCreated{Name: largeSite(i), Ranges: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 1), byte(i&1) << 7, 0}), 17)}})
	}
	for i := range LargeNodes {
		n := d.NextNumber
		site := int(n) % LargeSites
		id, secret, key := protocol.TokenID{byte(n), byte(n >> 8)}, protocol.TokenSecret{byte(n), byte(n >> 8)}, protocol.WireGuardPublicKey{byte(n), byte(n >> 8), 9}
		identity := protocol.IdentityPrivateKey{byte(n), byte(n >> 8), 9}
		hash := secret.Hash()
		add(state.TokenCreated{ID: id, Hash: hash[:], Site: largeSite(site), Expires: d.Now.Add(time.Hour)},
			state.TokenRedeemed{ID: id, Node: n},
			state.NodeJoined{Number: n, Name: fmt.Sprintf("n%d", n), Site: largeSite(site), WireGuardKey: key, IdentityKey: identity.Public(), Token: id, Proves: true},
			state.NodeStated{Statement: protocol.NodeStatement{Number: n, WireGuardKey: key, Epoch: protocol.FirstKeyEpoch}.Sign(identity)})
		for r := range LargeRoutes / LargeNodes {
			at := i/LargeSites*(LargeRoutes/LargeNodes) + r
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(site >> 1), byte(site&1)<<7 | byte(at), 0}), 24)
			k := state.RouteKey{Node: n, Prefix: p} // not by a change, whose check looks at all routes
			d.Routes.Set(k, state.Route{RouteKey: k, State: protocol.RouteApproved, By: state.ByRange, Announced: true})
		}
	}
	d.Seq = 100
	return d
}

func largeSite(i int) string { return fmt.Sprintf("site-%03d", i) }
