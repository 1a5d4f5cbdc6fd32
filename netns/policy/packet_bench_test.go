package policy

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/internal/kernel"
	"causeway/netns/lab"
)

// What a packet costs that is let through, by UDP over a forwarding hop: the least mean of 500
// in a row, for others share the processors. Conntrack is on in both.
func BenchmarkPacket(b *testing.B) {
	l := lab.New(b)
	node, pod, far := l.Host("a"), l.Host("p"), l.Host("f")
	l.Wire(node, "cw0", []string{"198.18.0.1/24"}, far, "cw0", []string{"198.18.0.2/24"})
	l.Wire(node, "eth0", []string{"10.1.0.1/24"}, pod, "eth0", []string{"10.1.0.11/24"})
	node.Sysctl("net.ipv4.ip_forward=1")
	far.Sh("ip route add 10.1.0.0/24 via 198.18.0.1")
	pod.Sh("ip route add default via 10.1.0.1")
	node.Sh("nft 'add table ip tracked; add chain ip tracked f { type filter hook forward priority 0; }; add rule ip tracked f ct state new accept'")
	var sink net.PacketConn
	require.NoError(b, pod.Do(func() (err error) { sink, err = net.ListenPacket("udp", ":443"); return err }))
	defer sink.Close()
	c, err := dial(far, "udp", "10.1.0.11:443")
	require.NoError(b, err)
	defer c.Close()
	buf := make([]byte, 200)
	least := func(b *testing.B) {
		best := time.Hour
		for range b.N {
			for range 500 {
				start := time.Now()
				for range 500 {
					c.Write(buf)
				}
				best = min(best, time.Since(start))
			}
		}
		b.ReportMetric(float64(best.Nanoseconds())/500, "ns/packet")
	}
	b.Run("without", least)
	for _, n := range []int{1000, 30000} {
		cfg := large(n, 500)
		cfg.Remote = append(cfg.Remote, classes("198.18.0.2/32", podsB)...)
		cfg.Local = append(cfg.Local, classes("10.1.0.11/32", podsA)...)
		cfg.Allows = append(cfg.Allows, Allow{From: podsB, To: podsA, Proto: UDP, First: 443, Last: 443, Rule: "bench"})
		t := NewTable()
		require.NoError(b, node.Do(func() error { return t.Set(cfg) }))
		b.Run("with", least)
		var counts Counts
		require.NoError(b, node.Do(func() (err error) { counts, err = Counted(); return err }))
		require.NotZero(b, counts.Rules["bench"])
		require.NoError(b, node.Do(func() error { return kernel.DeleteTable(TableName) }))
	}
	b.Run("without", least)
}
