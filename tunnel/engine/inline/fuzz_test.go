//go:build linux

package inline

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/underlay"
)

// still is an engine without goroutines: the test is its control goroutine,
// its reader and its TUN device, which takes everything (/dev/null).
type still struct {
	*Engine
	t      testing.TB
	number protocol.NodeNumber
	r      *reader
	tx     *sender
	sent   [][]byte // runs, cut up
}

func (s *still) Send(to protocol.NodeNumber, b []byte, segment int) error {
	if segment <= 0 || len(b) == 0 || len(b) > maxDatagrams || (len(b)+segment-1)/segment > maxSegments {
		s.t.Fatalf("run of %d bytes in segments of %d", len(b), segment)
	}
	for len(b) > 0 {
		m := b[:min(segment, len(b))]
		if m[1]|m[2]|m[3] != 0 {
			s.t.Fatal("reserved bytes are not zero")
		}
		s.sent = append(s.sent, bytes.Clone(m))
		b = b[len(m):]
	}
	return nil
}

// newStill makes an engine. t is replaced for each fuzz input.
func newStill(t testing.TB, number protocol.NodeNumber, off Offloads) *still {
	t.Helper()
	fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	k, err := protocol.NewWireGuardPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	s := &still{t: t, number: number}
	s.Engine, err = New(Config{PrivateKey: k, Carrier: s, Device: &Device{Queues: []int{fd}, Offloads: off, MTU: 1420}, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	s.SetLocal([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")})
	s.limiter.Init()
	s.up, s.running = true, true
	s.r, s.tx = s.NewReader().(*reader), newSender(s.Engine)
	t.Cleanup(func() {
		s.limiter.Close()
		unix.Close(fd)
	})
	return s
}

func (s *still) control() {
	for {
		select {
		case m := <-s.queue:
			s.step(&m, time.Now(), nil)
		default:
			s.step(&message{}, time.Now(), nil)
			return
		}
	}
}

func (s *still) take() [][]byte {
	m := s.sent
	s.sent = nil
	return m
}

// receive hands over messages as they would lie in a receive buffer.
func (s *still) receive(from protocol.NodeNumber, msgs ...[]byte) {
	for _, m := range msgs {
		s.r.Receive(underlay.Source{Peer: from}, m, max(len(m), 1))
	}
	s.r.Flush()
	s.control()
}

// stillPair has a session from a to b.
func stillPair(t testing.TB, off Offloads) (a, b *still) {
	a, b = newStill(t, 2, off), newStill(t, 3, off)
	set := func(s, o *still) {
		err := s.SetPeers([]engine.Peer{{Number: o.number, Key: o.public[0], AllowedIPs: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.0.0.%d/32", o.number)), netip.MustParsePrefix(fmt.Sprintf("fd00::%d/128", o.number))}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	set(a, b)
	set(b, a)
	p := stillPacket(2, 3, 100)
	a.tx.packet(nil, p, readHead, 100)
	for range 3 {
		a.control()
		b.receive(2, a.take()...)
		a.receive(3, b.take()...)
	}
	if a.numbers[3].current.Load() == nil || b.numbers[2].current.Load() == nil {
		t.Fatal("no session")
	}
	return a, b
}

// stillPacket is a read buffer with an IPv4 packet.
func stillPacket(from, to byte, n int) []byte {
	b := make([]byte, readHead+n+maxHeaders+padding)
	p := b[readHead : readHead+n]
	p[0], p[8], p[9] = 0x45, 64, 253
	binary.BigEndian.PutUint16(p[2:], uint16(n))
	copy(p[12:], []byte{10, 0, 0, from, 10, 0, 0, to})
	return b
}

// FuzzReceive feeds a live engine from the wire. Threat model: anybody who can
// reach the node (raw bytes, a right mac1 can be made by whoever knows the
// public key), and a peer gone bad (right keys, any packet inside).
func FuzzReceive(f *testing.F) {
	a, b := stillPair(f, Offloads{VNet: true, TSO: true, USO: true})
	a.numbers[3].lastHandshake = 0
	a.mu.Lock()
	a.machine.initiate(a.numbers[3], time.Now(), false)
	a.mu.Unlock()
	a.control()
	init := a.take()[0]
	f.Add(byte(0), uint16(148), init)
	f.Add(byte(1), uint16(148), init)
	f.Add(byte(1), uint16(92), append([]byte{2}, make([]byte, 91)...))
	f.Add(byte(1), uint16(64), append([]byte{3}, make([]byte, 63)...))
	f.Add(byte(0), uint16(32), append([]byte{4}, make([]byte, 127)...))
	for _, in := range shapes {
		in.payload = 100
		f.Add(byte(2), uint16(len(in.build(false))), bytes.Repeat(in.build(false), 3))
	}
	f.Fuzz(func(t *testing.T, mode byte, segment uint16, data []byte) {
		a.t, b.t = t, t
		a.take()
		b.take()
		data = bytes.Clone(data)
		size := max(int(segment), 1)
		p := b.numbers[2]
		switch mode % 3 {
		case 0:
			b.r.Receive(underlay.Source{Peer: protocol.NodeNumber(mode / 3)}, data, int(segment))
		case 1: // the index may be right, too
			if len(data) >= 60 && data[0] < 4 {
				if e := p.pending; e != nil && segment%2 == 0 {
					at := 4
					if data[0] == 2 {
						at = 8
					}
					binary.LittleEndian.PutUint32(data[at:], e.entry.index)
				}
				newCookies(b.public[0]).AddMacs(data)
			}
			b.r.Receive(underlay.Source{Peer: 2}, data, max(len(data), 1))
		case 2:
			var run []byte
			s := a.numbers[3].current.Load()
			for len(data) > 0 && len(run) < 60000 {
				in := data[:min(size, len(data))]
				data = data[len(in):]
				c, _ := s.reserve(1)
				m := make([]byte, headerSize, headerSize+len(in)+16)
				m[0] = 4
				binary.LittleEndian.PutUint32(m[4:], s.remote)
				binary.LittleEndian.PutUint64(m[8:], c)
				var nonce [12]byte
				binary.LittleEndian.PutUint64(nonce[4:], c)
				run = append(run, s.send.Seal(m, nonce[:], in, nil)...)
			}
			b.r.Receive(underlay.Source{Peer: 2}, run, size+overhead)
			checkSlots(t, &b.r.sink.(*rawSink).c)
		}
		b.r.Flush()
		b.control()
		if p.current.Load() == nil {
			t.Fatal("the session is gone")
		}
	})
}

// checkSlots looks at what would be written: whole packets, allowed sources.
func checkSlots(t *testing.T, c *coalescer) {
	for _, s := range c.slots[:c.n] {
		total := s.total
		if s.n > 1 {
			h := s.super()[vnetSize:]
			total = len(h)
			for _, p := range s.pkts[:s.n] {
				total += len(p) - s.headers
			}
		}
		if total != s.total || total > 65535 || s.n < 1 || s.n > maxMerge {
			t.Fatalf("slot of %d packets: %d bytes, says %d", s.n, total, s.total)
		}
		for _, p := range s.pkts[:s.n] {
			if p[0]>>4 == 4 && !bytes.Equal(p[12:16], []byte{10, 0, 0, 2}) {
				t.Fatal("source is not the peer's")
			}
		}
	}
}

// FuzzTUN feeds a live engine from its TUN device: any virtio header, any
// packet. Threat model: programs on the host with raw sockets, and kernels
// with other ideas of offloads. What leaves must be openable by the peer.
func FuzzTUN(f *testing.F) {
	a, b := stillPair(f, Offloads{VNet: true, TSO: true, USO: true})
	for _, in := range shapes {
		in.payload = min(in.payload, 5000)
		for _, size := range []int{0, 1000, 1368} {
			p := in.build(true)
			if p[0] == 0x45 {
				p[19] = 3
			} else {
				copy(p[24:], netip.MustParseAddr("fd00::3").AsSlice())
			}
			f.Add(in.vnet(size), p)
		}
	}
	f.Fuzz(func(t *testing.T, vnet, data []byte) {
		a.t, b.t = t, t
		a.take()
		b.take()
		if len(data) > 65535 {
			return
		}
		buf := make([]byte, readHead+vnetSize+len(data)+maxHeaders+padding)
		copy(buf[readHead:readHead+vnetSize], vnet)
		copy(buf[readHead+vnetSize:], data)
		bad := b.counts.rejected.Load()
		a.tx.tick()
		a.tx.packet(buf[readHead:readHead+vnetSize], buf, readHead+vnetSize, len(data))
		a.tx.flush()
		if len(a.tx.open) != 0 {
			t.Fatal("a group is left open")
		}
		b.receive(2, a.take()...)
		if b.counts.rejected.Load() != bad {
			t.Fatal("the peer cannot open what was sent")
		}
		a.control()
	})
}
