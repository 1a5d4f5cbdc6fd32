package join

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/state"
	"causeway/internal/durable"
	"causeway/protocol"
)

// A hub key that is rotated keeps the old one beside it; a crash between the two
// writes leaves the hub with the key that it had.
func TestRotateHubKey(t *testing.T) {
	dir := t.TempDir()
	_, _, err := RotateHubKey(dir, time.Hour)
	require.ErrorContains(t, err, "missing")
	before, err := LoadKeys(dir, true)
	require.NoError(t, err)
	was, err := os.ReadFile(filepath.Join(dir, HubKeyFile))
	require.NoError(t, err)
	pub, _, err := RotateHubKey(dir, time.Hour)
	require.NoError(t, err)
	after, err := LoadKeys(dir, false)
	require.NoError(t, err)
	require.Equal(t, pub, after.Hub.Public())
	require.Equal(t, before.Hub, after.Old)
	require.True(t, after.OldUntil.After(time.Now()))
	require.True(t, after.names(before.Hub.Public()), "it is the same hub")
	require.Equal(t, before.Cluster, after.Cluster)

	require.NoError(t, os.WriteFile(filepath.Join(dir, HubKeyFile), was, 0o600)) // as if killed in between
	half, err := LoadKeys(dir, false)
	require.NoError(t, err)
	require.Equal(t, before.Hub, half.Hub)
	require.True(t, half.Old.IsZero())

	require.NoError(t, after.DropOld(dir))
	require.NoFileExists(t, filepath.Join(dir, oldKeyFile))
	require.NoError(t, os.WriteFile(filepath.Join(dir, oldKeyFile), []byte("{"), 0o600))
	_, err = LoadKeys(dir, false)
	require.ErrorContains(t, err, "no file of an old key")
}

// Rotated again before a hub started, the key that agents know stays the old one, and is no longer good
// than was said; whatever a crash leaves, the hub is still known.
func TestRotateHubKeyAgain(t *testing.T) {
	dir := t.TempDir()
	before, err := LoadKeys(dir, true)
	require.NoError(t, err)
	first, until, err := RotateHubKey(dir, time.Hour)
	require.NoError(t, err)
	made, err := os.ReadFile(filepath.Join(dir, HubKeyFile))
	require.NoError(t, err)
	second, again, err := RotateHubKey(dir, 2*time.Hour)
	require.NoError(t, err)
	require.NotEqual(t, first, second)
	require.True(t, until.Equal(again), "an overlap is not made longer")
	k, err := LoadKeys(dir, false)
	require.NoError(t, err)
	require.Equal(t, second, k.Hub.Public())
	require.Equal(t, before.Hub, k.Old)
	require.True(t, k.names(before.Hub.Public()))
	require.True(t, k.names(first), "a hub that crashed right after its start may have published it")
	third, again, err := RotateHubKey(dir, 0)
	require.NoError(t, err)
	require.False(t, again.After(time.Now()), "it may be made shorter")
	k, err = LoadKeys(dir, false)
	require.NoError(t, err)

	require.NoError(t, os.WriteFile(filepath.Join(dir, HubKeyFile), made, 0o600)) // as if killed in between
	half, err := LoadKeys(dir, false)
	require.NoError(t, err)
	require.Equal(t, first, half.Hub.Public())
	require.Equal(t, before.Hub, half.Old)

	require.NoError(t, durable.WriteFile(filepath.Join(dir, HubKeyFile), []byte(k.Hub.Secret()+"\n")))
	require.NoError(t, k.Published(dir))
	fourth, _, err := RotateHubKey(dir, time.Hour)
	require.NoError(t, err)
	k, err = LoadKeys(dir, false)
	require.NoError(t, err)
	require.Equal(t, fourth, k.Hub.Public())
	require.Equal(t, third, k.Old.Public(), "after a start the key that was published is the old one")
	require.False(t, k.names(before.Hub.Public()))
	for range maxReplaced {
		_, _, err = RotateHubKey(dir, time.Hour)
		require.NoError(t, err)
	}
	was, err := os.ReadFile(filepath.Join(dir, HubKeyFile))
	require.NoError(t, err)
	_, _, err = RotateHubKey(dir, time.Hour)
	require.ErrorContains(t, err, "start it first")
	is, err := os.ReadFile(filepath.Join(dir, HubKeyFile))
	require.NoError(t, err)
	require.Equal(t, was, is)
}

// A restored hub's list goes before any that the lost hub signed after the backup.
func TestListAfterRestore(t *testing.T) {
	key, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	d := &state.Draft{State: state.New(), Now: time.Now()}
	require.NoError(t, d.Add(state.ClusterCreated{Cluster: key.Public(), Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4}}))
	require.NoError(t, d.Add(state.HubAdded{Number: 1}))
	h := protocol.Hub{Number: 1, WireGuardKey: protocol.WireGuardPublicKey{9}, UDP: []string{"192.0.2.1:1"}, HTTPS: []string{"192.0.2.1:2"}}
	require.NoError(t, signList(d, key, h))
	require.NoError(t, signList(d, key, h), "nothing new")
	require.Equal(t, uint64(1), d.Hubs.Serial)
	require.NoError(t, d.Add(state.Restored{Epoch: 2, NextNumber: 10}))
	require.NoError(t, signList(d, key, h))
	require.Equal(t, uint64(1)<<32, d.Hubs.Serial)
	require.NoError(t, signList(d, key, h), "once")
	require.Equal(t, uint64(1)<<32, d.Hubs.Serial)
	wide := []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6}
	require.Error(t, d.Add(state.OverlayWidened{Overlay: wide}), "nodes have no address of another family")
}

// A list says the overlay as it has grown.
func TestListAfterTheOverlayGrew(t *testing.T) {
	key, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	d := &state.Draft{State: state.New(), Now: time.Now()}
	require.NoError(t, d.Add(state.ClusterCreated{Cluster: key.Public(), Epoch: 1, Overlay: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24")}}))
	require.NoError(t, d.Add(state.HubAdded{Number: 1}))
	h := protocol.Hub{Number: 1, WireGuardKey: protocol.WireGuardPublicKey{9}, UDP: []string{"192.0.2.1:1"}, HTTPS: []string{"192.0.2.1:2"}}
	require.NoError(t, signList(d, key, h))
	wide := []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")}
	require.NoError(t, d.Add(state.OverlayWidened{Overlay: wide}))
	require.NoError(t, signList(d, key, h))
	require.Equal(t, wide, d.Hubs.Overlay)
	require.Equal(t, uint64(2), d.Hubs.Serial)
}
