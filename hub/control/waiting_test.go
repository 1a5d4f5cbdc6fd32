package control

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/state"
	"causeway/protocol"
)

// A node pays for what it changes in the log, and not for what the log did not take.
func TestChangesAreChargedOnce(t *testing.T) {
	w := newHelloWorld(t, 1)
	half := changesBurst/2 + 1
	for range 100 { // the log is away
		back, ok := w.server.mayStore(2, "n1", announcement{}, half)
		require.True(t, ok)
		back()
	}
	_, ok := w.server.mayStore(2, "n1", announcement{}, half)
	require.True(t, ok)
	for range 2 {
		_, ok = w.server.mayStore(2, "n1", announcement{}, half)
		require.False(t, ok)
		require.True(t, w.server.Late(2))
	}
	_, ok = w.server.mayStore(2, "n1", announcement{}, half-10)
	require.True(t, ok, "what it may not do costs nothing")
	_, ok = w.server.mayStore(2, "n1", announcement{}, changesBurst+1)
	require.False(t, ok)
}

// What waited is not stored over what the node said since, be it that its turn comes later.
func TestTheLastWordIsStored(t *testing.T) {
	w := newHelloWorld(t, 1)
	_, err := w.store.Update(t.Context(), "unix:root", "range", func(d *state.Draft) error {
		return d.Add(state.SiteRanges{Name: "a", Ranges: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}})
	})
	require.NoError(t, err)
	node, _ := w.store.State().NodeByName("n1")
	say := func(route string) announcement {
		h := w.hello(0, route)
		return announcement{announce: h.announce, routes: 1}
	}
	said := func() announcement { return w.server.nodes[node.Number].said }
	w.server.mayStore(node.Number, "n1", say("10.1.1.0/24"), changesBurst+1)
	waits := said()
	require.True(t, waits.late)
	w.server.mayStore(node.Number, "n1", say("10.1.2.0/24"), 2)
	_, ok := w.server.mayStore(node.Number, "n1", waits, 2)
	require.False(t, ok)
	require.NotEqual(t, waits.word, said().word)

	// One that has its turn already, behind somebody else's.
	w.server.nodes[node.Number].said.late = true
	w.server.nodes[node.Number].session, w.server.nodes[node.Number].lastWord = &session{}, time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{}, 2)
	for _, run := range []func(context.Context){w.server.storeWaiting, w.server.recordHellos} {
		go func() { run(ctx); done <- struct{}{} }()
	}
	turn, began := make(chan struct{}), make(chan struct{})
	go w.store.Update(ctx, "unix:root", "slow", func(*state.Draft) error { close(began); <-turn; return nil })
	<-began
	late := func() bool {
		w.server.mu.Lock()
		defer w.server.mu.Unlock()
		return said().late
	}
	require.Eventually(t, func() bool { return !late() }, 10*time.Second, 10*time.Millisecond) // it waits for its turn
	w.server.mayStore(node.Number, "n1", say("10.1.3.0/24"), 2)
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
	w.server.nodes[node.Number].changes.AllowN(time.Now(), changesBurst-2)
	require.ErrorContains(t, say(8, protocol.FirstKeyEpoch+2), "not stored now")
	require.NoError(t, say(7, protocol.FirstKeyEpoch+1), "it goes on")
	require.Equal(t, protocol.WireGuardPublicKey{7, 1}, w.store.State().Nodes[node.Number].WireGuardKey)
}

// The keys that a node ever had are remembered for good, so it gets new ones as often as it may be asked to.
func TestNewKeysAreBounded(t *testing.T) {
	w := newHelloWorld(t, 1)
	w.recording()
	node, _ := w.store.State().NodeByName("n1")
	say := func(key byte, epoch int) error {
		st := protocol.NodeStatement{Number: node.Number, WireGuardKey: protocol.WireGuardPublicKey{key, 2}, Epoch: uint32(epoch)}.Sign(w.ids[0])
		ses := &session{s: w.server, node: node.Number, log: zerolog.Nop()}
		w.server.node(node.Number).own = newBudget()
		_, err := ses.hello(t.Context(), protocol.Hello{Statement: st}, true)
		return err
	}
	for i := range keysBurst {
		require.NoError(t, say(byte(i+1), i+2))
	}
	require.ErrorContains(t, say(99, keysBurst+2), "too often")
	require.NoError(t, say(keysBurst, keysBurst+1), "the key that it has costs nothing")
}

// A session that is silent may be one that its node left for another hub: what it announced is not stored over what
// the node announces there.
func TestSilentSessionsAnnounceNothing(t *testing.T) {
	w := newHelloWorld(t, 1)
	st := w.store.State()
	node, _ := st.NodeByName("n1")
	now, l := time.Now(), w.server.node(node.Number)
	l.session, l.hello.Routes = &session{}, []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}
	l.said = announcement{announce: w.hello(0, "10.1.1.0/24").announce, routes: 1}
	l.lastWord = now.Add(-protocol.StatusInterval)
	require.Empty(t, w.server.dueAnnouncements(st, nil, now))
	l.lastWord = now
	require.Len(t, w.server.dueAnnouncements(st, st, now), 1, "it was silent when the state changed")
	l.said.late = false
	require.Empty(t, w.server.dueAnnouncements(st, st, now))
	require.Len(t, w.server.dueAnnouncements(st, nil, now), 1)
}
