package relay

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/underlay"
	"causeway/tunnel/underlay/sock"
)

// heard counts what is delivered for the hub's own device.
type heard struct{ n atomic.Int32 }

func (h *heard) Receive(_ underlay.Source, b []byte, segment int) {
	h.n.Add(int32((len(b) + segment - 1) / segment))
}
func (h *heard) Flush() {}

// place is an address of a node that speaks to the binder by hand.
type place struct {
	t    *testing.T
	d    *reader // the loop that its datagrams come to
	conn *sock.Conn
	keys protocol.ProbeKeys
	got  chan protocol.Probe
}

func newPlace(t *testing.T, d *reader, keys protocol.ProbeKeys) *place {
	c, err := sock.Open(sock.Options{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	require.NoError(t, err)
	p := &place{t: t, d: d, conn: c, keys: keys, got: make(chan protocol.Probe, 16)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := sock.NewBatch(); ; {
			ms, err := c.Read(b)
			if err != nil {
				return
			}
			for _, m := range ms {
				if q, err := protocol.ParseProbe(m.Data); err == nil {
					p.got <- q
				}
			}
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return p
}

func (p *place) receive(b []byte) {
	p.d.batch([]sock.Message{{From: p.conn.LocalAddr(), Data: b, Segment: len(b)}})
}

// confirmation asks for a challenge and returns the answer to it.
func (p *place) confirmation(boot protocol.BootID, nonce uint64) []byte {
	p.t.Helper()
	q := protocol.Probe{Kind: protocol.ProbeHubQuestion, From: 2, To: 1, Boot: boot, Nonce: nonce}
	p.receive(q.Append(nil, &p.keys.Send))
	m := <-p.got
	require.Equal(p.t, protocol.ProbeChallenge, m.Kind)
	q.Kind, q.Stamp, q.Cookie, q.Counter = protocol.ProbeConfirm, m.Stamp, m.Cookie, nonce
	return q.Append(nil, &p.keys.Send)
}

// A node restarts and proves itself over two loops at once. Until OnRestart
// has returned neither loop binds or acknowledges an address of the new run,
// and none delivers what comes from one, the old run's included.
func TestRestartIsToldBeforeAnyLoopDelivers(t *testing.T) {
	hubKey, err := protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	nodeKey, err := protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	keys, err := protocol.NewProbeKeys(nodeKey, hubKey.Public())
	require.NoError(t, err)
	dev, entered, release := &heard{}, make(chan struct{}), make(chan struct{})
	r, err := New(Config{Self: 1, PrivateKey: hubKey, BootID: protocol.BootID{1}, Listen: netip.MustParseAddrPort("127.0.0.1:0"),
		NewReader: func() underlay.Receiver { return dev }, Log: zerolog.Nop(),
		OnRestart: func(protocol.NodeNumber, protocol.BootID) { close(entered); <-release }})
	require.NoError(t, err)
	require.NoError(t, r.SetNodes([]Node{{Number: 2, Key: nodeKey.Public()}}))
	out, err := sock.Open(sock.Options{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	require.NoError(t, err)
	defer out.Close()
	r.conn.Store(out)

	x, y := newPlace(t, r.newReader(nil, out), keys), newPlace(t, r.newReader(nil, out), keys)
	data := func(p *place) {
		p.d.r.newReader(nil, out).batch([]sock.Message{{From: p.conn.LocalAddr(), Data: append([]byte{4, 0, 0, 0}, make([]byte, 60)...), Segment: 64}})
	}
	x.receive(x.confirmation(protocol.BootID{7}, 1))
	require.Equal(t, protocol.ProbeAcknowledge, (<-x.got).Kind)
	data(x)
	require.Equal(t, int32(1), dev.n.Load())

	fromX, fromY := x.confirmation(protocol.BootID{8}, 2), y.confirmation(protocol.BootID{8}, 3)
	ended := make(chan struct{}, 2)
	go func() { x.receive(fromX); ended <- struct{}{} }()
	<-entered
	go func() { y.receive(fromY); ended <- struct{}{} }()
	// In this goroutine: one of require.Never's may deliver after it has returned.
	for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		data(x)
		data(y)
		require.Zero(t, len(x.got)+len(y.got), "an acknowledgement")
		require.Equal(t, int32(1), dev.n.Load(), "delivered")
		require.Nil(t, r.byAddr.get(x.conn.LocalAddr()))
		require.Nil(t, r.byAddr.get(y.conn.LocalAddr()))
	}

	close(release)
	<-ended
	<-ended
	require.Equal(t, protocol.ProbeAcknowledge, (<-x.got).Kind)
	require.Equal(t, protocol.ProbeAcknowledge, (<-y.got).Kind)
	data(x)
	data(y)
	require.Equal(t, int32(3), dev.n.Load())
}
