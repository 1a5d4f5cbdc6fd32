package relay

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/underlay"
	"causeway/tunnel/underlay/probe"
	"causeway/tunnel/underlay/sock"
)

// counter is a device that counts datagrams.
type counter struct {
	t    *testing.T
	n    int
	from map[protocol.NodeNumber]bool
}

func (c *counter) Receive(from underlay.Source, buf []byte, segment int) {
	c.from[from.Peer] = true
	for o := 0; o < len(buf); o += segment {
		c.n++
		d := buf[o:min(o+segment, len(buf))]
		require.Zero(c.t, protocol.MessageNumber(d))
		require.NotEqual(c.t, protocol.MessageUnknown, protocol.ClassifyMessage(d))
	}
}
func (*counter) Flush() {}

// Anybody may send anything to the switchboard's port, from an address that is
// bound or not, alone or as a group. Whatever it is: each datagram is forwarded
// once, delivered once or counted as dropped by reason, nothing from an unbound
// address goes anywhere, and the number that goes on is that of the bound
// sender.
func FuzzMessage(f *testing.F) {
	key, err := protocol.NewWireGuardPrivateKey()
	require.NoError(f, err)
	node, err := protocol.NewWireGuardPrivateKey()
	require.NoError(f, err)
	keys, err := protocol.NewProbeKeys(node, key.Public())
	require.NoError(f, err)
	data := append([]byte{4, 0, 0, 3}, make([]byte, 60)...)
	f.Add(data, uint16(64), true)
	f.Add(data, uint16(64), false)
	f.Add(bytes.Repeat(data, 4), uint16(64), true)
	f.Add(append([]byte{4, 0, 0, 0}, make([]byte, 60)...), uint16(64), true)
	f.Add(append([]byte{1, 0, 0, 0}, make([]byte, protocol.InitiationSize-4)...), uint16(protocol.InitiationSize), true)
	f.Add(append([]byte{4, 0, 0, 77}, make([]byte, 100)...), uint16(40), true)
	f.Add(protocol.Probe{Kind: protocol.ProbeHubQuestion, From: 2, To: 1, Nonce: 7}.Append(nil, &protocol.ProbeKey{}), uint16(protocol.ProbeSize), false)
	f.Add(protocol.Probe{Number: 3, Kind: protocol.ProbeQuestion, From: 2, To: 3, Nonce: 7, Padding: 900}.Append(nil, &keys.Send), uint16(1012), true)
	bound, stranger := netip.MustParseAddrPort("192.0.2.2:2"), netip.MustParseAddrPort("192.0.2.66:66")
	f.Fuzz(func(t *testing.T, data []byte, segment uint16, known bool) {
		if len(data) == 0 || len(data) > 65535 || segment == 0 {
			return
		}
		dev := &counter{t: t, from: map[protocol.NodeNumber]bool{}}
		r, err := New(Config{Self: 1, PrivateKey: key, BootID: protocol.BootID{1}, Listen: netip.MustParseAddrPort("127.0.0.1:0"),
			NewReader: func() underlay.Receiver { return dev }, Log: zerolog.Nop()})
		require.NoError(t, err)
		require.NoError(t, r.SetNodes([]Node{{Number: 2, Key: node.Public()}, {Number: 3, Key: protocol.WireGuardPublicKey{3}},
			{Number: 4, Key: protocol.WireGuardPublicKey{4}, Class: Alone}}))
		for n, e := range *r.nodes.Load() {
			at := netip.AddrPortFrom(bound.Addr(), uint16(n))
			e.bound.Store(&[]probe.Place{{To: at}})
			r.byAddr.set(at, &owner{entry: e})
		}
		src := stranger
		if known {
			src = bound
		}
		in := (len(data) + int(segment) - 1) / int(segment)
		d := &reader{r: r, recv: dev}
		d.batch([]sock.Message{{From: src, Data: data, Segment: min(int(segment), len(data))}})

		dropped := 0
		for _, n := range r.drops.Map() {
			dropped += int(n)
		}
		// Without a socket what is forwarded is counted as not sent.
		forwarded := int(r.drops.Map()[DropSend])
		require.Equal(t, in, dev.n+dropped, "%v", r.drops.Map())
		require.Zero(t, r.datagrams.Load())
		if !known {
			require.Zero(t, dev.n+forwarded, "nothing from an unbound address goes anywhere")
		}
		require.Subset(t, map[protocol.NodeNumber]bool{2: true}, dev.from)
		if forwarded == in {
			for o := 0; o < len(data); o += int(segment) {
				require.Equal(t, protocol.NodeNumber(2), protocol.MessageNumber(data[o:]))
			}
		}
	})
}
