package agent

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/debug"
	"causeway/agent/health"
	"causeway/agent/identity"
	"causeway/protocol"
)

// wanted is a netmap that asks for a key of this epoch.
func wanted(version uint64, epoch uint32) protocol.Netmap {
	n := testNetmap(version)
	n.Self.KeyEpoch, n.Self.KeyOverlap = epoch, time.Hour
	return n
}

func (w *world) stored() identity.Identity {
	w.t.Helper()
	id, err := w.store.Identity()
	require.NoError(w.t, err)
	return id
}

// A key that the hub asks for is made, said and taken; the agent may be stopped
// between any two steps, and ends with the key that the hub took.
func TestKeyRotates(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	first := w.stored().WireGuardKey
	h := w.session()
	require.Equal(t, uint32(1), h.hello.Statement.Epoch)
	w.eventually(func() bool { return !w.stored().KeyMade.IsZero() }, "the key's age is noted")
	require.NoError(t, w.agent.own.Change(func(id *identity.Identity) { id.KeyMade = id.KeyMade.Add(-time.Minute) }))
	h.send(protocol.KindNetmap, wanted(1, 2)) // its session may end before an answer
	h = w.dialled()                           // stopped before it heard whether the hub took it
	said := h.hello.Statement
	require.True(t, said.Valid())
	require.Equal(t, uint32(2), said.Epoch)
	require.NotEqual(t, first.Public(), said.WireGuardKey)
	id := w.stored()
	require.Equal(t, first, id.WireGuardKey, "not before a hub took it")
	require.Equal(t, said.WireGuardKey, id.Next.Key.Public())
	require.Len(t, w.tunnel.ownKeys(), 2, "both are good")
	w.stop()

	w.start()
	w.tunnel.setBound(true)
	require.Equal(t, []protocol.WireGuardPublicKey{first.Public(), said.WireGuardKey}, w.tunnel.ownKeys())
	h = w.session()
	require.Equal(t, said, h.hello.Statement, "the same key again")
	w.eventually(func() bool { return w.stored().KeyEpoch == 2 }, "taken")
	id = w.stored()
	require.Equal(t, said.WireGuardKey, id.WireGuardKey.Public())
	require.Equal(t, first, id.Old)
	require.Nil(t, id.Next)
	w.eventually(func() bool { return w.tunnel.ownKeys()[0] == said.WireGuardKey }, "it is the first")
	require.Len(t, w.tunnel.ownKeys(), 2, "the old one is good still")
	h.give(wanted(2, 2))

	// After its overlap the old one goes.
	require.NoError(t, w.agent.own.Change(func(id *identity.Identity) { id.OldUntil = time.Now().Add(-time.Second) }))
	h.give(wanted(3, 2)) // at which keys are looked at
	w.eventually(func() bool { return w.stored().Old.IsZero() && len(w.tunnel.ownKeys()) == 1 }, "the old key is gone")
	require.True(t, w.agent.board.OK(health.Keys))
}

// A hub that does not take the next key is told the present one, and a person is
// told; nothing is lost.
func TestKeyRefused(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	w.session()
	asked := make(chan debug.RotateResult, 1)
	go func() { asked <- w.agent.link.RotateByHand(t.Context(), 0) }()
	h := w.dialled()
	require.Equal(t, uint32(2), h.hello.Statement.Epoch)
	h.send(protocol.KindError, protocol.Error{Code: protocol.ErrorBadMessage, Message: "no such thing"})
	h = w.session()
	require.Equal(t, uint32(1), h.hello.Statement.Epoch)
	require.Contains(t, (<-asked).Error, "no such thing")
	h.give(testNetmap(1))
	w.eventually(func() bool { return !w.agent.board.OK(health.Keys) }, "it is told")
	require.Equal(t, uint32(1), w.stored().KeyEpoch)

	// The hub has taken it after all, and refuses the older epoch.
	h.m.Close()
	h = w.dialled()
	require.Equal(t, uint32(1), h.hello.Statement.Epoch)
	h.send(protocol.KindError, protocol.Error{Code: protocol.ErrorBadMessage, Message: "older than 2"})
	h = w.session()
	require.Equal(t, uint32(2), h.hello.Statement.Epoch)
	w.eventually(func() bool { return w.stored().KeyEpoch == 2 && w.agent.board.OK(health.Keys) }, "taken")
	require.True(t, w.stored().Old.IsZero(), "no overlap was asked for")
}
