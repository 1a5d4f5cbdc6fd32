package service

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/agent/items"
	"causeway/protocol"
)

func TestMeet(t *testing.T) {
	addrs := func(l ...string) (out []netip.Addr) {
		for _, s := range l {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	one := func(name string, x ...protocol.ServiceExpose) *placed {
		p := &placed{Service: items.Service{Name: name, ServiceItem: protocol.ServiceItem{Service: protocol.Service{
			Ports: []protocol.ServicePort{{Name: "http", Port: 80, Protocol: "tcp"}, {Name: "dns", Port: 53, Protocol: "udp"}}, Expose: x}}}}
		p.families[0].vip = netip.MustParseAddr("198.19.0.1")
		return p
	}
	o := Outside{Node: "n1", Addrs: addrs("192.0.2.1", "10.0.0.1", "2001:db8::1"),
		Allows: func(at netip.AddrPort) bool { return at.Port() < 9000 },
		Taken:  func(proto string, port uint16) bool { return proto == "udp" && port == 500 }}
	for _, x := range []struct {
		what string
		in   protocol.ServiceExpose
		at   []string
		why  string
		none bool
	}{
		{"all addresses", protocol.ServiceExpose{Site: "s1", Listen: "0.0.0.0:8080", Port: "http"}, []string{"192.0.2.1:8080", "10.0.0.1:8080"}, "", false},
		{"one address, by port", protocol.ServiceExpose{Node: "n1", Listen: "10.0.0.1:8080", Port: "53"}, []string{"10.0.0.1:8080"}, "", false},
		{"another site", protocol.ServiceExpose{Site: "s2", Listen: "0.0.0.0:8080", Port: "http"}, nil, "", true},
		{"another node", protocol.ServiceExpose{Node: "n2", Listen: "0.0.0.0:8080", Port: "http"}, nil, "", true},
		{"not accepted", protocol.ServiceExpose{Site: "s1", Listen: "0.0.0.0:9000", Port: "http"}, nil, `add "0.0.0.0:9000" to expose:`, false},
		{"the agent's own", protocol.ServiceExpose{Site: "s1", Listen: "0.0.0.0:500", Port: "dns"}, nil, "the agent's own", false},
		{"not here", protocol.ServiceExpose{Site: "s1", Listen: "192.0.2.2:80", Port: "http"}, nil, "no address 192.0.2.2", false},
		{"no such family", protocol.ServiceExpose{Site: "s1", Listen: "[::]:80", Port: "http"}, nil, "no address of that family", false},
	} {
		p := one("web", x.in)
		o.meet("s1", []*placed{p})
		if x.none {
			require.Empty(t, p.exposed, x.what)
			continue
		}
		require.Len(t, p.exposed, 1, x.what)
		var at []string
		for _, a := range p.exposed[0].At {
			at = append(at, a.String())
		}
		require.Equal(t, x.at, at, x.what)
		require.Contains(t, p.exposed[0].Why, x.why, x.what)
		require.Equal(t, x.why == "", unmet([]*placed{p}) == "", x.what)
	}

	// Of two at one place the first counts, and a port and a family have theirs alone.
	a, b := one("a", protocol.ServiceExpose{Site: "s1", Listen: "0.0.0.0:80", Port: "http"}), one("b", protocol.ServiceExpose{Node: "n1", Listen: "192.0.2.1:80", Port: "http"}, protocol.ServiceExpose{Node: "n1", Listen: "192.0.2.1:80", Port: "dns"})
	o.meet("s1", []*placed{a, b})
	require.Contains(t, b.exposed[0].Why, "service a is met there already")
	require.Equal(t, "service b is not exposed at 192.0.2.1:80: service a is met there already", unmet([]*placed{a, b}))
	require.Len(t, b.exposed[1].At, 1)
	require.Len(t, a.met(a.Ports[0], a.families[0].vip), 2)
	require.Empty(t, a.met(a.Ports[1], a.families[0].vip))
	require.Empty(t, a.met(a.Ports[0], netip.MustParseAddr("fd00::1")))

	still := o
	still.Still[0] = "net.ipv4.ip_forward=1"
	still.meet("s1", []*placed{a})
	require.Contains(t, a.exposed[0].Why, "forwards nothing from there: set net.ipv4.ip_forward=1")

	// A host that accepts nothing is none.
	p := one("web", protocol.ServiceExpose{Site: "s1", Listen: "0.0.0.0:80", Port: "http"})
	Outside{Node: "n1", Addrs: o.Addrs}.meet("s1", []*placed{p})
	require.Contains(t, p.exposed[0].Why, "does not accept it")
}
