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

// Cluster is a state without a log: hub 1, site a with the range 10.1.0.0/16, and so many nodes of it from number 2 on,
// n2 and so on, whose agents ran. More is decided on the draft, whose Now stands at second 1000.
func Cluster(t testing.TB, nodes int) *state.Draft {
	t.Helper()
	d := &state.Draft{State: state.New(), Now: time.Unix(1000, 0)}
	add := func(c state.Change) { t.Helper(); require.NoError(t, d.Add(c)) }
	add(state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4}})
	add(state.HubAdded{Number: 1})
	add(state.SiteCreated{Name: "a", Ranges: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}})
	for range nodes {
		n := d.NextNumber
		id, secret, key := protocol.TokenID{byte(n)}, protocol.TokenSecret{byte(n)}, protocol.WireGuardPublicKey{byte(n), 9}
		identity := protocol.IdentityPrivateKey{byte(n), 9}
		hash := secret.Hash()
		add(state.TokenCreated{ID: id, Hash: hash[:], Site: "a", Expires: d.Now.Add(time.Hour)})
		require.NoError(t, state.Redeem(d, state.RedeemRequest{Token: id, Secret: secret, Name: fmt.Sprintf("n%d", n), WireGuardKey: key, IdentityKey: identity.Public()}))
		require.NoError(t, state.Announce(d, n, protocol.NodeStatement{Number: n, WireGuardKey: key, Epoch: protocol.FirstKeyEpoch}.Sign(identity), nil))
	}
	d.Seq = 10
	return d
}
