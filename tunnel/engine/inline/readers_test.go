//go:build linux

package inline

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/underlay"
)

// counting is a sink that notes each packet by the number in it.
type counting struct{ seen []atomic.Int32 }

func (c *counting) add(msg []byte, _ bool) {
	c.seen[binary.BigEndian.Uint32(msg[headerSize+minIPv4:])].Add(1)
}
func (c *counting) flush() {}

// Several readers of the underlay may see one session, as packets change
// paths: what was sent once is delivered once, whoever gets its copies.
func TestReadersShareASession(t *testing.T) {
	a, b := stillPair(t, Offloads{VNet: true})
	const n = 4000
	var msgs [][]byte
	for i := range n {
		p := stillPacket(2, 3, 60)
		binary.BigEndian.PutUint32(p[readHead+minIPv4:], uint32(i))
		a.tx.packet(nil, p, readHead, 60)
		a.tx.flush()
		msgs = append(msgs, a.take()...)
	}
	require.Len(t, msgs, n)
	out := &counting{seen: make([]atomic.Int32, n)}
	var wg sync.WaitGroup
	for range 4 {
		r := &reader{e: b.Engine, sink: out}
		wg.Go(func() {
			for _, m := range msgs {
				m = bytes.Clone(m)
				r.Receive(underlay.Source{Peer: 2}, m, len(m))
			}
			r.Flush()
		})
	}
	wg.Wait()
	for i := range out.seen {
		require.EqualValues(t, 1, out.seen[i].Load(), "packet %d", i)
	}
}

// manyPeers gives a an engine with a session to each of active peers among n.
func manyPeers(b *testing.B, n, active int) *still {
	a := newStill(b, 2, Offloads{VNet: true})
	var peers []engine.Peer
	for i := range n {
		k, err := protocol.NewWireGuardPrivateKey()
		if err != nil {
			b.Fatal(err)
		}
		peers = append(peers, engine.Peer{Number: protocol.NodeNumber(i + 10), Key: k.Public(), AllowedIPs: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", 1+i>>8, i&255)),
			netip.MustParsePrefix(fmt.Sprintf("fd00:%x::/32", i+1))}})
	}
	if err := a.SetPeers(peers); err != nil {
		b.Fatal(err)
	}
	for i := range active {
		p := a.numbers[protocol.NodeNumber(i+10)]
		p.begin(newSession(a.machine.index.add(p), &sessionKeys{initiator: true}, a.now()))
	}
	a.carrier = &nowhere{}
	return a
}

// BenchmarkPeers sends packets of 1400 bytes to active peers in turn, 32 at a
// time to each, among many idle ones: the more peers, the more groups are open.
func BenchmarkPeers(b *testing.B) {
	for _, c := range []struct{ n, active int }{{1, 1}, {1010, 10}, {1010, 100}} {
		b.Run(fmt.Sprintf("%d of %d", c.active, c.n), func(b *testing.B) {
			a := manyPeers(b, c.n, c.active)
			p := stillPacket(2, 3, 1400)
			b.SetBytes(1400)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				to := i / 32 % c.active
				copy(p[readHead+16:], []byte{10, byte(1 + to>>8), byte(to), 1})
				a.tx.packet(nil, p, readHead, 1400)
				i++
			}
			b.StopTimer()
			if a.counts.noRoute.Load() > 0 || a.staged.Load() > 0 {
				b.Fatal("packets went elsewhere")
			}
		})
	}
}

// plainStill is a carrier of plain mode: it can answer an address.
type plainStill struct {
	*still
	answers []underlay.Source
}

func (p *plainStill) Answer(to underlay.Source, d []byte) error {
	p.answers = append(p.answers, to)
	return p.Send(0, d, len(d))
}

// In plain mode, where the underlay does not know who sends, the engine says
// where authenticated messages come from, and answers an address by a cookie.
func TestPlainMode(t *testing.T) {
	a, b := stillPair(t, Offloads{VNet: true})
	type move struct {
		n    protocol.NodeNumber
		addr netip.AddrPort
	}
	var moves []move
	b.cfg.Roamed = func(n protocol.NodeNumber, at underlay.Source) {
		if m := (move{n, at.Addr}); len(moves) == 0 || moves[len(moves)-1] != m {
			moves = append(moves, m)
		}
	}
	c := &plainStill{still: b}
	b.carrier = c
	first, second := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("[2001:db8::1]:2")
	from := func(at netip.AddrPort, msgs ...[]byte) {
		for _, m := range msgs {
			b.r.Receive(underlay.Source{Addr: at}, bytes.Clone(m), len(m))
		}
		b.r.Flush()
		b.control()
	}
	data := func() [][]byte {
		a.tx.packet(nil, stillPacket(2, 3, 60), readHead, 60)
		a.tx.flush()
		return a.take()
	}
	from(first, data()...)
	from(first, data()...)
	moved := data()
	from(second, moved...)
	from(netip.MustParseAddrPort("198.51.100.1:1"), moved...) // a copy from elsewhere moves nothing
	require.Equal(t, []move{{2, first}, {2, second}}, moves)

	p := a.numbers[3]
	initiate := func() []byte {
		p.lastHandshake = 0
		a.mu.Lock()
		a.machine.initiate(p, time.Now(), false)
		a.mu.Unlock()
		a.control()
		return a.take()[0]
	}
	b.take()
	b.loadTill = b.now().add(time.Hour)
	from(first, initiate())
	require.Equal(t, []underlay.Source{{Addr: first}}, c.answers)
	cookie := b.take()
	require.Equal(t, []uint32{typeCookie}, kinds(cookie))
	a.receive(3, cookie...)
	b.numbers[2].answeredAt = 0
	m := initiate()
	from(second, m) // the cookie is the first address's
	require.Equal(t, []uint32{typeCookie}, kinds(b.take()))
	from(first, m)
	require.Equal(t, []uint32{typeResponse}, kinds(b.take()))
	require.Equal(t, []move{{2, first}, {2, second}, {2, first}}, moves)
}
