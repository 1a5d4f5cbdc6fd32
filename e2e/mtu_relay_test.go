package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// singly makes hosts' links hand over packet by packet, as cables do: what is
// larger than a link is seen as that.
func singly(hosts ...*lab.Host) {
	for _, h := range hosts {
		h.Sh("for d in $(ip -o link show type veth | sed 's/^[0-9]*: //; s/@.*//'); do ethtool -K $d tso off gso off gro off tx-udp-segmentation off >/dev/null 2>&1; done")
	}
}

// The link of one site's router becomes smaller under relayed traffic. What
// leaves is refused by ICMP, what comes is swallowed: both directions and a
// transfer under way find the size.
//
// Not parallel: time limits.
func TestPathMTUOfARelay(t *testing.T) {
	p := newPair(t, sym, sym)
	singly(p.a.Host, p.a.Router, p.b.Host, p.b.Router, p.a.Inet, p.Hub.Host)
	f := p.start(protocol.PathRelay)
	const mtu, inside = 1400, (1400 - 28 - 32) / 16 * 16
	mtuOf(t, p.a.Node, "n2", (1500-28-32)/16*16)
	start := time.Now()
	p.a.Router.Sh("ip link set wan mtu 1400")
	p.a.Router.Nft("table inet hole {\n chain pre { type filter hook prerouting priority -400; iifname \"wan\" meta length > 1400 counter drop; }\n}\n")
	for _, addr := range []string{p.b.Pod.V4, p.b.Pod.V6} {
		r, err := p.Send(within(t, 15*time.Second), "tcp", p.a.Pod.Host, addr, 1<<20)
		require.NoError(t, err, "at once, before anybody has noticed")
		t.Logf("underlay of %d: 1 MiB to %s in %.1f s", mtu, addr, r.Seconds)
	}
	for _, n := range [][2]*siteNode{{p.a, p.b}, {p.b, p.a}} {
		mtuOf(t, n[0].Node, n[1].Name, inside)
		measured(t, "size of a smaller relay path", time.Since(start).Seconds(), 10)
	}
	require.Eventually(t, func() bool {
		return strings.Contains(p.a.Host.Sh("ip route get to "+p.b.Pod.V4), fmt.Sprintf("mtu %d", inside))
	}, 10*time.Second, 50*time.Millisecond, "the route follows")
	measured(t, "route of a smaller relay path", time.Since(start).Seconds(), 20)
	waitPaths(t, time.Second, p.a.Node, p.b.Node, protocol.PathRelay)
	t.Logf("longest gap %.2f s", f.end(t))
}
