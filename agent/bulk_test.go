package agent

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// bulk is the connection that the agent opens when its hub asks by c.
func (h *hubEnd) bulk(c protocol.Challenge) net.Conn {
	h.w.t.Helper()
	h.send(protocol.KindBulk, c)
	select {
	case conn := <-h.w.bulks:
		h.w.t.Cleanup(func() { conn.Close() })
		id, err := h.w.store.Identity()
		require.NoError(h.w.t, err)
		var p protocol.BulkProof
		conn.SetDeadline(time.Now().Add(wait))
		require.NoError(h.w.t, protocol.ReadFrame(conn, &p, protocol.MaxProof))
		require.True(h.w.t, p.Proves(c, 2, id.IdentityKey.Public()))
		return conn
	case <-time.After(wait):
		h.w.t.Fatal("the agent opens no connection")
		return nil
	}
}

func challenge(nonce byte, hub protocol.NodeNumber) protocol.Challenge {
	return protocol.Challenge{Nonce: bytes.Repeat([]byte{nonce}, protocol.ChallengeNonce), Hub: hub, Boot: protocol.BootID{9}}
}

func hungUp(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(wait))
	_, err := io.Copy(io.Discard, c)
	require.NoError(t, err)
}

// A hub asks for connections for long answers, each for one answer; the agent opens them to that hub
// alone, no more than eight at once, and they end with the session.
func TestBulk(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	h := w.session()
	require.Contains(t, h.hello.Features, protocol.FeatureBulk)

	c := h.bulk(challenge(1, 1))
	_, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n", protocol.DebugStatus)
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Contains(t, string(b), `"number":2`)
	hungUp(t, c)

	h.send(protocol.KindBulk, challenge(2, 7)) // of a hub that this session is not with: no connection
	h.send(protocol.KindBulk, "what?")
	var e protocol.Error
	h.next(protocol.KindError, &e)
	require.Equal(t, protocol.ErrorBadMessage, e.Code)

	var open []net.Conn
	for i := range 8 {
		open = append(open, h.bulk(challenge(byte(3+i), 1)))
	}
	h.send(protocol.KindBulk, challenge(20, 1))
	h.next(protocol.KindError, &e)
	require.Equal(t, "more than 8 long answers at once", e.Message)
	require.Equal(t, uint64(1), h.give(testNetmap(1, testPeer(3))).Version, "netmaps go on")
	open[0].Close()
	w.eventually(func() bool { // there is room for one more
		h.send(protocol.KindBulk, challenge(21, 1))
		select {
		case open[0] = <-w.bulks:
			var p protocol.BulkProof
			return protocol.ReadFrame(open[0], &p, protocol.MaxProof) == nil
		case <-h.msgs: // a refusal, or a status
			return false
		}
	}, "room")
	h.m.Close()
	for _, c := range open {
		hungUp(t, c)
	}
}
