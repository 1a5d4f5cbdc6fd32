package desired

import (
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/agent/clock"
	"causeway/agent/config"
	"causeway/agent/health"
	"causeway/agent/identity"
	"causeway/protocol"
)

// world is a node that has joined.
type world struct {
	*Desired
	store   *identity.Store
	cluster protocol.ClusterPrivateKey
	list    protocol.HubList
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{}
	var err error
	w.store, err = identity.Create(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	t.Cleanup(func() { w.store.Close() })
	w.cluster, err = protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	key, err := protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	own, err := protocol.NewIdentityPrivateKey()
	require.NoError(t, err)
	w.list = protocol.HubList{Version: 1, Serial: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4},
		Hubs: []protocol.Hub{{Number: 1, WireGuardKey: protocol.WireGuardPublicKey{1}, UDP: []string{"192.0.2.1:51820"}, HTTPS: []string{"192.0.2.1:443"}}}}
	require.NoError(t, w.store.SaveIdentity(identity.Identity{Number: 2, Name: "n2", Site: "s", Overlay: []netip.Addr{netip.MustParseAddr("198.18.0.2")},
		WireGuardKey: key, IdentityKey: own, KeyEpoch: 1, Pin: w.cluster.Public().Pin(), HubList: w.signed(t, 1)}))
	w.start(t)
	return w
}

// start begins another run on what is stored.
func (w *world) start(t *testing.T) {
	t.Helper()
	id, err := w.store.Identity()
	require.NoError(t, err)
	board := health.New(time.Now(), func(protocol.Condition) {}, health.Spec{Name: health.State}, health.Spec{Name: health.HubList})
	w.Desired, err = New(Config{Store: w.store, Own: identity.NewOwn(w.store, id, nil), Live: config.NewLive(config.Default()), Board: board, Log: zerolog.Nop(), Wall: time.Now, Boot: clock.ThisBoot})
	require.NoError(t, err)
}

func (w *world) signed(t *testing.T, serial uint64) protocol.SignedHubList {
	t.Helper()
	l := w.list
	l.Serial = serial
	s, err := l.Sign(w.cluster)
	require.NoError(t, err)
	return s
}

func netmap(version uint64) protocol.Netmap {
	return protocol.Netmap{NetmapVersion: protocol.NetmapVersion{Epoch: 1, Version: version}, Self: protocol.NetmapSelf{Number: 2}}
}

// Whoever stores a netmap or the pins meanwhile, the newest are on disk in the end.
func TestNewestIsStored(t *testing.T) {
	w := newWorld(t)
	for v := uint64(1); v <= 150; v++ {
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for range 2 { // an age that is stored now and then, and a disk with room again
			wg.Go(func() {
				<-begin
				w.SaveAgain()
			})
		}
		close(begin)
		_, refusal := w.Take(netmap(v))
		require.Nil(t, refusal)
		require.NoError(t, w.Save())
		pins := map[protocol.NodeNumber]identity.Pin{3: {Epoch: uint32(v)}}
		require.NoError(t, w.Learn(pins))
		wg.Wait()
		stored, err := w.store.Netmap()
		require.NoError(t, err)
		require.Equal(t, v, stored.Netmap.Version)
		kept, err := w.store.Pins()
		require.NoError(t, err)
		require.Equal(t, pins, kept)
	}
}

// Of hub lists that come at once the newest is held, in memory and on disk.
func TestNewestHubListIsHeld(t *testing.T) {
	w := newWorld(t)
	watch := w.WatchHubs()
	for serial := uint64(2); serial < 100; serial += 2 {
		var wg sync.WaitGroup
		for _, l := range []protocol.SignedHubList{w.signed(t, serial), w.signed(t, serial+1)} {
			wg.Go(func() { w.TakeHubList(l) })
		}
		wg.Wait()
		require.Equal(t, serial+1, w.Now().Hubs.Serial)
		id, err := w.store.Identity()
		require.NoError(t, err)
		stored, err := id.HubList.Open(id.Pin)
		require.NoError(t, err)
		require.Equal(t, serial+1, stored.Serial)
	}
	<-watch
	taken, why := w.TakeHubList(w.signed(t, 99))
	require.False(t, taken)
	require.Empty(t, why, "it is held")
	_, why = w.TakeHubList(w.signed(t, 5))
	require.Equal(t, "serial 5 is lower than 99, which this agent holds", why)
}

// A node that has left takes nothing and stores nothing.
func TestNothingAfterLeave(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, w.Leave())
	_, refusal := w.Take(netmap(1))
	require.Equal(t, []string{"this node has left"}, refusal.Errors)
	_, why := w.TakeHubList(w.signed(t, 2))
	require.Equal(t, "this node has left", why)
	require.NoError(t, w.Save())
	require.False(t, w.SaveAgain())
	require.NoError(t, w.Learn(map[protocol.NodeNumber]identity.Pin{3: {}}))
	stored, err := w.store.Netmap()
	require.NoError(t, err)
	require.Nil(t, stored)
}

// A hub's word and its end: who revoked the node takes it back by a welcome, and what is held is
// stood by as long as the session lasts.
func TestWordOfAHub(t *testing.T) {
	w := newWorld(t)
	require.False(t, w.Welcomed(), "there is nothing to be good again")
	_, refusal := w.Take(netmap(1))
	require.Nil(t, refusal)
	was := w.Now().Held.Confirmed
	require.True(t, w.Wish().Held.Confirmed.After(was), "it stands by it")
	w.SessionEnded()
	was = w.Now().Held.Confirmed
	require.Equal(t, was, w.Wish().Held.Confirmed)
	require.True(t, w.Revoke())
	require.False(t, w.Revoke())
	w.SaveOrTell()
	w.start(t)
	require.True(t, w.Wish().Revoked())
	require.Contains(t, w.Cause(false, nil), "this node was revoked")
	require.True(t, w.Welcomed())
	require.Empty(t, w.Cause(false, nil))
}

func TestMarksOfAnAgent(t *testing.T) {
	w := newWorld(t)
	a := w.Desired
	require.Nil(t, a.Mark())
	mark := func(seq uint64) protocol.StateMark {
		return protocol.StateMark{Epoch: 1, Sequence: seq, Hash: make([]byte, 32), NextNumber: 9}.Sign(w.cluster)
	}
	other, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	a.TakeMark(mark(5).Sign(other))
	require.Nil(t, a.Mark(), "another cluster's")
	a.TakeMark(mark(5))
	a.TakeMark(mark(4))
	require.Equal(t, uint64(5), a.Mark().Sequence, "the newest is kept")
}
