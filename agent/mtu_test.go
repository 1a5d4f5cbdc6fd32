package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns"
)

// Routes to a peer have the MTU of its path; its overlay address has a route
// of its own only where that differs.
func TestRoutesFollowThePathsMTU(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	h := w.session()
	h.give(testNetmap(5, testPeer(3, "10.3.0.0/24"), testPeer(4, "10.4.0.0/24")))
	require.Zero(t, w.host.mtu("10.3.0.0/24"))
	require.Equal(t, netns.DefaultMTU, w.host.plan.MTU)
	overlay := testPeer(3).Overlay[0]
	own := netip.PrefixFrom(overlay, overlay.BitLen()).String()
	require.False(t, w.host.routed(own))

	w.tunnel.setMTU(1216)
	require.Eventually(t, func() bool { return w.host.mtu("10.3.0.0/24") == 1216 }, 5*time.Second, 10*time.Millisecond)
	require.Equal(t, 1216, w.host.mtu(own))
	require.True(t, w.host.routed(own))
	require.Zero(t, w.host.mtu("10.4.0.0/24"))

	w.tunnel.setMTU(8928)
	require.Eventually(t, func() bool { return w.host.mtu("10.3.0.0/24") == 8928 }, 8*time.Second, 10*time.Millisecond)
	w.tunnel.setMTU(netns.DefaultMTU)
	require.Eventually(t, func() bool { return w.host.mtu("10.3.0.0/24") == 0 && !w.host.routed(own) }, 5*time.Second, 10*time.Millisecond)
	w.host.mu.Lock()
	applies := w.host.applies
	w.host.mu.Unlock()
	// The next run begins with the MTUs that are there.
	w.host.mu.Lock()
	w.host.mtus = map[netip.Prefix]int{netip.MustParsePrefix(own): 8928, netip.MustParsePrefix("10.3.0.0/24"): 8928}
	w.host.mu.Unlock()
	require.Never(t, func() bool {
		w.host.mu.Lock()
		defer w.host.mu.Unlock()
		return w.host.applies != applies
	}, time.Second, 50*time.Millisecond, "nothing is applied while nothing changes")
	w.stop()
	w.tunnel.setMTU(0)
	w.start()
	w.eventually(func() bool { return w.host.mtu("10.3.0.0/24") == 8928 && w.host.mtu(own) == 8928 }, "MTUs of the last run")
}
