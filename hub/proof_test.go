package hub

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/protocol"
	"causeway/tunnel/mux"
)

// stranger is somebody on a node's host: he has the node's overlay address, its statement,
// which stands in every peer's netmap, and no key.
type stranger struct {
	t *testing.T
	w *world
	h *host
}

// says opens a session, says hello and then what follows, and returns the first answer to each.
func (s stranger) says(hello protocol.Hello, then ...protocol.Message) []protocol.Message {
	s.t.Helper()
	hub, err := s.h.hubs.Hubs[0].Number.Overlay(s.h.hubs.Overlay[0])
	require.NoError(s.t, err)
	c, err := s.w.tun.Dial(s.t.Context(), s.h.answer.Overlay[0], hub)
	require.NoError(s.t, err)
	m, err := mux.Client(c)
	require.NoError(s.t, err)
	defer m.Close()
	st, err := m.Open(s.t.Context(), protocol.StreamHeader{Kind: protocol.StreamControl})
	require.NoError(s.t, err)
	first, err := protocol.NewMessage(protocol.KindHello, hello)
	require.NoError(s.t, err)
	var out []protocol.Message
	for _, say := range append([]protocol.Message{first}, then...) {
		if protocol.WriteFrame(st, say, protocol.MaxToHub) != nil {
			break
		}
		st.SetReadDeadline(time.Now().Add(patience))
		var got protocol.Message
		if protocol.ReadFrame(st, &got, protocol.MaxToAgent) != nil {
			break
		}
		out = append(out, got)
	}
	return out
}

func (s stranger) hello() protocol.Hello {
	return protocol.Hello{AgentVersion: "stranger", Statement: protocol.NodeStatement{Number: s.h.answer.Number, WireGuardKey: s.h.wg.Public(), Epoch: protocol.FirstKeyEpoch}.Sign(s.h.id)}
}

func kinds(l []protocol.Message) (out []string) {
	for _, m := range l {
		k := string(m.Kind)
		var e protocol.Error
		if m.Kind == protocol.KindError && m.Decode(&e) == nil {
			k = e.Code
		}
		out = append(out, k)
	}
	return out
}

// refused checks that a stranger heard no more than this: the hub ends the connection, and what it
// said last may be lost with that.
func refused(t *testing.T, most, got []string, how string) {
	t.Helper()
	require.Subset(t, most, got, how)
}

func leaves(t *testing.T) protocol.Message {
	m, err := protocol.NewMessage(protocol.KindLeave, struct{}{})
	require.NoError(t, err)
	return m
}

func (w *world) node(name string) (n api.Node) {
	w.must("GET", "/v1/nodes/"+name, nil, &n)
	return n
}

// Whoever does not prove a node's identity is nobody: no welcome, no leave, nothing of his
// hello is kept, and the node's session goes on. Also after the hub's restart.
func TestOnlyTheKeyIsTheNode(t *testing.T) {
	dir := t.TempDir()
	w := start(t, dir)
	w.site("a")
	h := joined(t, w, "one", api.TokenSpec{Site: "a"})
	require.False(t, w.node("one").Unproven)
	a := w.dial(h, nil)
	a.until("a netmap", func(protocol.Netmap) bool { return true })
	a.ready()
	try := func(w *world) {
		s := stranger{t, w, h}
		refused(t, []string{protocol.ErrorUnproven}, kinds(s.says(s.hello(), leaves(t))), "as an agent of the version before")
		hello := s.hello()
		hello.Routes = prefixes("10.66.0.0/16")
		hello.Vouch = protocol.Vouch(1, h.answer.Number, protocol.BootID{}, newHost(t).id)
		refused(t, []string{protocol.ErrorUnproven}, kinds(s.says(hello, leaves(t))), "vouched by another key")
		hello.Vouch = protocol.Vouch(2, h.answer.Number, protocol.BootID{}, h.id)
		refused(t, []string{protocol.ErrorUnproven}, kinds(s.says(hello, leaves(t))), "vouched for another hub")
		// Even with what the agent once sent: it is of another session.
		hello.Vouch = protocol.Vouch(1, h.answer.Number, protocol.BootID{}, h.id)
		c := protocol.Challenge{Nonce: make([]byte, protocol.ChallengeNonce), Hub: 1}
		old, err := protocol.NewMessage(protocol.KindProof, c.Prove(h.answer.Number, nil, h.id))
		require.NoError(t, err)
		refused(t, []string{"challenge", protocol.ErrorUnproven}, kinds(s.says(hello, old, leaves(t))), "a proof of another session")
		refused(t, []string{"challenge", protocol.ErrorUnproven}, kinds(s.says(hello, leaves(t), leaves(t))), "no proof")
		n := w.node("one")
		require.Empty(t, n.Routes)
		require.Equal(t, api.NodeReady, n.State)
	}
	try(w)
	select {
	case <-a.ended:
		t.Fatal("the node's session ended")
	default:
	}
	w.stop()
	w = start(t, dir)
	a = w.dial(h, nil)
	a.ready()
	require.Eventually(t, func() bool { return w.node("one").State == api.NodeReady }, patience, 5*time.Millisecond)
	try(w)
}

// An agent of the version before is taken until its node proves itself, and its leave is but a
// wish. With require-proof it is not taken at all, and a node that joins by
// an agent which can prove never needs that.
func TestAgentsOfTheVersionBefore(t *testing.T) {
	dir := t.TempDir()
	w := start(t, dir)
	w.site("a")
	h := joinedBefore(t, w, "old")
	s := stranger{t, w, h}
	a := w.dial(h, oldWay)
	a.until("a netmap", func(protocol.Netmap) bool { return true })
	require.True(t, w.node("old").Unproven)
	a.send(protocol.KindLeave, struct{}{})
	<-a.ended
	require.True(t, a.left, "it is told that it may go")
	require.NotEqual(t, api.NodeLeft, w.node("old").State)
	a = w.dial(h, oldWay) // and there it is again
	a.until("a netmap", func(protocol.Netmap) bool { return true })
	up := w.dial(h, nil) // upgraded
	up.until("a netmap", func(protocol.Netmap) bool { return true })
	<-a.ended
	refused(t, []string{protocol.ErrorUnproven}, kinds(s.says(s.hello())), "while that session is there")
	up.m.Close()
	require.Eventually(t, func() bool { return w.node("old").Connected.IsZero() }, patience, time.Millisecond)
	w.dial(h, oldWay).m.Close() // and taken back

	fresh := joined(t, w, "new", api.TokenSpec{Site: "a"})
	require.False(t, w.node("new").Unproven)
	require.Eventually(t, func() bool { return w.tun.Has(fresh.answer.Number) }, patience, time.Millisecond)
	s = stranger{t, w, fresh}
	refused(t, []string{protocol.ErrorUnproven}, kinds(s.says(s.hello())), "before its agent ever ran")

	third := joinedBefore(t, w, "third")
	w.dial(third, oldWay).m.Close()
	w.stop()
	w, err := tryStart(t, dir, func(c *Config) { c.RequireProof = true })
	require.NoError(t, err)
	_, err = w.tryDial(third, oldWay)
	require.ErrorContains(t, err, "upgrade causeway-agent there")
	w.dial(third, nil)
}

// flood opens sessions as somebody else on the host would, all the time, until stop is called,
// which returns how many.
func (s stranger) flood(hello protocol.Hello, workers int) (stop func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	hub, _ := s.h.hubs.Hubs[0].Number.Overlay(s.h.hubs.Overlay[0])
	var wg sync.WaitGroup
	var mu sync.Mutex
	count := 0
	for range workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				c, err := s.w.tun.Dial(ctx, s.h.answer.Overlay[0], hub)
				if err != nil {
					continue
				}
				mu.Lock()
				count++
				mu.Unlock()
				s.flooded(ctx, c, hello)
			}
		})
	}
	return func() int { cancel(); wg.Wait(); return count }
}

func (s stranger) flooded(ctx context.Context, c net.Conn, hello protocol.Hello) {
	defer c.Close()
	m, err := mux.Client(c)
	if err != nil {
		return
	}
	defer m.Close()
	st, err := m.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamControl})
	if err != nil {
		return
	}
	msg, _ := protocol.NewMessage(protocol.KindHello, hello)
	st.SetDeadline(time.Now().Add(time.Second))
	if protocol.WriteFrame(st, msg, protocol.MaxToHub) == nil {
		protocol.ReadFrame(st, &msg, protocol.MaxToAgent)
	}
}

// Hellos without a key use up nothing of the node: its agent comes back at once, time and again.
func TestFloodOfStrangers(t *testing.T) {
	w := start(t, t.TempDir())
	w.site("a")
	h := joinedBefore(t, w, "one") // strangers get farther there
	w.dial(h, nil).m.Close()
	s := stranger{t, w, h}
	empty, silent := s.flood(protocol.Hello{}, 48), s.flood(s.hello(), 48)
	worst := time.Duration(0)
	for range 10 {
		start := time.Now()
		a := w.dial(h, nil)
		a.until("a netmap", func(protocol.Netmap) bool { return true })
		worst = max(worst, time.Since(start))
		a.m.Close()
		<-a.ended
	}
	n := empty() + silent()
	t.Logf("%d hellos of strangers; the agent had its netmap within %.3f s each time", n, worst.Seconds())
	require.Greater(t, n, 100)
	require.Less(t, worst, 2*time.Second)
}
