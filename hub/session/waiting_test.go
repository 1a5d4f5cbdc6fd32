package session

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
)

// What waited is not stored over what the node said since, be it that its turn comes later.
func TestTheLastWordIsStored(t *testing.T) {
	w := newHelloWorld(t, 1)
	_, err := w.store.Update(t.Context(), "unix:root", "range", func(d *state.Draft) error {
		return d.Add(state.SiteRanges{Name: "a", Ranges: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}})
	})
	require.NoError(t, err)
	node, _ := w.store.State().NodeByName("n1")
	say := func(route string) fleet.Announcement {
		h := w.hello(0, route)
		return fleet.Announcement{Announce: h.announce, Routes: 1}
	}
	w.fleet.Up(fleet.NewSession(node.Number, true), protocol.Hello{})
	late := func() bool {
		st := w.store.State()
		return len(w.fleet.Due(st, st, time.Now())) > 0
	}
	w.fleet.MayStore(node.Number, "n1", say("10.1.1.0/24"), fleet.ChangesBurst+1)
	st := w.store.State()
	waits, ok := w.fleet.Due(st, st, time.Now())[node.Number]
	require.True(t, ok)
	w.fleet.MayStore(node.Number, "n1", say("10.1.2.0/24"), 2)
	_, ok = w.fleet.MayStore(node.Number, "n1", waits, 2)
	require.False(t, ok)
	require.False(t, w.fleet.IsLast(node.Number, waits))
	require.False(t, late())

	// One that has its turn already, behind somebody else's.
	w.fleet.Again(node.Number)
	require.True(t, late())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{}, 2)
	for _, run := range []func(context.Context){w.server.storeWaiting, w.server.recordHellos} {
		go func() { run(ctx); done <- struct{}{} }()
	}
	turn, began := make(chan struct{}), make(chan struct{})
	go w.store.Update(ctx, "unix:root", "slow", func(*state.Draft) error { close(began); <-turn; return nil })
	<-began
	require.Eventually(t, func() bool { return !late() }, 10*time.Second, 10*time.Millisecond) // it waits for its turn
	w.fleet.MayStore(node.Number, "n1", say("10.1.3.0/24"), 2)
	close(turn)
	require.Eventually(t, func() bool { return len(w.store.State().NodeRoutes(node.Number)) > 0 }, 10*time.Second, 10*time.Millisecond)
	cancel()
	<-done
	<-done
	txs, err := w.store.Audit(t.Context(), 0, 100)
	require.NoError(t, err)
	for _, tx := range txs {
		for _, c := range tx.Changes {
			if r, ok := c.(state.RouteAnnounced); ok {
				require.Equal(t, netip.MustParsePrefix("10.1.3.0/24"), r.Prefix)
				require.Equal(t, protocol.RouteApproved, r.State)
			}
		}
	}
}

// recording lets the server of w store hellos until the test ends.
func (w *helloWorld) recording() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { w.server.recordHellos(ctx); close(done) }()
	w.t.Cleanup(func() { cancel(); <-done })
}

// A hello with a new key is welcome once the key is stored, for the agent takes the welcome for that.
func TestNoWelcomeForAKeyThatWaits(t *testing.T) {
	w := newHelloWorld(t, 1)
	w.recording()
	node, _ := w.store.State().NodeByName("n1")
	ses := &session{s: w.server, node: node.Number, log: zerolog.Nop()}
	say := func(key byte, epoch uint32) error {
		st := protocol.NodeStatement{Number: node.Number, WireGuardKey: protocol.WireGuardPublicKey{key, 1}, Epoch: epoch}.Sign(w.ids[0])
		_, err := ses.hello(t.Context(), protocol.Hello{Statement: st}, true)
		return err
	}
	require.NoError(t, say(1, protocol.FirstKeyEpoch))
	require.NoError(t, say(7, protocol.FirstKeyEpoch+1))
	w.fleet.MayStore(node.Number, "n1", fleet.Announcement{}, fleet.ChangesBurst-2)
	require.ErrorContains(t, say(8, protocol.FirstKeyEpoch+2), "not stored now")
	require.NoError(t, say(7, protocol.FirstKeyEpoch+1), "it goes on")
	require.Equal(t, protocol.WireGuardPublicKey{7, 1}, w.store.State().Nodes.Get(node.Number).WireGuardKey)
}

// The keys that a node ever had are remembered for good, so it gets new ones as often as it may be asked to.
func TestNewKeysAreBounded(t *testing.T) {
	w := newHelloWorld(t, 1)
	w.recording()
	node, _ := w.store.State().NodeByName("n1")
	say := func(key byte, epoch int) error {
		st := protocol.NodeStatement{Number: node.Number, WireGuardKey: protocol.WireGuardPublicKey{key, 2}, Epoch: uint32(epoch)}.Sign(w.ids[0])
		ses := &session{s: w.server, node: node.Number, log: zerolog.Nop()}
		_, err := ses.hello(t.Context(), protocol.Hello{Statement: st}, true)
		return err
	}
	for i := range fleet.KeysBurst {
		require.NoError(t, say(byte(i+1), i+2))
	}
	require.ErrorContains(t, say(99, fleet.KeysBurst+2), "too often")
	require.NoError(t, say(fleet.KeysBurst, fleet.KeysBurst+1), "the key that it has costs nothing")
}
