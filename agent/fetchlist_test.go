package agent

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/hublink"
	"causeway/protocol"
)

// An agent without a control session asks for the hub list, takes what the
// cluster key signed with a higher serial, and nothing else.
func TestListFetched(t *testing.T) {
	w := newWorld(t)
	next := w.list
	next.Serial, next.NotAfter = 2, time.Now().Add(time.Hour)
	next.Hubs = []protocol.Hub{next.Hubs[0]}
	next.Hubs[0].WireGuardKey = protocol.WireGuardPublicKey{5}
	good, err := next.Sign(w.cluster)
	require.NoError(t, err)
	next.Serial = 9
	other, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	forged, err := next.Sign(other)
	require.NoError(t, err)
	w.start()
	refused := func(l protocol.SignedHubList) string {
		taken, why := w.agent.want.TakeHubList(l)
		require.False(t, taken)
		return why
	}
	require.Contains(t, refused(forged), "does not match the pin")
	forged.ClusterKey = w.cluster.Public()
	require.Contains(t, refused(forged), "bad signature")
	w.stop()

	w.fetch = func(_ context.Context, at string, q hublink.ListQuestion) (protocol.HubListAnswer, error) {
		require.Equal(t, "192.0.2.1:443", at)
		return protocol.HubListAnswer{SignedHubList: good, Fresh: good.Fresh(w.cluster, 2, q.Nonce, time.Now())}, nil
	}
	w.start()
	w.eventually(func() bool {
		return w.stored().HubList.ClusterKey == good.ClusterKey && string(w.stored().HubList.Payload) == string(good.Payload)
	}, "stored")
	w.eventually(func() bool { return w.tunnel.hubKey() == protocol.WireGuardPublicKey{5} }, "the tunnel has the new key")
	require.Contains(t, refused(w.first), "lower than 2", "the older list")

	walled := func() []netip.Addr {
		w.host.mu.Lock()
		defer w.host.mu.Unlock()
		return w.host.plan.Wall.Hubs
	}
	next.Serial, next.Hubs = 3, append(next.Hubs, protocol.Hub{Number: 9, WireGuardKey: protocol.WireGuardPublicKey{9}, HTTPS: []string{"192.0.2.9:443"}})
	byHand, err := next.Sign(w.cluster)
	require.NoError(t, err)
	require.True(t, w.agent.answers.setHubs(t.Context(), byHand).Taken)
	w.eventually(func() bool { return slices.Contains(walled(), netip.MustParseAddr("198.18.0.9")) }, "the wall is around its hubs, without a netmap")
}
