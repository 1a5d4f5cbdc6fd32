package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// mtuOf waits until a node knows the path's MTU to another to be want.
func mtuOf(t *testing.T, n *Node, to string, want int) (took time.Duration) {
	t.Helper()
	start := time.Now()
	require.NoError(t, lab.Wait(within(t, 12*time.Second), fmt.Sprintf("mtu %d from %s to %s", want, n.Name, to), func(ctx context.Context) error {
		out, err := n.Agent(ctx, "paths", "-o", "json")
		if err != nil {
			return err
		}
		var ps []protocol.PathStatus
		if err := json.Unmarshal([]byte(out), &ps); err != nil {
			return err
		}
		for _, p := range ps {
			if p.Name == to && p.MTU == want {
				return nil
			}
		}
		return fmt.Errorf("%s", out)
	}))
	return time.Since(start)
}

// An underlay that swallows large packets without a word: the MTU is found,
// routes and TCP follow it, no transfer hangs. The underlay is a jumbo one first.
//
// Not parallel: time limits.
func TestPathMTU(t *testing.T) {
	s, nodes := newSmall(t, 2)
	const plain = "ethtool -K %[1]s tso off gso off gro off tx-udp-segmentation off >/dev/null 2>&1; ip link set %[1]s mtu 9000;"
	inet := nodes[0].Inet
	for _, h := range []*lab.Host{nodes[0].Host, nodes[1].Host, s.Hub.Host} {
		h.Sh(fmt.Sprintf(plain, "eth0"))
	}
	inet.Sh("for p in $(ip -o link show type veth | sed 's/^[0-9]*: //; s/@.*//'); do " + fmt.Sprintf(plain, "$p") + " done; ip link set br0 mtu 9000")
	hole := func(mtu int) {
		for _, h := range []*lab.Host{nodes[0].Host, nodes[1].Host, s.Hub.Host} {
			h.Nft(fmt.Sprintf(`table inet hole
delete table inet hole
table inet hole {
	chain pre { type filter hook prerouting priority -400; iifname "eth0" meta length > %d counter drop; }
}
`, mtu))
		}
	}
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	a, b := nodes[0], nodes[1]
	_, err := s.Serve(step(t), b.Pod.Host)
	require.NoError(t, err)
	require.NoError(t, Ping(step(t), a.Pod.Host, b.Pod.V4))
	hold, err := s.Hold(step(t), a.Pod.Host, b.Pod.V4)
	require.NoError(t, err)
	for _, mtu := range []int{9000, 1500, 1400, 1280} {
		if mtu < 9000 {
			hole(mtu)
		}
		// At once, before anybody has noticed.
		for _, addr := range []string{b.Pod.V4, b.Pod.V6} {
			r, err := s.Send(within(t, 15*time.Second), "tcp", a.Pod.Host, addr, 1<<20)
			require.NoError(t, err, "%d bytes, to %s", mtu, addr)
			t.Logf("underlay of %d: 1 MiB to %s in %.1f s", mtu, addr, r.Seconds)
		}
		inside := (mtu - 28 - 32) / 16 * 16
		for _, n := range [][2]*smallNode{{a, b}, {b, a}} {
			t.Logf("underlay of %d: %s knows it %.1f s later", mtu, n[0].Name, mtuOf(t, n[0].Node, n[1].Name, inside).Seconds())
		}
		require.Eventually(t, func() bool {
			return strings.Contains(a.Host.Sh("ip route get to "+b.Pod.V4), fmt.Sprintf("mtu %d", inside))
		}, 10*time.Second, 50*time.Millisecond)
	}
	_, gap, err := hold.End(step(t))
	require.NoError(t, err)
	t.Logf("a connection beside it stood still for %.1f s at most", gap)
}
