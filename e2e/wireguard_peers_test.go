package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A device that changes its port, or its address, is found at the new one by
// its first authenticated message, whatever the family. Last, not in netns.sh:
// an address set by hand does not keep a peer from being found where it was all
// along.
func TestWireGuardRoaming(t *testing.T) {
	enginePairs(t, ours, func(t *testing.T, e [2]string) {
		p := newLoopback(t, e)
		p.ping(p.n1, in2v4)
		p.n0.Sh("ip -4 addr del 127.0.0.1/8 dev lo; ip -4 addr add 127.212.121.99/8 dev lo")
		p.wg("set", "wg1", "listen-port", "9999")
		p.wg("set", "wg1", "peer", p.key2.public, "endpoint", "127.0.0.1:2")
		p.ping(p.n1, in2v6)
		require.Equal(t, p.key1.public+"\t127.212.121.99:9999", p.wg("show", "wg2", "endpoints"))
		p.wg("set", "wg1", "listen-port", "9998")
		p.wg("set", "wg1", "peer", p.key2.public, "endpoint", "[::1]:2")
		p.ping(p.n1, in2v4)
		require.Equal(t, p.key1.public+"\t[::1]:9998", p.wg("show", "wg2", "endpoints"))
		require.Equal(t, "9998", p.wg("show", "wg1", "listen-port"))

		p.wg("set", "wg2", "peer", p.key1.public, "endpoint", "127.9.9.9:9")
		p.ping(p.n1, in2v4)
		require.Equal(t, p.key1.public+"\t[::1]:9998", p.wg("show", "wg2", "endpoints"))
	})
}

// A source address that belongs to another peer by a longer prefix is dropped;
// the message still is authentic, so its sender is found at its new port. netns.sh
// sends a line by ncat; here a counter says whether an echo got through.
func TestWireGuardForeignSource(t *testing.T) {
	enginePairs(t, ours, func(t *testing.T, e [2]string) {
		p := newLoopback(t, e)
		p.endpoints("[::1]:2", "[::1]:1")
		p.wg("set", "wg1", "peer", p.key2.public, "allowed-ips", "192.168.241.0/24")
		p.n1.Nft(`table inet got {
	counter echoes { }
	chain inp { type filter hook input priority 0; iifname "wg1" icmp type echo-request counter name echoes; }
}`)
		got := func(n string) {
			t.Helper()
			require.Contains(t, p.n1.Sh("nft list counter inet got echoes"), "packets "+n+" ")
		}
		p.ping(p.n2, in1v4)
		got("1")
		other := p.key()
		p.wg("set", "wg1", "peer", other.public, "allowed-ips", "192.168.241.2/32")
		p.wg("set", "wg2", "listen-port", "9997")
		p.noPing(p.n2, in1v4)
		got("1")
		p.wg("set", "wg1", "peer", other.public, "remove")
		require.Equal(t, p.key2.public+"\t[::1]:9997", p.wg("show", "wg1", "endpoints"))
		p.ping(p.n2, in1v4)
		got("2")
	})
}

// A device with a new key makes a session at once, without waiting for a timer;
// whoever does not know the key does not answer.
func TestWireGuardKeyChange(t *testing.T) {
	enginePairs(t, ours, func(t *testing.T, e [2]string) {
		p := newLoopback(t, e)
		p.ping(p.n1, in2v4)
		p.wg("set", "wg1", "private-key", p.key3.file)
		p.wg("set", "wg2", "peer", p.key3.public, "preshared-key", p.psk.file, "allowed-ips", in1v4+"/32", "peer", p.key1.public, "remove")
		p.ping(p.n1, in2v4)
		require.Equal(t, p.key3.public, p.wg("show", "wg1", "public-key"))
		p.wg("set", "wg2", "peer", p.key3.public, "remove")
		p.noPing(p.n1, in2v4)

		// Another preshared key on one side: no session comes of it.
		p.wg("set", "wg2", "peer", p.key3.public, "preshared-key", p.key1.file, "allowed-ips", in1v4+"/32", "endpoint", "127.0.0.1:1")
		p.noPing(p.n2, in1v4)
		require.Contains(t, p.wg("show", "wg2", "latest-handshakes"), "\t0")
	})
}

// A tunnel inside a tunnel carries traffic. Then, with the inner one's interface
// where the outer one's sockets are and each the way to the other, a packet goes
// round until it outgrows the MTU, and no further. The inner devices are wg3 and wg4.
func TestWireGuardInWireGuard(t *testing.T) {
	enginePairs(t, ours, func(t *testing.T, e [2]string) {
		p := newWgPair(t, e)
		p.device(e[0], "wg1", p.n0, p.n1)
		outer2 := p.device(e[1], "wg2", p.n0, p.n2)
		p.n1.Addr("wg1", "fd00::5:1/112")
		p.n2.Addr("wg2", "fd00::5:2/112")
		p.wg("set", "wg1", "private-key", p.key1.file, "listen-port", "1", "peer", p.key2.public, "preshared-key", p.psk.file, "allowed-ips", "fd00::5:2/128", "endpoint", "127.0.0.1:2")
		p.wg("set", "wg2", "private-key", p.key2.file, "listen-port", "2", "peer", p.key1.public, "preshared-key", p.psk.file, "allowed-ips", "fd00::5:1/128", "endpoint", "127.0.0.1:1")
		key4 := p.key()
		p.device(e[0], "wg3", p.n1, p.n1, "-mtu", "1340")
		inner2 := p.device(e[1], "wg4", p.n2, p.n2, "-mtu", "1340")
		p.n1.Addr("wg3", in1v4+"/24", in1v6+"/112")
		p.n2.Addr("wg4", in2v4+"/24", in2v6+"/112")
		p.wg("set", "wg3", "listen-port", "5", "private-key", p.key3.file, "peer", key4.public, "allowed-ips", in2v4+"/32,"+in2v6+"/128", "endpoint", "[fd00::5:2]:5")
		p.wg("set", "wg4", "listen-port", "5", "private-key", key4.file, "peer", p.key3.public, "allowed-ips", in1v4+"/32,"+in1v6+"/128", "endpoint", "[fd00::5:1]:5")
		p.serve(p.n2)
		p.pings(p.n1, in2v4, 10)
		p.pings(p.n2, in1v6, 10)
		require.NoError(t, p.send(p.n1, "tcp", in2v4, 4<<20))
		require.NoError(t, p.send(p.n1, "udp", in2v6, 4<<20))

		if e[0] == reference {
			return // it lets the packet go round for good
		}
		p.n1.Sh("ip link set wg3 netns " + p.n0.Namespace())
		p.n0.Sh("ip link set wg3 up")
		p.n0.Addr("wg3", in1v4+"/24")
		p.ping(p.n0, in2v4)
		p.wg("set", "wg1", "peer", p.key2.public, "endpoint", in2v4+":7")
		require.NoError(t, outer2.Stop(step(t)))
		require.NoError(t, inner2.Stop(step(t)))
		_, before := p.transfer("wg3")
		p.noPing(p.n0, in2v4, "-f", "-c", "10")
		settled := before
		p.eventually(func() error { // until nothing goes round any more
			last := settled
			if _, settled = p.transfer("wg3"); settled != last {
				return errState("still going round")
			}
			return nil
		})
		require.Less(t, settled-before, 70000)
	})
}
