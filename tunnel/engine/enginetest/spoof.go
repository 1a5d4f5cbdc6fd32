package enginetest

import (
	"bytes"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/engine"
)

// foreignSources are addresses of no node.
var foreignSources = []string{
	"0.0.0.0", "0.0.0.1", "10.99.0.1", "127.0.0.1", "127.255.255.255", "169.254.1.1", "192.168.0.1", "198.18.0.0", "198.18.0.99", "198.19.255.255", "203.0.113.1", "224.0.0.1", "255.255.255.255",
	"::", "::1", "::ffff:198.18.0.2", "::ffff:10.2.0.1", "fd63:7761:7900::", "fd63:7761:7900::99", "fd63:7761:7900:0:ffff:ffff:ffff:ffff", "fd00:99::1", "fe80::1", "ff02::1", "2001:db8::1",
}

// forgedSources: every node sends every other one packets from every address that is
// not its own: the receiver's, each third node's and the hub's, of their
// routes, and nobody's. All arrive over the sender's session and none goes on.
func forgedSources(t *testing.T, a, b Factory) {
	net := NewNetwork()
	numbers := []protocol.NodeNumber{1, 2, 3, 4} // 1 stands for a hub: no routes
	var nodes []*Node
	for i, n := range numbers {
		nodes = append(nodes, Start(t, net, []Factory{a, b}[i%2], n, Key(t), 0))
	}
	routes := func(n protocol.NodeNumber) []string {
		if n == 1 {
			return nil
		}
		return []string{fmt.Sprintf("10.%d.0.0/16", n), fmt.Sprintf("fd00:%d::/32", n)}
	}
	owned := func(n *Node) []netip.Addr {
		out := []netip.Addr{n.Addr4(), n.Addr6()}
		for _, r := range routes(n.Number) {
			out = append(out, netip.MustParsePrefix(r).Addr().Next())
		}
		return out
	}
	for _, n := range nodes {
		var peers []engine.Peer
		for _, o := range nodes {
			if o != n {
				peers = append(peers, o.Peer(routes(o.Number)...))
			}
		}
		require.NoError(t, n.Engine.SetPeers(peers))
	}
	// Forged payloads make messages longer than any other of this test.
	payload := append([]byte("forged"), bytes.Repeat([]byte{'!'}, 500)...)
	var carried atomic.Int64
	net.SetHook(func(_, _ protocol.NodeNumber, d []byte) [][]byte {
		if len(d) > len(payload) {
			carried.Add(1)
		}
		return [][]byte{d}
	})
	sent, delivered := 0, 0
	for _, x := range nodes {
		for _, y := range nodes {
			if x == y {
				continue
			}
			x.Ping(y, x.Addr4(), y.Addr4())
			var sources []netip.Addr
			for _, o := range nodes {
				if o != x {
					sources = append(sources, owned(o)...)
				}
			}
			for _, s := range foreignSources {
				sources = append(sources, netip.MustParseAddr(s))
			}
			for _, src := range sources {
				for _, dst := range owned(y) {
					if src.Is4() == dst.Is4() {
						x.Send(src, dst, payload)
						sent++
					}
				}
			}
			// What was sent behind the forged ones arrives behind them, whatever address of its own it is from.
			for i, src := range owned(x) {
				if dst := owned(y)[i%2]; src.Is4() == dst.Is4() {
					x.pingBehind(y, src, dst, func(p []byte) {
						if bytes.Contains(p, []byte("forged")) {
							delivered++
							t.Errorf("node %d took from node %d: % x", y.Number, x.Number, p[:40])
						}
					})
				}
			}
		}
	}
	assert.GreaterOrEqual(t, carried.Load(), int64(sent), "all forged ones were carried")
	assert.Empty(t, net.Faults())
	t.Logf("%d pairs, %d packets with forged sources carried, %d delivered", len(nodes)*(len(nodes)-1), sent, delivered)
}
