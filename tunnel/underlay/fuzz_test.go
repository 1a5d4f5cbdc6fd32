package underlay

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/underlay/sock"
)

type fuzzReceiver struct {
	t    *testing.T
	n    int
	from map[Source]bool
}

func (c *fuzzReceiver) Receive(from Source, buf []byte, segment int) {
	c.from[from] = true
	for o := 0; o < len(buf); o += segment {
		c.n++
		d := buf[o:min(o+segment, len(buf))]
		require.Zero(c.t, protocol.MessageNumber(d), "the engine gets plain WireGuard")
		require.NotEqual(c.t, protocol.MessageUnknown, protocol.ClassifyMessage(d))
		require.NotEqual(c.t, protocol.MessageProbe, protocol.ClassifyMessage(d))
	}
}
func (*fuzzReceiver) Flush() {}

// Anybody may send anything to an agent's port, from any address. Nothing of a
// stranger's reaches the engine, nothing of a peer's in another peer's name,
// a hub alone speaks for others, and an initiation waits for its sender's proof.
func FuzzMessage(f *testing.F) {
	key, err := protocol.NewWireGuardPrivateKey()
	require.NoError(f, err)
	hub, peer, stranger := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2"), netip.MustParseAddrPort("192.0.2.66:66")
	data := append([]byte{4, 0, 0, 3}, make([]byte, 60)...)
	for src := range byte(3) {
		f.Add(data, uint16(64), src)
		f.Add(bytes.Repeat(data, 4), uint16(64), src)
		f.Add(append([]byte{4, 0, 0, 0}, make([]byte, 60)...), uint16(64), src)
		f.Add(append([]byte{1, 0, 0, 3}, make([]byte, protocol.InitiationSize-4)...), uint16(protocol.InitiationSize), src)
		f.Add(protocol.Probe{Number: 3, Kind: protocol.ProbeQuestion, From: 3, To: 2, Nonce: 7, Padding: 9}.Append(nil, &protocol.ProbeKey{}), uint16(121), src)
	}
	f.Fuzz(func(t *testing.T, data []byte, segment uint16, src byte) {
		if len(data) == 0 || len(data) > 65535 || segment == 0 {
			return
		}
		recv := &fuzzReceiver{t: t, from: map[Source]bool{}}
		u, err := New(Config{Self: 2, PrivateKey: key, BootID: protocol.BootID{1}, NewReader: func() Receiver { return recv }, Log: zerolog.Nop()})
		require.NoError(t, err)
		require.NoError(t, u.SetHubs([]Hub{{Number: 1, Key: protocol.WireGuardPublicKey{1}, Addrs: []netip.AddrPort{hub}}}))
		require.NoError(t, u.SetPeers([]Peer{{Number: 3, Key: protocol.WireGuardPublicKey{3}, Direct: true}, {Number: 4, Key: protocol.WireGuardPublicKey{4}}}))
		sources := map[netip.AddrPort]source{}
		for a, r := range *u.sources.Load() {
			sources[a] = r
		}
		sources[peer] = source{(*u.peers.Load())[3], nil}
		u.sources.Store(&sources)
		from := []netip.AddrPort{hub, peer, stranger}[src%3]
		in := (len(data) + int(segment) - 1) / int(segment)
		r := &reader{u: u, recv: recv, now: time.Now()}
		r.message(&sock.Message{From: from, Data: data, Segment: min(int(segment), len(data))})

		dropped := 0
		for _, n := range u.Dropped() {
			dropped += int(n)
		}
		require.LessOrEqual(t, recv.n+dropped, in, "%v", u.Dropped())
		if len(u.held) == 0 {
			require.Equal(t, in, recv.n+dropped, "%v", u.Dropped())
		}
		for s := range recv.from {
			require.Equal(t, from, s.Addr)
			switch from {
			case peer:
				require.Equal(t, protocol.NodeNumber(3), s.Peer)
			case stranger:
				t.Fatal("a stranger was heard")
			}
		}
		require.Empty(t, u.out.Sends)
	})
}
