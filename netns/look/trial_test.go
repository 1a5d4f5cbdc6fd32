package look

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/netns"
	"causeway/netns/lab"
	"causeway/protocol"
)

func (w *wall) try() (t Trial) {
	w.t.Helper()
	require.NoError(w.t, w.node.Do(func() (err error) {
		t, err = w.look.Try(context.Background(), func(b []byte) error {
			_, err := w.tun.Write(b)
			return err
		})
		return err
	}))
	return t
}

// added counts the lines that after has and before has not; none of before's may be gone.
func added(t *testing.T, before, after string) int {
	t.Helper()
	left := strings.Split(after, "\n")
	for l := range strings.SplitSeq(before, "\n") {
		i := slices.Index(left, l)
		require.GreaterOrEqual(t, i, 0, "%q is gone:\n%s", l, after)
		left = slices.Delete(left, i, i+1)
	}
	return len(left)
}

// asPrinted runs the command of nft's that stands in what was said of a trial, if there is one: all comes
// through then, and so many rules are added.
func (w *wall) asPrinted(t *testing.T, blocked string, adds int, before string, state func() string) {
	t.Helper()
	_, mend, ok := strings.Cut(blocked, ": run 'nft ")
	if !ok {
		require.Zero(t, adds, "no command was printed: %s", blocked)
		return
	}
	w.node.Sh("nft " + strings.TrimSuffix(mend, "'"))
	require.Empty(t, w.try().Blocked, "after what was printed: %s", blocked)
	require.Equal(t, adds, added(t, before, state()), "what was printed: %s", blocked)
}

// Each way that a host's kernel has of losing what comes out of the tunnel or goes into it is
// seen, whoever put it there, and named where rules say it. Nothing of a trial gets to pod or
// peer, and nothing of it stays.
func TestTrial(t *testing.T) {
	t.Parallel()
	w := newWall(t)
	state := func() string {
		return w.node.Sh("nft -s list ruleset; tc qdisc show | grep -v clsact; tc filter show dev cw0 ingress 2>&1 || :; grep tcp /proc/net/nf_conntrack || :")
	}
	capture, err := w.pod.Capture("eth0", "tcp")
	require.NoError(t, err)
	chain := func(hook string, priority int, rule string) string {
		return fmt.Sprintf("nft add table inet f; nft 'add chain inet f c { type filter hook %s priority %d; }'; nft add rule inet f c %s", hook, priority, rule)
	}
	nat := func(priority, rule string) string {
		return "nft add table ip f; nft 'add chain ip f c { type nat hook postrouting priority " + priority + "; }'; nft add rule ip f c " + rule
	}
	const gone, noNAT, source = "nft delete table inet f", "nft delete table ip f", "packets that 10.1.0.11 sends by pods0 leave by cw0 with another source, "
	in, in6, out := "packets that come by cw0 for 10.1.0.11 do not get to pods0", "packets that come by cw0 for fd10:1::11 do not get to pods0", "packets that 10.1.0.11 sends by pods0 do not get into cw0"
	for _, c := range []struct {
		name, do, undo, want string
		adds                 int // rules that the command which is printed adds
	}{
		{"nothing in the way", "true", "true", "", 0},
		{"raw, one pod", chain("prerouting", -300, `iifname != "pods0" ip daddr 10.1.0.11 drop`), gone, in + `, nftables chain inet f c drops them: iifname != "pods0" ip daddr 10.1.0.11 drop`, 0},
		{"a rule that counts", chain("prerouting", -300, `iifname cw0 ip daddr 10.1.0.11 counter drop`), gone, in + `, nftables chain inet f c drops them: iifname "cw0" ip daddr 10.1.0.11 counter drop`, 0},
		{"raw, one pod, IPv6", chain("prerouting", -300, `iifname != "pods0" ip6 daddr fd10:1::11 drop`), gone, in6 + `, nftables chain inet f c drops them: iifname != "pods0" ip6 daddr fd10:1::11 drop`, 0},
		{"what pods begin", chain("forward", 0, `ip saddr 10.1.0.11 ct state new drop`), gone, out + `, nftables chain inet f c drops them: ip saddr 10.1.0.11 ct state new drop`, 1},
		{"all but ping is rejected", chain("forward", 0, `ip protocol icmp accept; nft add rule inet f c iifname cw0 reject`), gone, in + `, nftables chain inet f c drops them: iifname "cw0" reject`, 1},
		{"firewalld", "nft add table inet firewalld; nft 'add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; }'; nft add rule inet firewalld filter_FORWARD ct state established,related accept; nft add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited",
			"nft delete table inet firewalld", in + ", firewalld rejects them (nftables chain inet firewalld filter_FORWARD): run 'firewall-cmd --permanent --zone=trusted --add-interface=cw0 --add-interface=pods0 && firewall-cmd --reload'", 0},
		{"ufw", "iptables-nft -N ufw-user-forward; iptables-nft -A ufw-user-forward -i none -j ACCEPT; iptables-nft -A FORWARD -j ufw-user-forward; iptables-nft -P FORWARD DROP",
			"iptables-nft -P FORWARD ACCEPT; iptables-nft -F; nft delete table ip filter", in + ", ufw drops them (nftables chain ip filter FORWARD): run 'ufw route allow in on cw0 out on pods0 && ufw route allow in on pods0 out on cw0'", 0},
		{"a rule that is no nftables: routing policy", "ip rule add pref 5 iif pods0 to 10.2.0.0/24 blackhole", "ip rule del pref 5", ", and no rule", 0},
		{"forwarding off", "sysctl -qw net.ipv4.conf.cw0.forwarding=0", "sysctl -qw net.ipv4.conf.cw0.forwarding=1", in + ", and no rule", 0},
		{"a NAT that is ahead of ours", nat("50", "oifname cw0 masquerade"), noNAT, source + `198.18.0.2: nftables chain ip f c gives it to them: oifname "cw0" masquerade: run 'nft insert rule ip f c handle 2 oifname cw0 accept'`, 1},
		{"a NAT to an address of nobody's", nat("50", "tcp dport 22 masquerade; nft add rule ip f c ip saddr 10.1.0.0/24 snat to 192.0.2.77"), noNAT, source + `192.0.2.77: nftables chain ip f c gives it to them: ip saddr 10.1.0.0/24 snat to 192.0.2.77: run 'nft insert rule ip f c handle 3 oifname cw0 accept'`, 1},
		{"a NAT behind ours", nat("100", "oifname cw0 masquerade"), noNAT, "", 0},
		{"a source that is set without a connection's memory", chain("postrouting", 300, "oifname cw0 ip daddr 10.2.0.0/24 ip saddr set 192.0.2.77"), gone, source + `192.0.2.77: nftables chain inet f c gives it to them: oifname "cw0" ip daddr 10.2.0.0/24 ip saddr set 192.0.2.77`, 0},
		{"a NAT toward pods", "iptables-nft -t nat -A POSTROUTING -o pods0 -j MASQUERADE", "iptables-nft -t nat -F; nft delete table ip nat", "packets that come by cw0 for 10.1.0.11 leave by pods0 with another source, 10.1.0.1: nftables chain ip nat POSTROUTING gives it to them: ", 0},
		{"a policy", "nft add table inet f; nft 'add chain inet f c { type filter hook forward priority 0; policy drop; }'; nft add rule inet f c tcp dport 22 drop", gone, in + ", nftables chain inet f c drops them: policy drop: run 'nft add rule inet f c iifname cw0 oifname pods0 accept && nft add rule inet f c iifname pods0 oifname cw0 accept'", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.node.Sh("ping -nc1 -W5 10.1.0.11 >/dev/null; ping -nc1 -W5 fd10:1::11 >/dev/null") // neighbours
			w.node.Sh(c.do)
			before := state()
			got := w.try()
			require.True(t, got.Whole)
			if c.want == "" {
				require.Empty(t, got.Blocked)
			}
			require.Contains(t, got.Blocked, c.want)
			require.Equal(t, before, state())
			w.asPrinted(t, got.Blocked, c.adds, before, state)
			w.node.Sh(c.undo)
			require.Equal(t, Trial{Whole: true, Tried: got.Tried}, w.try())
		})
	}
	// A container bridge that no container is on: nobody sends by it, and nothing is wrong.
	port := strings.Fields(w.node.Sh("ip -o link show master pods0"))[1]
	port, _, _ = strings.Cut(port, "@")
	w.node.Sh("ip link set " + port + " down; until ip link show pods0 | grep -q NO-CARRIER; do :; done")
	require.Equal(t, Trial{Whole: true, Tried: 2}, w.try())
	w.node.Sh("ip link set " + port + " up")
	require.NoError(t, w.node.Settle(t.Context()))
	require.Equal(t, Trial{Whole: true, Tried: 4}, w.try())

	// Without a peer nothing but the overlay leads into the tunnel, where walls stand around hubs.
	c := w.plan.Config
	c.Routes = prefixes("198.18.0.0/15", "fd63:7761:7900::/96")
	c.Wall = netns.Wall{Hubs: []netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("fd63:7761:7900::1")}, Overlay: c.Routes}
	w.set(c)
	require.Equal(t, Trial{Whole: true, Tried: 4}, w.try())
	w.pod.Sh("timeout 1 bash -c '</dev/tcp/10.1.0.1/9' || :")
	require.NoError(t, capture.Stop())
	seen := w.pod.Sh("tcpdump -nr " + capture.File + " 2>/dev/null")
	require.Contains(t, seen, "> 10.1.0.1.9: Flags [S]", "the capture sees what there is")
	require.NotContains(t, seen, "10.2.0.")
	require.NotContains(t, seen, "fd10:2::")
	w.tun.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	for b := make([]byte, 2000); ; {
		n, err := w.tun.Read(b)
		if err != nil {
			break
		}
		t.Errorf("a peer would get % x", b[:n])
	}
}

// Docker 29 with either of its backends: with iptables what comes by the tunnel for this node's
// range is let through, and nothing else is; with nftables the condition says how Docker is
// told to, and that makes it so. Its rules come anew with each container.
func TestDocker29(t *testing.T) {
	t.Parallel()
	read := func(name string) string {
		b, err := os.ReadFile("testdata/docker29/" + name)
		require.NoError(t, err)
		return string(b)
	}
	// reached tells which of two ports of the pod, one published, answer whom.
	ports := func(w *wall) string {
		return w.lan.Sh("for p in 80 81; do timeout 2 bash -c \"</dev/tcp/10.1.0.11/$p\" 2>/dev/null && echo lan $p; done; :")
	}
	load := func(w *wall, backend, rules string) {
		if backend == "nftables" {
			w.node.Sh("nft delete table ip docker-bridges 2>/dev/null || :; nft -f - <<'X'\n" + rules + "X")
			return
		}
		w.node.Sh(backend + "-restore <<'X'\n" + rules + "X")
	}
	for _, backend := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			w := newWall(t)
			served(w)
			load(w, backend, read("iptables"))
			saved := func() string { return w.node.Sh(backend + "-save | grep -v '^#' | sed 's/\\[.*//'") }
			before, open := saved(), ports(w)
			require.NoError(t, w.node.Do(func() error {
				if backend == "iptables-nft" { // of legacy tables nftables tells nothing
					require.Contains(t, ReadBlocked(context.Background(), "cw0", w.plan.Local), "nftables chain ip raw PREROUTING drops them")
				}
				return nil
			}))
			for range 2 { // Docker restarted
				got := w.try()
				require.Equal(t, Trial{Whole: true, Tried: 4}, got)
				require.Equal(t, open, ports(w), "the LAN reaches what it did")
				require.Equal(t, "1", strings.TrimSpace(w.node.Sh(backend+" -t raw -S | grep -c 'A PREROUTING -d 10.1.0.0/24 -i cw0 .*-j ACCEPT'")))
				// The container restarted, with another address.
				w.node.Sh(backend + " -t raw -D PREROUTING -d 10.1.0.11/32 ! -i pods0 -j DROP; " + backend + " -t raw -A PREROUTING -d 10.1.0.12/32 ! -i pods0 -j DROP")
				require.Empty(t, w.try().Blocked)
				load(w, backend, read("iptables"))
			}
			require.NoError(t, w.node.Do(func() error {
				rec, err := os.ReadFile(filepath.Join(w.state, "host.json"))
				require.NoError(t, err)
				require.Equal(t, 1, strings.Count(string(rec), `"PREROUTING"`), "%s", rec)
				w.plan.Local = w.plan.Local[:0] // the range is not this node's any more
				return w.h.Apply(context.Background(), w.plan)
			}))
			require.NotContains(t, saved(), "-t raw -i cw0")
			require.NotContains(t, w.node.Sh(backend+" -t raw -S"), "cw0")
			w.apply(netns.Shields{})
			require.Contains(t, w.node.Sh(backend+" -t raw -S"), "cw0", "by an apply alone")
			require.NoError(t, w.node.Do(func() error {
				return netns.NewHost(w.state, zerolog.Nop()).Remove(context.Background(), w.plan.Config)
			}))
			require.Equal(t, before, saved(), "taken back")
		})
	}
	t.Run("nftables", func(t *testing.T) {
		t.Parallel()
		w := newWall(t)
		served(w)
		rules := read("nftables")
		load(w, "nftables", rules)
		open := ports(w)
		got := w.try()
		require.Equal(t, "packets that come by cw0 for 10.1.0.11 do not get to pods0, Docker drops them (nftables chain ip docker-bridges raw-PREROUTING): "+protocol.DockerMend(), got.Blocked)
		require.NoError(t, w.node.Do(func() error {
			require.Equal(t, got.Blocked, ReadBlocked(context.Background(), "cw0", w.plan.Local), "as rules alone say it")
			return nil
		}))
		// Half of the mend is none.
		direct := strings.Join(slices.DeleteFunc(strings.SplitAfter(rules, "\n"), func(l string) bool { return strings.Contains(l, "DROP DIRECT ACCESS") }), "")
		load(w, "nftables", direct)
		require.Contains(t, w.try().Blocked, "(nftables chain ip docker-bridges filter-forward-in__pods0): "+protocol.DockerMend())
		mended := strings.Replace(direct, "\t\tiifname \"pods0\" counter accept", "\t\tmeta mark and 4096 == 4096 counter accept comment \"ALLOW FW MARK\"\n\t\tiifname \"pods0\" counter accept", 1)
		load(w, "nftables", mended)
		require.Equal(t, Trial{Whole: true, Tried: 4}, w.try())
		require.Equal(t, "lan 80\n", ports(w), "the LAN reaches published ports alone")
		require.Contains(t, []string{"", "lan 80\n"}, open)
		load(w, "nftables", rules) // given up again
		require.NotEmpty(t, w.try().Blocked)
		require.NotContains(t, w.node.Sh("nft list tables"), "causeway-docker")
		load(w, "nftables", mended)
		require.Empty(t, w.try().Blocked)
		require.NoError(t, w.node.Do(func() error { return w.h.Remove(context.Background(), w.plan.Config) }))
		require.Equal(t, "table ip docker-bridges\n", w.node.Sh("nft list tables"), "taken back")
	})
}

// served has the pod listen at a port that Docker publishes, and at one that it does not.
func served(w *wall) {
	w.t.Helper()
	for _, p := range []string{"80", "81"} {
		_, err := w.pod.Start(lab.Program{Name: "serve" + p, Args: []string{"busybox", "httpd", "-f", "-p", p}})
		require.NoError(w.t, err)
	}
}
