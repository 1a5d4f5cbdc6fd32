package hublink

import (
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"context"
	"errors"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/agent/clock"
	"causeway/agent/config"
	"causeway/agent/desired"
	"causeway/agent/health"
	"causeway/agent/identity"
	"causeway/agent/onhost"
	"causeway/protocol"
	"causeway/tunnel"
)

// noTunnel takes keys, and has no hub that answers.
type noTunnel struct{ Tunnel }

func (noTunnel) SetKeys([]tunnel.OwnKey) error { return nil }
func (noTunnel) EngineName() string            { return "double" }

// world is a Link of a node that has joined, without a hub that answers by the tunnel.
type world struct {
	*Link
	t       *testing.T
	store   *identity.Store
	cluster protocol.ClusterPrivateKey
	list    protocol.HubList
	signed  protocol.SignedHubList
	fetch   ListFetch // nil: no hub answers over HTTPS
}

func newWorld(t *testing.T, now func() time.Time) *world {
	t.Helper()
	w := &world{t: t}
	var err error
	w.store, err = identity.Create(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	t.Cleanup(func() { w.store.Close() })
	w.cluster, err = protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	key, err := protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	ik, err := protocol.NewIdentityPrivateKey()
	require.NoError(t, err)
	w.list = protocol.HubList{Version: 1, Serial: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4},
		Hubs: []protocol.Hub{{Number: 1, WireGuardKey: protocol.WireGuardPublicKey{1}, UDP: []string{"192.0.2.1:51820"}, HTTPS: []string{"192.0.2.1:443"}}}}
	w.signed, err = w.list.Sign(w.cluster)
	require.NoError(t, err)
	id := identity.Identity{Number: 2, Name: "n2", Site: "s", Overlay: []netip.Addr{netip.MustParseAddr("198.18.0.2")}, WireGuardKey: key, IdentityKey: ik, KeyEpoch: 1, Pin: w.cluster.Public().Pin(), HubList: w.signed}
	require.NoError(t, w.store.SaveIdentity(id))
	own, live := identity.NewOwn(w.store, id, nil), config.NewLive(config.Default())
	board := health.New(now(), func(protocol.Condition) {}, health.Spec{Name: health.State}, health.Spec{Name: health.HubList}, health.Spec{Name: health.Keys})
	board.Set(health.HubList, "")
	want, err := desired.New(desired.Config{Store: w.store, Own: own, Live: live, Board: board, Log: zerolog.Nop(), Wall: now, Boot: clock.ThisBoot})
	require.NoError(t, err)
	host, err := onhost.New(onhost.Config{Store: w.store, Own: own, Live: live, Want: want, Board: board, Log: zerolog.Nop(), Now: now})
	require.NoError(t, err)
	w.Link, err = New(Config{Own: own, Live: live, Want: want, Host: host, Board: board, Tunnel: noTunnel{}, Now: now, Log: zerolog.Nop(), Names: NewNames(w.store, nil, zerolog.Nop()),
		Fetch: func(ctx context.Context, at string, q ListQuestion) (protocol.HubListAnswer, error) {
			if w.fetch == nil {
				return protocol.HubListAnswer{}, errors.New("nobody answers")
			}
			return w.fetch(ctx, at, q)
		}})
	require.NoError(t, err)
	return w
}

func (w *world) stored() identity.Identity {
	w.t.Helper()
	id, err := w.store.Identity()
	require.NoError(w.t, err)
	return id
}
