package relay_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/relay"
	"causeway/tunnel/underlay"
)

// everywhere makes a hub with several loops on every address of the host, and
// a device for each loop.
func everywhere(t *testing.T, loops int) (h *hub, devs func() []*device) {
	h = &hub{host: host{t: t, key: newKey(t)}, addr: netip.MustParseAddrPort("0.0.0.0:0")}
	var (
		mu  sync.Mutex
		all []*device
	)
	h.start(func(c *relay.Config) {
		c.Loops = loops
		dev := h.dev
		c.NewReader = func() underlay.Receiver {
			mu.Lock()
			defer mu.Unlock()
			if len(all) > 0 {
				dev = &device{}
			}
			all = append(all, dev)
			return dev
		}
	})
	h.addr = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), h.LocalAddr().Port())
	return h, func() []*device {
		mu.Lock()
		defer mu.Unlock()
		return append([]*device(nil), all...)
	}
}

// at is the hub at another of the host's addresses.
func (h *hub) at(last byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, last}), h.addr.Port())
}

// Pairs on all loops at once: each pair's datagrams keep their order, and the
// loops share the work.
func TestOrderOverLoops(t *testing.T) {
	const pairs, groups, size = 8, 30, 100
	h, devs := everywhere(t, 4)
	var from, to []*node
	for i := range protocol.NodeNumber(pairs) {
		a, b := newNode(t, h, 10+i), newNode(t, h, 100+i)
		a.meet(b, false)
		b.meet(a, false)
		from, to = append(from, a), append(to, b)
	}
	for i := range from {
		from[i].bound()
		to[i].bound()
	}
	var wg sync.WaitGroup
	for i, a := range from {
		wg.Go(func() {
			seq := uint32(0)
			for range groups {
				b := make([]byte, 7*size)
				for o := 0; o < len(b); o += size {
					b[o] = byte(protocol.MessageTransport)
					binary.LittleEndian.PutUint32(b[o+8:], seq)
					seq++
				}
				if err := a.Send(to[i].number, b, size); err != nil {
					t.Error(err)
				}
				// No more under way than the sockets hold.
				deadline := time.Now().Add(patience)
				for seq > uint32(to[i].dev.bytes()/size)+100 && time.Now().Before(deadline) {
					time.Sleep(100 * time.Microsecond)
				}
			}
		})
	}
	wg.Wait()
	for i, b := range to {
		eventually(t, "all of it", func() bool { d, _ := b.dev.from(from[i].number); return len(d) == groups*7*size })
		d, _ := b.dev.from(from[i].number)
		for s := range groups * 7 {
			require.Equal(t, uint32(s), binary.LittleEndian.Uint32(d[s*size+8:]), "pair %d", i)
		}
	}
	for _, a := range from {
		require.NoError(t, a.Send(hubNumber, transport(1, 1, 64), 64))
	}
	eventually(t, "what is for the hub", func() bool {
		busy, n := 0, 0
		for _, d := range devs() {
			if got := d.all(); len(got) > 0 {
				busy++
				n += len(got)
			}
		}
		return busy > 1 && n >= pairs
	})
}

// An agent takes answers only from the address that it asked, and so gets
// them from whichever of the hub's addresses that is.
func TestAnswersFromTheAddressThatWasAsked(t *testing.T) {
	h, _ := everywhere(t, 2)
	a, b := newNode(t, h, 2), newNode(t, h, 3)
	h.addr = h.at(7)
	require.NoError(t, b.SetHubs([]underlay.Hub{{Number: hubNumber, Key: h.key.Public(), Addrs: []netip.AddrPort{h.addr}}}))
	c := newNode(t, h, 4)
	for _, x := range []*node{a, b, c} {
		x.bound()
	}
	b.meet(c, false)
	c.meet(b, false)
	a.meet(b, false)
	b.meet(a, false)
	msg := transport(1, 20, 500)
	require.NoError(t, a.Send(b.number, bytes.Clone(msg), 500))
	eventually(t, "relayed", func() bool { return b.dev.has(a.number, msg) })
	for _, g := range b.dev.all() {
		require.Equal(t, h.at(7), g.from.Addr)
	}
	require.NoError(t, b.Send(a.number, bytes.Clone(msg), 500))
	eventually(t, "relayed back", func() bool { return a.dev.has(b.number, msg) })
	for _, g := range a.dev.all() {
		require.Equal(t, h.at(1), g.from.Addr)
	}
	require.NoError(t, c.Send(b.number, bytes.Clone(msg), 500))
	eventually(t, "relayed", func() bool { return b.dev.has(c.number, msg) })
	require.NoError(t, h.Send(c.number, bytes.Clone(msg), 500))
	eventually(t, "of the hub's own", func() bool { return c.dev.has(hubNumber, msg) })
	require.Equal(t, h.at(7), c.dev.all()[0].from.Addr)
}
