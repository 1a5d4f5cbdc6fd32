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

// Cluster is a state without a log: what Fill makes, at the time of second 1000. More is decided on the draft.
func Cluster(t testing.TB, nodes int) *state.Draft {
	t.Helper()
	d := &state.Draft{State: state.New(), Now: time.Unix(1000, 0)}
	require.NoError(t, Fill(d, nodes))
	d.Seq = 10
	return d
}

// Fill decides on a cluster: hub 1, site a with the range 10.1.0.0/16, and so many nodes of it from number 2 on,
// n2 and so on, whose agents ran.
func Fill(d *state.Draft, nodes int) error {
	for _, c := range []state.Change{
		state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4}},
		state.HubAdded{Number: 1}, state.SiteCreated{Name: "a", Ranges: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}},
	} {
		if err := d.Add(c); err != nil {
			return err
		}
	}
	for range nodes {
		n := d.NextNumber
		id, secret, key := protocol.TokenID{byte(n)}, protocol.TokenSecret{byte(n)}, protocol.WireGuardPublicKey{byte(n), 9}
		identity := protocol.IdentityPrivateKey{byte(n), 9}
		hash := secret.Hash()
		if err := d.Add(state.TokenCreated{ID: id, Hash: hash[:], Site: "a", Expires: d.Now.Add(time.Hour)}); err != nil {
			return err
		}
		if err := state.Redeem(d, state.RedeemRequest{Token: id, Secret: secret, Name: fmt.Sprintf("n%d", n), WireGuardKey: key, IdentityKey: identity.Public()}); err != nil {
			return err
		}
		if err := state.Announce(d, n, protocol.NodeStatement{Number: n, WireGuardKey: key, Epoch: protocol.FirstKeyEpoch}.Sign(identity), nil); err != nil {
			return err
		}
	}
	return nil
}
