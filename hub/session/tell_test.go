package session

import (
	"encoding/json"
	"net"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/fleet"
	"causeway/protocol"
	"causeway/tunnel/mux"
)

// What the hub has to say by itself reaches the agent of the session that is meant, and nobody waits for it.
func TestSessionsAreTold(t *testing.T) {
	w := newHelloWorld(t, 2)
	far := map[protocol.NodeNumber]net.Conn{}
	known := map[protocol.NodeNumber]*fleet.Session{}
	for n := protocol.NodeNumber(2); n <= 3; n++ {
		a, b := net.Pipe()
		c, d := net.Pipe()
		t.Cleanup(func() { a.Close(); b.Close(); c.Close(); d.Close() })
		m, err := mux.ServeControl(c)
		require.NoError(t, err)
		ses := &session{s: w.server, control: a, mux: m, known: fleet.NewSession(n, true), log: zerolog.Nop()}
		w.server.link(ses)
		far[n], known[n] = b, ses.known
	}
	heard := func(c net.Conn) (m protocol.Message) {
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		protocol.ReadFrame(c, &m, protocol.MaxToAgent)
		return m
	}
	key, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	mark := w.store.State().Mark(key)
	w.server.TellMark(known[2], mark)
	m := heard(far[2])
	require.Equal(t, protocol.KindMark, m.Kind)
	var got protocol.StateMark
	require.NoError(t, json.Unmarshal(m.Body, &got))
	require.NoError(t, got.Check(key.Public().Pin()))
	require.Equal(t, mark.Sequence, got.Sequence)
	require.Empty(t, heard(far[3]).Kind)

	done := make(chan struct{})
	w.server.Farewell(known[3], func() { close(done) })
	m = heard(far[3])
	var e protocol.Error
	require.NoError(t, m.Decode(&e))
	require.Equal(t, protocol.ErrorRevoked, e.Code)
	<-done // the agent does not hang up: its time is over

	w.server.unlink(w.server.linked(known[2]))
	w.server.TellMark(known[2], mark)
	ended := false
	w.server.Farewell(known[2], func() { ended = true })
	require.True(t, ended, "who has ended needs no farewell")
}
