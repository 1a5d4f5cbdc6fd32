package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// newNAT is the second topology: ns1 behind ns0, which translates its address,
// ns2 on the other side. Each device has its sockets where its interface is.
//
//	ns1 vethc 192.168.1.100 --- vethrc 192.168.1.1 ns0 10.0.0.1 vethrs --- veths 10.0.0.100 ns2
func newNAT(t *testing.T, e [2]string) *wgPair {
	p := newWgPair(t, e)
	p.Wire(p.n0, "vethrc", []string{"192.168.1.1/24"}, p.n1, "vethc", []string{"192.168.1.100/24"})
	p.Wire(p.n0, "vethrs", []string{"10.0.0.1/24"}, p.n2, "veths", []string{"10.0.0.100/24"})
	p.n1.Default("192.168.1.1")
	p.n0.Sysctl("net.ipv4.ip_forward=1")
	for _, h := range []*lab.Host{p.n0, p.n1, p.n2} {
		require.NoError(t, h.Settle(step(t)))
	}
	p.n0.Nft(`table ip nat {
	chain post { type nat hook postrouting priority srcnat; ip saddr 192.168.1.0/24 ip daddr 10.0.0.0/24 snat to 10.0.0.1; }
}`)
	p.d1 = p.device(e[0], "wg1", p.n1, p.n1)
	p.d2 = p.device(e[1], "wg2", p.n2, p.n2)
	p.configure()
	return p
}

// A persistent keepalive holds a translation that lives for 2 s, so that the
// side without an address can be reached.
func TestWireGuardNAT(t *testing.T) {
	enginePairs(t, [2]string{inlineEngine, reference}, func(t *testing.T, e [2]string) {
		p := newNAT(t, e)
		p.n0.Sysctl("net.netfilter.nf_conntrack_udp_timeout=2", "net.netfilter.nf_conntrack_udp_timeout_stream=2")
		p.wg("set", "wg1", "peer", p.key2.public, "endpoint", "10.0.0.100:2", "persistent-keepalive", "1")
		p.ping(p.n1, in2v4)
		p.ping(p.n2, in1v4)
		require.Equal(t, p.key1.public+"\t10.0.0.1:1", p.wg("show", "wg2", "endpoints"))
		// Four keepalives, of 32 bytes, take longer than the translation lives.
		_, before := p.transfer("wg1")
		p.eventually(func() error {
			if _, now := p.transfer("wg1"); now-before < 4*32 {
				return errState("fewer than four keepalives")
			}
			return nil
		})
		p.ping(p.n2, in1v4)

		// Without them it ends, and with it the way in.
		p.wg("set", "wg1", "peer", p.key2.public, "persistent-keepalive", "0")
		p.eventually(func() error {
			if s := p.n0.Sh("conntrack -L -p udp 2>/dev/null"); strings.Contains(s, "192.168.1.100") {
				return errState(s)
			}
			return nil
		})
		p.noPing(p.n2, in1v4)
	})
}

// Packets of a socket bound to the interface, and packets that are routed
// again because their mark changes, go out all the same. Layers of tunnels
// through one device work, and one that leads into itself harms nobody.
func TestWireGuardOnion(t *testing.T) {
	enginePairs(t, ours, func(t *testing.T, e [2]string) {
		p := newNAT(t, e)
		p.wg("set", "wg1", "peer", p.key2.public, "endpoint", "10.0.0.100:2")
		p.ping(p.n1, in2v4)
		p.ping(p.n1, in2v4, "-I", "wg1")
		p.n1.Nft(`table inet marks {
	chain out { type route hook output priority mangle; meta mark set 1; }
}`)
		p.ping(p.n1, in2v4)
		p.ping(p.n1, in2v4, "-I", "wg1")
		p.n1.Nft("delete table inet marks")

		p.wg("set", "wg1", "peer", p.key3.public, "allowed-ips", "192.168.242.2/32", "endpoint", in2v4+":5")
		p.n1.Addr("wg1", "192.168.242.1/24")
		third := p.device(e[1], "wg3", p.n2, p.n2)
		p.n2.Addr("wg3", "192.168.242.2/24")
		p.wg("set", "wg3", "private-key", p.key3.file, "listen-port", "5", "peer", p.key1.public, "allowed-ips", "192.168.242.1/32")
		p.ping(p.n1, "192.168.242.2")
		require.NoError(t, third.Stop(step(t)))
		p.wg("set", "wg1", "peer", p.key3.public, "endpoint", "192.168.242.2:5")
		p.noPing(p.n1, "192.168.242.2")
		p.wg("set", "wg1", "peer", p.key3.public, "remove")
		p.ping(p.n1, in2v4)
	})
}

// The default route leads into the tunnel as wg-quick(8) makes it: the device's
// own mark keeps its messages out. The underlay has an IPv6 default route too.
func TestWireGuardPolicyRouting(t *testing.T) {
	enginePairs(t, ours, func(t *testing.T, e [2]string) {
		p := newNAT(t, e)
		p.n1.Addr("vethc", "fc00::9/96").Default("fc00::1")
		p.n2.Addr("wg2", "192.168.99.7/32", "abab::1111/128")
		p.wg("set", "wg1", "fwmark", "51820", "peer", p.key2.public, "endpoint", "10.0.0.100:2", "allowed-ips", "192.168.99.7,abab::1111")
		require.Equal(t, "0xca6c", p.wg("show", "wg1", "fwmark"))
		for _, f := range []string{"-4", "-6"} {
			p.n1.Sh(fmt.Sprintf(`ip %[1]s route add default dev wg1 table 51820
				ip %[1]s rule add not fwmark 51820 table 51820
				ip %[1]s rule add table main suppress_prefixlength 0`, f))
		}
		p.n1.Sysctl("net.ipv4.conf.vethc.rp_filter=0", "net.ipv4.conf.all.rp_filter=0")
		p.pings(p.n1, "192.168.99.7", 100)
		p.pings(p.n1, "abab::1111", 100)
	})
}

// Who sends to nobody is told so at once, also through a translation of
// addresses, by the way he came. The kernel's device answers from the host's own
// address; what a userspace device writes comes out of the tunnel, where such an
// address would be dropped as forged, so the error is from the address that was
// asked for, and netns.sh's own filter of sources on ns0 is left out.
func TestWireGuardUnreachable(t *testing.T) {
	t.Parallel()
	p := newNAT(t, ours)
	p.wg("set", "wg1", "peer", p.key2.public, "endpoint", "10.0.0.100:2")
	p.ping(p.n1, in2v4)
	p.n2.Nft(`table ip nat {
	chain post { type nat hook postrouting priority srcnat; ip saddr 10.0.0.0/24 ip daddr 192.168.241.0/24 snat to 192.168.241.2; }
}`)
	p.n2.Sysctl("net.ipv4.ip_forward=1")
	p.n0.Route(in1v4, "10.0.0.100")
	p.ping(p.n0, in1v4)
	p.wg("set", "wg2", "peer", p.key1.public, "remove")
	require.Contains(t, p.noPing(p.n0, in1v4), "From "+in1v4+" icmp_seq=1 Destination Host Unreachable")
	require.Contains(t, p.noPing(p.n2, in1v4), "Destination Host Unreachable")
	require.Contains(t, p.noPing(p.n2, in1v6), "Destination unreachable: Address unreachable")
}
