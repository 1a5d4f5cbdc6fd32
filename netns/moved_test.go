package netns

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"causeway/netns/lab"
)

// A device that was renamed and is then deleted, with and without another one in its place, and
// another table: packets of what was routed are never let out in clear, not for a moment. What is
// closed is never taken away, which the kernel tells of, and a capture of a stream of packets
// sees none.
func TestNeverOpenWhileMoving(t *testing.T) {
	h := host(t)
	ctx := context.Background()
	c := testConfig()
	c.Held = c.Routes
	device := func(name string) {
		link, err := netlink.LinkByName(name)
		require.NoError(t, err)
		c.Interface, c.Index = name, link.Attrs().Index
	}
	device("cw0")
	require.NoError(t, h.Apply(ctx, plan(t, c)))
	sh(t, "ip neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev eth0; sysctl -qw net.ipv4.icmp_ratelimit=0")
	dir := t.TempDir()
	log, clear := filepath.Join(dir, "monitor"), filepath.Join(dir, "clear")
	start := func(script string) {
		cmd := exec.Command("sh", "-c", script) // in this namespace
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	}
	start("exec ip -o monitor route rule >" + log)
	start("exec tcpdump -nlUi far0 'udp dst port 9 or udp dst port 10' >" + clear + " 2>" + clear + ".err")
	start("exec python3 -c 'import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nwhile True:\n try: s.sendto(b\"x\", (\"10.2.0.9\", 9))\n except OSError: pass'")
	read := func(path string) string { b, _ := os.ReadFile(path); return string(b) }
	wait := func(what string, f func() bool) {
		t.Helper()
		within, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		require.NoError(t, lab.Wait(within, what, func(context.Context) error {
			if !f() {
				return fmt.Errorf("%s", read(clear+".err"))
			}
			return nil
		}))
	}
	wait("the capture", func() bool { return strings.Contains(read(clear+".err"), "listening") })
	probe := func() { // what follows is monitored
		sh(t, "ip route add 203.0.113.77/32 dev eth0 table 4711")
		wait("the monitor", func() bool { return strings.Contains(read(log), "203.0.113.77") })
		sh(t, "ip route del 203.0.113.77/32 dev eth0 table 4711")
	}
	probe()
	for i := range 5 {
		sh(t, fmt.Sprintf("ip link set %s down; ip link set %[1]s name x%d; ip link set x%[2]d up", c.Interface, i))
		device(fmt.Sprintf("x%d", i))
		require.NoError(t, h.Apply(ctx, plan(t, c)))
		sh(t, "ip link del "+c.Interface)
		c.Interface, c.Index = "cw0", NoDevice
		require.ErrorIs(t, h.Apply(ctx, plan(t, c)), ErrNoInterface)
		tun(t)
		device("cw0")
		require.NoError(t, h.Apply(ctx, plan(t, c)))
		requireFound(t, h, plan(t, c))
	}
	probe()
	for l := range strings.Lines(read(log)) {
		require.False(t, strings.HasPrefix(l, "Deleted") && (strings.Contains(l, "unreachable") || strings.Contains(l, "lookup")), l)
	}
	c.Table = 777
	require.NoError(t, h.Apply(ctx, plan(t, c)))
	requireFound(t, h, plan(t, c))
	require.Empty(t, sh(t, "ip route show table 51806; ip -6 route show table 51806; ip rule | grep 51806 || :"))
	sh(t, `python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 10))'`)
	wait("the last packet that is meant to be in clear", func() bool { return strings.Contains(read(clear), "192.0.2.1.10:") })
	require.NotContains(t, read(clear), "10.2.0.9.9:", "packets in clear")
	// A rule before ours leads them elsewhere, and the wall stands; without it they are seen.
	sh(t, "ip rule add pref 1 to 10.2.0.9 lookup main")
	wait("the wall to drop", func() bool { drops, err := h.AccessDrops(ctx); return err == nil && drops["closed"] > 0 })
	require.NotContains(t, read(clear), "10.2.0.9.9:", "packets in clear")
	sh(t, "nft delete chain inet causeway closed")
	wait("what is in clear to be seen", func() bool { return strings.Contains(read(clear), "10.2.0.9.9:") })
}
