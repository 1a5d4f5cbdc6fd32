package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// sendAll has host and pod send UDP and connect by TCP to addresses all the time, beside the pings.
func (w *watched) sendAll(addrs ...string) {
	w.t.Helper()
	script := `import socket, sys, time, signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
held = []
while True:
    for a in sys.argv[1:]:
        f = socket.AF_INET6 if ":" in a else socket.AF_INET
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            s = None
            try:
                s = socket.socket(f, kind)
                s.setblocking(False)
                s.connect((a, 9))
                s.send(b"x")
            except OSError:
                pass
            held.append(s)
    while len(held) > 200:
        s = held.pop(0)
        if s: s.close()
    time.sleep(0.02)
`
	for i, from := range []*lab.Host{w.n.Host, w.n.Pod.Host} {
		p, err := from.Start(lab.Program{Name: fmt.Sprintf("sockets%d", i), Args: append([]string{"python3", "-c", script}, addrs...)})
		require.NoError(w.t, err)
		w.senders = append(w.senders, p)
	}
}

// dropped is how many packets of a family the wall has dropped, and -1 while there is none.
func (w *watched) dropped(family string) int {
	out, err := w.n.Host.Run(step(w.t), "sh", "-c", "nft list chain inet causeway closed 2>/dev/null || :")
	require.NoError(w.t, err)
	for l := range strings.Lines(out) {
		if f := strings.Fields(l); len(f) > 5 && f[0] == family && f[3] == "counter" {
			n, err := strconv.Atoi(f[5])
			require.NoError(w.t, err)
			return n
		}
	}
	return -1
}

// runInto waits until the wall has dropped some packets more of each family.
func (w *watched) runInto(families ...string) {
	w.t.Helper()
	for _, f := range families {
		before := w.dropped(f)
		require.NoError(w.t, lab.Wait(step(w.t), f+" packets to run into the wall", func(context.Context) error {
			n := w.dropped(f)
			if n < before { // it was made anew
				before = n
			}
			if n < before+20 {
				return fmt.Errorf("%d, %d before", n, before)
			}
			return nil
		}))
	}
}

// A rule of routing policy before the tunnel's, lo down, IPv6 off and on, all tables flushed: whatever
// takes the routes of what the tunnel has out of the way, nothing of it is seen in clear on the LAN,
// the condition says what does it, and the tunnel heals when it is gone.
func TestNothingPassesTheTunnel(t *testing.T) {
	lab.Counts(t)
	t.Parallel()
	s, nodes := newSmall(t, 3)
	nodes[0].Host.Sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1") // as container engines do: pods are let out
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	n, n2, n3 := nodes[0], nodes[1], nodes[2]
	live, gone := []string{n2.Pod.V4, n2.Pod.V6}, []string{n3.Pod.V4, n3.Pod.V6}
	for _, a := range append(live, gone...) {
		require.NoError(t, Ping(step(t), n.Pod.Host, a))
	}
	w := watchClear(t, s, n, append(live, gone...)...)
	w.sendAll(append(live, gone...)...)
	require.NoError(t, n3.Leave(step(t)))
	for _, a := range gone {
		w.closed(a)
	}
	healed := func(what string) {
		t.Helper()
		begun := time.Now()
		for _, a := range live {
			w.open(a)
		}
		for _, a := range gone {
			w.closed(a)
		}
		conditionIs(t, n.Node, "routes", true, "")
		t.Logf("%-34s healed within %.1f s; the wall has dropped %d and %d", what, time.Since(begun).Seconds(), w.dropped("ip"), w.dropped("ip6"))
	}
	const uplink6 = "ip -6 addr replace 2001:db8:9::21/64 dev eth0 nodad; ip -6 route replace default via " + gateway6
	uplink := "ip addr flush dev eth0 scope global; ip addr add " + n.LAN + "/24 dev eth0; ip route replace default via " + HubAddr + "; ip addr flush dev pods0 scope global; ip addr add 10.1.1.1/24 dev pods0; ip -6 addr add fd10:1:1::1/64 dev pods0 nodad; " + uplink6
	both := func(format string) string {
		return fmt.Sprintf(format, "-4", HubAddr, "10.1.0.0/16") + "; " + fmt.Sprintf(format, "-6", gateway6, "fd10:1::/32")
	}
	for _, c := range []struct {
		name, do, undo string
		says           string
		into           []string
	}{
		{"a rule to main", "ip -4 rule add pref 100 lookup main; ip -6 rule add pref 100 lookup main", "ip -4 rule del pref 100; ip -6 rule del pref 100",
			"rule 'pref 100 lookup main' (ip -4 rule) for 10.2.1.0/24", []string{"ip", "ip6"}},
		{"a source rule of a cloud's CNI", both("ip %[1]s route add default via %[2]s table 100; ip %[1]s rule add pref 1536 from %[3]s lookup 100"), both("ip %[1]s rule del pref 1536; ip %[1]s route flush table 100"),
			"rule 'pref 1536 from 10.1.0.0/16 lookup 100' (ip -4 rule) for 10.2.1.0/24", []string{"ip", "ip6"}},
		{"a rule by a mark", both("ip %[1]s route add default via %[2]s table 100; ip %[1]s rule add pref 1024 fwmark 0x80/0x80 lookup 100") + "; nft 'add table inet cni; add chain inet cni p { type filter hook prerouting priority -150; }; add rule inet cni p iifname pods0 meta mark set 0x80'",
			both("ip %[1]s rule del pref 1024; ip %[1]s route flush table 100") + "; nft delete table inet cni", "rules of routing policy before the tunnel's (pref 5206) that may lead them there: rule 'pref 1024 fwmark 0x80/0x80 lookup 100'", []string{"ip", "ip6"}},
		{"lo down", "ip link set lo down", "ip link set lo up", "", nil}, // the agent puts IPv6's closed routes back
		{"lo down, and the device gone", "ip link set lo down; ip link del cw0", "ip link set lo up", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			n.Host.Sh(c.do)
			w.runInto(c.into...)
			if c.says != "" {
				conditionIs(t, n.Node, "routes", false, c.says)
			}
			n.Host.Sh(c.undo)
			healed(c.name)
		})
	}
	for range rounds(5) {
		for _, dev := range []string{"all", "cw0", "lo"} {
			n.Host.Sh("sysctl -qw net.ipv6.conf." + dev + ".disable_ipv6=1; sysctl -qw net.ipv6.conf." + dev + ".disable_ipv6=0; " + uplink6)
			if dev == "all" {
				n.Host.Sh("ip -6 addr replace fd10:1:1::1/64 dev pods0 nodad")
			}
			healed("IPv6 off and on at " + dev)
		}
	}
	for _, flush := range []string{"ip -4 route flush table all", "ip -6 route flush table all", "ip -4 route flush table all; ip -6 route flush table all"} {
		n.Host.Sh(flush + "; " + uplink)
		healed(flush)
	}
	n.Host.Sh("for i in $(seq 30); do for f in -4 -6; do ip $f route flush table 51806; ip $f rule del pref 5206 || :; done; sleep 0.1; done 2>/dev/null")
	healed("routes and rules, again and again")
	// Together, while the agent stands still: nobody puts anything back.
	n.Proc.Kill()
	n.Host.Sh("ip link set lo down; ip link del cw0; ip route flush table 51806; ip -6 route flush table 51806; ip -4 rule add pref 100 lookup main; ip -6 rule add pref 100 lookup main")
	w.runInto("ip", "ip6")
	w.none()

	// The capture sees what the wall held.
	clear, err := n.Host.Capture("eth0", w.filter)
	require.NoError(t, err)
	n.Host.Sh("nft delete chain inet causeway closed")
	for _, a := range append(live, gone...) {
		for _, proto := range []string{"ICMP", "UDP", "Flags [S]"} {
			require.NoError(t, lab.Wait(step(t), proto+" in clear to "+a, func(ctx context.Context) error {
				out, err := n.Host.Run(ctx, "sh", "-c", "tcpdump -nr "+clear.File+" 2>/dev/null || :")
				for l := range strings.Lines(out) {
					if strings.Contains(l, "> "+a) && strings.Contains(l, proto) {
						return nil
					}
				}
				return fmt.Errorf("none: %v", err)
			}))
		}
	}
	require.NoError(t, clear.Stop())
	n.Host.Sh("ip link set lo up; ip -4 rule del pref 100; ip -6 rule del pref 100; " + uplink)
	require.NoError(t, n.Start())
	healed("started again")
}
