package control

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/liveness"
	"causeway/hub/state"
	"causeway/protocol"
)

// A host with an earlier state of a node is why the node is unreachable, and an event tells of it once.
func TestStraysAreShown(t *testing.T) {
	w := newHelloWorld(t, 1)
	s := w.server
	h := w.hello(0)
	_, err := w.store.Update(t.Context(), "node", "hello", h.announce)
	require.NoError(t, err)
	var n state.Node
	for _, n = range w.store.State().Nodes {
	}
	s.mu.Lock()
	s.node(n.Number).machine = liveness.New(time.Now().Add(-time.Minute))
	s.mu.Unlock()
	require.Equal(t, api.NodeUnreachable, s.Info(n).State)
	before := s.Info(n).Reasons
	from := netip.MustParseAddr("192.0.2.7")
	for range 3 {
		s.NoteStray(n, protocol.NodeAsk{Number: n.Number, Epoch: 1}, from)
	}
	require.NotEqual(t, before, s.Info(n).Reasons)
	require.Contains(t, s.Info(n).Reasons[0], "a host at 192.0.2.7 has this node's identity with key epoch 1")
	require.Len(t, s.Strays(), 1)
	require.Equal(t, uint64(1), s.cfg.Events.Count("node_set_back"))

	s.mu.Lock()
	x := s.strays[n.Number]
	x.At = time.Now().Add(-strayFor)
	s.strays[n.Number] = x
	s.mu.Unlock()
	require.Empty(t, s.Strays(), "it asks no more")
	require.Equal(t, before, s.Info(n).Reasons)
	for i := range protocol.NodeNumber(2 * maxStrays) {
		s.NoteStray(state.Node{Number: i + 10, Name: "x"}, protocol.NodeAsk{}, from)
	}
	require.Len(t, s.strays, maxStrays)
}

// Nodes hear of a change that changes no netmap, those alone whose agents take it, and not twice.
func TestMarksAreTold(t *testing.T) {
	w := newHelloWorld(t, 2)
	s := w.server
	var err error
	s.cfg.Cluster, err = protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	far := map[bool]net.Conn{}
	for i, takes := range []bool{true, false} {
		a, b := net.Pipe()
		t.Cleanup(func() { a.Close(); b.Close() })
		ses := &session{s: s, control: a}
		s.mu.Lock()
		l := s.node(protocol.NodeNumber(i + 2))
		l.session = ses
		if takes {
			l.hello.Features = []string{protocol.FeatureMark}
		}
		s.mu.Unlock()
		far[takes] = b
	}
	heard := func(c net.Conn) *protocol.StateMark {
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		var m protocol.Message
		if protocol.ReadFrame(c, &m, protocol.MaxToAgent) != nil {
			return nil
		}
		var mark protocol.StateMark
		require.Equal(t, protocol.KindMark, m.Kind)
		require.NoError(t, json.Unmarshal(m.Body, &mark))
		return &mark
	}
	s.tellMark()
	first := heard(far[true])
	require.NotNil(t, first)
	require.Equal(t, w.store.State().Seq, first.Sequence)
	require.NoError(t, first.Check(s.cfg.Cluster.Public().Pin()))
	s.tellMark()
	require.Nil(t, heard(far[true]), "nothing is new")
	_, err = w.store.Update(context.Background(), "olga", "a site", func(d *state.Draft) error { return d.Add(state.SiteCreated{Name: "b"}) })
	require.NoError(t, err)
	s.tellMark()
	require.Equal(t, first.Sequence+1, heard(far[true]).Sequence)
	require.Nil(t, heard(far[false]), "an agent of before")
}

// A hub that never had a node may have been set back to before its first, unless it is new: who
// joins is told to come again meanwhile.
func TestHubWithoutNodesWaits(t *testing.T) {
	w := newHelloWorld(t, 0)
	began := w.server.started
	require.False(t, w.server.allHere())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, w.server.Heard(ctx), context.DeadlineExceeded)
	w.server.started = began.Add(-witnessTime)
	require.NoError(t, w.server.Heard(t.Context()), "nobody knew better")
	w.server.started, w.server.cfg.New = began, true
	require.NoError(t, w.server.Heard(t.Context()))
	require.True(t, newHelloWorld(t, 1).server.allHere(), "of nodes whose agents never ran nothing is heard")
}
