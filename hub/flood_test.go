package hub

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/protocol"
	"causeway/tunnel"
	"causeway/tunnel/engine/enginetest"
	"causeway/tunnel/mux"
	"causeway/tunnel/netstack"
)

// One agent opens ten thousand streams, none of which it was asked for, behind
// the session's back: frames of yamux of its own making. The first thousand bring
// as much as a stream may before it is read. A join takes a second at most
// meanwhile, and what the hub holds is bounded. (Not over WireGuard, whose devices
// hold more for the packets under way than the hub for the streams.)
func TestStreamFlood(t *testing.T) {
	const streams, fat, joinWithin, bound = 10_000, 1000, time.Second, 16 << 20
	w := start(t, t.TempDir())
	w.site("a")
	h := joinedBefore(t, w, "flood")
	w.dial(h, nil).m.Close()
	spare := make([]*host, 5)
	tokens := make([]protocol.Token, len(spare))
	for i := range spare {
		spare[i], tokens[i] = newHost(t), w.token(api.TokenSpec{Site: "a"})
	}
	before := heap()
	hub, err := h.hubs.Hubs[0].Number.Overlay(h.hubs.Overlay[0])
	require.NoError(t, err)
	c, err := w.tun.Dial(t.Context(), h.answer.Overlay[0], hub)
	require.NoError(t, err)
	defer c.Close()
	resets, welcomed := make(chan int, 1), make(chan struct{})
	go func() { // counts what the hub refuses, and reads so that it may go on
		n, head := 0, make([]byte, 12)
		var once sync.Once
		for {
			if _, err := io.ReadFull(c, head); err != nil {
				resets <- n
				return
			}
			if head[1] == 0 { // data
				if binary.BigEndian.Uint32(head[8:]) > 0 {
					once.Do(func() { close(welcomed) })
				}
				io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(head[8:])))
			}
			if binary.BigEndian.Uint16(head[2:])&8 != 0 {
				n++
			}
		}
	}()
	worst, most := time.Duration(0), int64(0)
	// yamux's frame: version, type data, flags, stream, length
	// (github.com/hashicorp/yamux, spec.md).
	frame := func(flags, stream uint32, body []byte) {
		head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, flags), stream), uint32(len(body)))
		c.SetWriteDeadline(time.Now().Add(patience))
		_, err := c.Write(append(head, body...))
		require.NoError(t, err, "stream %d", stream)
	}
	message := func(kind protocol.MessageKind, body any) []byte {
		m, err := protocol.NewMessage(kind, body)
		require.NoError(t, err)
		var b bytes.Buffer
		require.NoError(t, protocol.WriteFrame(&b, m, protocol.MaxToHub))
		return b.Bytes()
	}
	const syn = 1
	var header bytes.Buffer
	// It is a node in good standing meanwhile.
	require.NoError(t, protocol.WriteFrame(&header, protocol.StreamHeader{Version: 1, Kind: protocol.StreamControl}, protocol.MaxStreamHeader))
	frame(syn, 1, header.Bytes())
	frame(0, 1, message(protocol.KindHello, protocol.Hello{AgentVersion: "flood", Statement: protocol.NodeStatement{Number: h.answer.Number, WireGuardKey: h.wg.Public(), Epoch: protocol.FirstKeyEpoch}.Sign(h.id)}))
	select {
	case <-welcomed: // strangers may send less
	case <-time.After(patience):
		require.Fail(t, "no welcome")
	}
	header.Reset()
	require.NoError(t, protocol.WriteFrame(&header, protocol.StreamHeader{Version: 1, Kind: "nonsense"}, protocol.MaxStreamHeader))
	garbage := append(header.Bytes(), bytes.Repeat([]byte{0xff}, 256<<10-header.Len())...)
	for i := range streams {
		body := garbage[:header.Len()]
		if i < fat {
			body = garbage
		}
		frame(syn, uint32(2*i+3), body)
		if i%100 == 0 {
			frame(0, 1, message(protocol.KindStatus, protocol.Status{}))
		}
		if i%(streams/len(spare)) == streams/len(spare)/20 {
			k := i / (streams / len(spare))
			start := time.Now()
			require.Nil(t, spare[k].join(t, tokens[k], fmt.Sprintf("join-%d", k), nil).Refused)
			worst = max(worst, time.Since(start))
		}
		if i%500 == 499 {
			most = max(most, heap()-before)
		}
	}
	require.LessOrEqual(t, worst, joinWithin)
	require.Less(t, most, int64(bound))
	c.Close()
	refused := <-resets
	var left int64
	if left = heap() - before; os.Getenv("CAUSEWAY_SOAK") != "" { // it takes mux.ServeControl's 2 s
		require.Eventually(t, func() bool { left = heap() - before; return left < 4<<20 }, patience, 100*time.Millisecond, "the heap is as it was")
	}
	t.Logf("%d streams opened by one agent, %d with 256 KB each: %d reset at once; %d joins took %.3f s at most; the hub and the flood held %d MB more at most, %d KB afterwards",
		streams, fat, refused, len(spare), worst.Seconds(), most>>20, left>>10)
	require.Greater(t, refused, streams/2)
}

// Every door of the hub behind the tunnel that takes a length is told 4 GiB, and
// every one that takes JSON a million brackets. The hub holds nothing for it, says what
// is wrong or hangs up, and answers the next agent.
func TestLengthsAndDepths(t *testing.T) {
	w := start(t, t.TempDir())
	w.site("a")
	h := joined(t, w, "n", api.TokenSpec{Site: "a"})
	huge := []byte{0xff, 0xff, 0xff, 0xff}
	deep := func(limit int, before, after string) []byte {
		n := (limit - len(before) - len(after)) &^ 1
		text := before + string(bytes.Repeat([]byte("["), n/2)) + string(bytes.Repeat([]byte("]"), n/2)) + after
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
	}
	body := func(kind protocol.MessageKind) []byte {
		return deep(protocol.MaxToHub, fmt.Sprintf(`{"v":1,"kind":%q,"body":`, kind), "}")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	raw := func() *mux.Session { // a session that has said nothing
		hub, err := h.hubs.Hubs[0].Number.Overlay(h.hubs.Overlay[0])
		require.NoError(t, err)
		var c net.Conn
		require.Eventually(t, func() bool { c, err = w.tun.Dial(ctx, h.answer.Overlay[0], hub); return err == nil }, patience, 5*time.Millisecond)
		m, err := mux.Client(c)
		require.NoError(t, err)
		t.Cleanup(func() { m.Close() })
		return m
	}
	open := func(m *mux.Session, kind protocol.StreamKind) net.Conn {
		st, err := m.Open(ctx, protocol.StreamHeader{Kind: kind})
		require.NoError(t, err)
		return st
	}
	welcomed := func(kind protocol.StreamKind) net.Conn {
		a := w.dial(h, nil)
		if kind == protocol.StreamControl {
			return a.control
		}
		return open(a.m, kind)
	}
	// session is a connection on which a header comes first, its first stream open.
	session := func() (net.Conn, func([]byte)) {
		hub, err := h.hubs.Hubs[0].Number.Overlay(h.hubs.Overlay[0])
		require.NoError(t, err)
		c, err := w.tun.Dial(ctx, h.answer.Overlay[0], hub)
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		go io.Copy(io.Discard, c)
		return c, func(b []byte) {
			frame := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 1}, 1), uint32(len(b)))
			c.SetWriteDeadline(time.Now().Add(patience))
			c.Write(append(frame, b...))
		}
	}
	w.dial(h, nil).m.Close() // what the first one needs is there
	for _, c := range []struct {
		door string
		try  func() net.Conn // has sent it; nil: nothing is to be read
	}{
		{"length of a stream's header", func() net.Conn { _, send := session(); send(huge); return nil }},
		{"length of a hello", func() net.Conn { c := open(raw(), protocol.StreamControl); c.Write(huge); return c }},
		{"length of a message", func() net.Conn { c := welcomed(protocol.StreamControl); c.Write(huge); return nil }},
		{"length of a NATS payload", func() net.Conn {
			c := welcomed(protocol.StreamNATS)
			fmt.Fprintf(c, "CONNECT {}\r\nPUB causeway.v1.inventory.a.2.full 4294967296\r\n")
			return c
		}},
		{"length of a NATS line", func() net.Conn {
			c := welcomed(protocol.StreamNATS)
			c.Write(bytes.Repeat([]byte("CONNECT "), 4096))
			return c
		}},
		{"depth of a stream's header", func() net.Conn {
			_, send := session()
			send(deep(protocol.MaxStreamHeader, `{"v":1,"kind":`, "}"))
			return nil
		}},
		{"depth of a hello", func() net.Conn {
			c := open(raw(), protocol.StreamControl)
			c.Write(body(protocol.KindHello))
			return c
		}},
		{"depth of a status", func() net.Conn { c := welcomed(protocol.StreamControl); c.Write(body(protocol.KindStatus)); return nil }},
		{"depth of an acknowledgement", func() net.Conn {
			c := welcomed(protocol.StreamControl)
			c.Write(body(protocol.KindNetmapAck))
			return nil
		}},
		{"depth of a NATS CONNECT", func() net.Conn {
			c := welcomed(protocol.StreamNATS)
			fmt.Fprintf(c, "CONNECT {\"name\":%s}\r\n", bytes.Repeat([]byte("["), 3900))
			return c
		}},
	} {
		before := heap()
		start := time.Now()
		st := c.try()
		if st != nil { // an error's frame or an INFO line, and then the end
			st.SetReadDeadline(time.Now().Add(patience))
			_, err := io.Copy(io.Discard, io.LimitReader(st, 64<<10))
			require.False(t, errors.Is(err, os.ErrDeadlineExceeded), "%s: the stream stays open", c.door)
		}
		next := w.dial(h, nil)
		next.until(c.door, func(protocol.Netmap) bool { return true })
		next.m.Close()
		took := time.Since(start)
		var more int64
		require.Eventually(t, func() bool { more = heap() - before; return more < 8<<20 }, patience, 50*time.Millisecond, c.door)
		t.Logf("%s: the next agent has its netmap %d ms later, %d KB more held", c.door, took.Milliseconds(), more>>10)
	}
}

// An agent comes back a thousand times (a hundred in a short run), as fast as it
// can, over its own WireGuard session, and leaves nothing at either side: both are in
// this process.
func TestReconnectsLeaveNothing(t *testing.T) {
	count := 100
	if os.Getenv("CAUSEWAY_SOAK") != "" {
		count = 1000
	}
	network := enginetest.NewNetwork()
	w := startStackHub(t, network, netstack.DefaultSilentAfter, tunnel.HubIdleAfter)
	w.site("a")
	h := joined(t, w, "n", api.TokenSpec{Site: "a"})
	s := newStack(t, network, h)
	defer s.stop()
	welcome, refused := 0, 0
	connect := func() {
		ctx, done := context.WithTimeout(context.Background(), patience)
		defer done()
		a, err := sayHello(ctx, t, h, s.dial(), nil)
		if err != nil { // says hello too often, or the sessions before it have not ended yet
			refused++
		} else {
			welcome++
			a.until("a netmap", func(protocol.Netmap) bool { return true })
		}
		if a != nil {
			a.m.Close()
			<-a.ended
		}
	}
	connect()
	settled := func() (goroutines, files int) {
		e, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return runtime.NumGoroutine(), len(e)
	}
	// Idle connections of HTTP clients end meanwhile; what is there after a while is the measure.
	var g0, f0 int
	require.Eventually(t, func() bool {
		g, f := settled()
		still := g == g0 && f == f0
		g0, f0 = g, f
		return still
	}, patience, 300*time.Millisecond)
	start := time.Now()
	for range count {
		connect()
	}
	took := time.Since(start)
	var g, f int
	require.Eventually(t, func() bool { g, f = settled(); return g <= g0 && f <= f0 }, 3*patience, 100*time.Millisecond, "as before")
	t.Logf("%d reconnects in %.1f s, %d welcomed and %d refused as too frequent: %d goroutines before, %d after; %d descriptors before, %d after", count, took.Seconds(), welcome-1, refused, g0, g, f0, f)
	require.Positive(t, refused)
	require.Greater(t, welcome, 10)
}
