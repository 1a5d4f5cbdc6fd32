package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// newCable is the third topology: two hosts with a cable between them, veth1
// and veth2, without addresses yet.
func newCable(t *testing.T, e [2]string) *wgPair {
	p := newWgPair(t, e)
	p.Wire(p.n1, "veth1", nil, p.n2, "veth2", nil)
	p.settle()
	p.d1 = p.device(e[0], "wg1", p.n1, p.n1)
	p.d2 = p.device(e[1], "wg2", p.n2, p.n2)
	p.configure()
	return p
}

// settle waits until the addresses just given answer.
func (p *wgPair) settle() {
	p.t.Helper()
	for _, h := range []*lab.Host{p.n1, p.n2} {
		require.NoError(p.t, h.Settle(step(p.t)))
	}
}

func (p *wgPair) endpointOf1(want string) {
	p.t.Helper()
	require.Equal(p.t, p.key1.public+"\t"+want, p.wg("show", "wg2", "endpoints"))
}

// A device goes on from another address when the one it used is taken away.
func TestWireGuardSourceGone(t *testing.T) {
	oursAlone(t, func(t *testing.T, e [2]string) {
		p := newCable(t, e)
		p.n1.Sysctl("net.ipv4.conf.veth1.promote_secondaries=1")
		p.n1.Addr("veth1", "10.0.0.1/24", "fd00:aa::1/96")
		p.n2.Addr("veth2", "10.0.0.2/24", "fd00:aa::2/96")
		p.settle()
		p.wg("set", "wg1", "peer", p.key2.public, "endpoint", "10.0.0.2:2")
		p.ping(p.n1, in2v4)
		p.n1.Addr("veth1", "10.0.0.10/24")
		p.n1.Sh("ip addr del 10.0.0.1/24 dev veth1")
		p.ping(p.n1, in2v4)
		p.endpointOf1("10.0.0.10:1")
		p.wg("set", "wg1", "peer", p.key2.public, "endpoint", "[fd00:aa::2]:2")
		p.ping(p.n1, in2v4)
		p.n1.Addr("veth1", "fd00:aa::10/96")
		p.settle()
		p.n1.Sh("ip addr del fd00:aa::1/96 dev veth1")
		p.ping(p.n1, in2v4)
		p.endpointOf1("[fd00:aa::10]:1")
	})
}

// A peer is answered from the address that it sent to, whichever the kernel
// would choose, also one of an interface that does not lead to the peer.
func TestWireGuardSourceSticks(t *testing.T) {
	oursAlone(t, func(t *testing.T, e [2]string) {
		p := newCable(t, e)
		p.n1.Addr("veth1", "10.0.0.1/24", "10.0.0.2/24", "fd00:aa::1/96", "fd00:aa::2/96")
		p.n2.Addr("veth2", "10.0.0.3/24", "fd00:aa::3/96")
		p.settle()
		for _, a := range []string{"10.0.0.1:1", "[fd00:aa::1]:1", "10.0.0.2:1", "[fd00:aa::2]:1"} {
			p.wg("set", "wg2", "peer", p.key1.public, "endpoint", a)
			p.ping(p.n2, in1v4)
			p.endpointOf1(a)
		}
		p.n1.Sh("ip link add dummy0 type bridge; ip link set dummy0 up")
		p.n1.Addr("dummy0", "10.50.0.1/24")
		p.n2.Sh("ip route add 10.50.0.0/24 dev veth2")
		p.wg("set", "wg2", "peer", p.key1.public, "endpoint", "10.50.0.1:1")
		p.ping(p.n2, in1v4)
		p.endpointOf1("10.50.0.1:1")
	})
}

// A better route through another interface is taken, with its address, though
// the old one still works. netns.sh has a cable of its own for it too.
func TestWireGuardSourceFollowsRoute(t *testing.T) {
	enginePairs(t, ours, func(t *testing.T, e [2]string) {
		p := newCable(t, e)
		p.Wire(p.n1, "veth3", []string{"10.0.0.3/24"}, p.n2, "veth4", nil)
		p.n1.Addr("veth1", "10.0.0.1/24")
		p.n2.Addr("veth2", "10.0.0.2/24")
		p.settle()
		for _, h := range []*lab.Host{p.n1, p.n2} {
			h.Sysctl("net.ipv4.conf.all.rp_filter=0")
		}
		p.n1.Sysctl("net.ipv4.conf.veth1.rp_filter=0")
		p.n2.Sysctl("net.ipv4.conf.veth4.rp_filter=0")
		p.n1.Sh("ip route flush dev veth1; ip route flush dev veth3; ip route add 10.0.0.0/24 dev veth1 src 10.0.0.1 metric 2")
		p.wg("set", "wg1", "peer", p.key2.public, "endpoint", "10.0.0.2:2")
		p.ping(p.n1, in2v4)
		p.endpointOf1("10.0.0.1:1")
		p.n1.Sh("ip route add 10.0.0.0/24 dev veth3 src 10.0.0.3 metric 1")
		p.ping(p.n1, in2v4)
		p.endpointOf1("10.0.0.3:1")
	})
}
