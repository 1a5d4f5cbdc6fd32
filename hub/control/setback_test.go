package control

import (
	"context"
	"encoding/json"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
)

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
		var h protocol.Hello
		if takes {
			h.Features = []string{protocol.FeatureMark}
		}
		ses := &session{s: s, control: a, known: fleet.NewSession(protocol.NodeNumber(i+2), true)}
		s.link(ses)
		w.fleet.Up(ses.known, h)
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
	began := w.fleet.Started()
	require.False(t, w.server.heard(began))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, w.server.Heard(ctx), context.DeadlineExceeded)
	require.False(t, w.server.heard(began.Add(witnessTime-1)))
	require.True(t, w.server.heard(began.Add(witnessTime)), "nobody knew better")
	w.server.cfg.New = true
	require.NoError(t, w.server.Heard(t.Context()))
	require.True(t, newHelloWorld(t, 1).server.heard(time.Now()), "of nodes whose agents never ran nothing is heard")
}
