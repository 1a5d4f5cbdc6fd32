package state_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/state"
	"causeway/hub/state/statetest"
	"causeway/protocol"
)

// What a change costs beside the disk, with 10,000 nodes.
func BenchmarkLargeTransaction(b *testing.B) {
	d := statetest.Large(b)
	n := d.NextNumber
	secret, identity := protocol.TokenSecret{1}, protocol.IdentityPrivateKey{250, 250, 8}
	hash := secret.Hash()
	id := protocol.TokenID{250, 250}
	require.NoError(b, d.Add(state.TokenCreated{ID: id, Hash: hash[:], Site: "site-007", Expires: d.Now.Add(time.Hour), Routes: []netip.Prefix{netip.MustParsePrefix("10.3.254.0/24")}}))
	base := d.State
	base.Time = d.Now
	for _, c := range []struct {
		name   string
		decide func(*state.Draft) error
	}{
		{"label", func(d *state.Draft) error { return state.Label(d, "n77", map[string]string{"rack": "7"}) }},
		{"reject", func(d *state.Draft) error {
			return state.DecideRoute(d, "n607", netip.MustParsePrefix("10.3.134.0/24"), false, "olga")
		}},
		{"approve", func(d *state.Draft) error {
			return state.DecideRoute(d, "n607", netip.MustParsePrefix("10.3.134.0/24"), true, "olga")
		}},
		{"announce", func(d *state.Draft) error {
			return state.AnnounceRoutes(d, 607, []netip.Prefix{netip.MustParsePrefix("10.3.134.0/24"), netip.MustParsePrefix("10.3.253.0/24")})
		}},
		{"join", func(d *state.Draft) error {
			return state.Redeem(d, state.RedeemRequest{Token: id, Secret: secret, Name: fmt.Sprintf("n%d", n), WireGuardKey: protocol.WireGuardPublicKey{250, 250, 8}, IdentityKey: identity.Public(), Proves: true})
		}},
		{"revoke", func(d *state.Draft) error { return state.Remove(d, 607, state.GoneRevoked) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			done := statetest.Processor(b)
			for b.Loop() {
				next, err := state.Transact(base, c.decide)
				require.NoError(b, err)
				require.Equal(b, base.Seq+1, next.Seq)
			}
			done()
		})
	}
}

func BenchmarkLargeSnapshot(b *testing.B) {
	d := statetest.Large(b)
	next, err := state.Transact(d.State, func(d *state.Draft) error { return state.Label(d, "n77", map[string]string{"rack": "7"}) })
	require.NoError(b, err)
	var snapshot []byte
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		done := statetest.Processor(b)
		for b.Loop() {
			snapshot, err = state.EncodeSnapshot(next)
			require.NoError(b, err)
		}
		done()
	})
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		done := statetest.Processor(b)
		for b.Loop() {
			_, err := state.DecodeSnapshot(snapshot)
			require.NoError(b, err)
		}
		done()
	})
}
