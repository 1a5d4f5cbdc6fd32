package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

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

	w.fetch = func(_ context.Context, at string, q listQuestion) (protocol.HubListAnswer, error) {
		require.Equal(t, "192.0.2.1:443", at)
		return protocol.HubListAnswer{SignedHubList: good, Fresh: good.Fresh(w.cluster, 2, q.nonce, time.Now())}, nil
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
	require.True(t, w.agent.setHubs(t.Context(), byHand).Taken)
	w.eventually(func() bool { return slices.Contains(walled(), netip.MustParseAddr("198.18.0.9")) }, "the wall is around its hubs, without a netmap")
}

// FuzzHubList: anybody may answer in a hub's place. Nothing but what the cluster
// key signed is taken, and nothing breaks.
func FuzzHubList(f *testing.F) {
	key := protocol.ClusterPrivateKey{1}
	signed, err := protocol.HubList{Version: 1, Serial: 3, Hubs: []protocol.Hub{{Number: 1, WireGuardKey: protocol.WireGuardPublicKey{2}, HTTPS: []string{"192.0.2.1:443"}}}}.Sign(key)
	if err != nil {
		f.Fatal(err)
	}
	b, err := json.Marshal(signed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"payload":"e30="}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := readList(bytes.NewReader(b))
		if err != nil {
			return
		}
		if l, err := s.Open(key.Public().Pin()); err == nil {
			require.Equal(t, signed.Payload, s.Payload, "not what was signed")
			require.Equal(t, uint64(3), l.Serial)
		}
	})
}
