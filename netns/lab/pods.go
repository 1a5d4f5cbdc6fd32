package lab

import (
	"fmt"
	"net/netip"
	"strings"
)

// PodNet is a bridge on a host with pods behind it.
type PodNet struct {
	host     *Host
	bridge   string
	gateways []netip.Prefix
}

// PodNet makes a bridge with the gateways' addresses, such as 10.1.0.1/24.
func (h *Host) PodNet(bridge string, gateways ...string) *PodNet {
	n := &PodNet{host: h, bridge: bridge}
	for _, g := range gateways {
		p, err := netip.ParsePrefix(g)
		if err != nil {
			h.lab.fail(fmt.Errorf("pod network of %s: %w", h.Name, err))
		}
		n.gateways = append(n.gateways, p)
	}
	h.sh("ip link add " + bridge + " type bridge")
	h.up(bridge, gateways)
	h.links = append(h.links, fmt.Sprintf("%s (%s): pods", bridge, strings.Join(gateways, ", ")))
	return n
}

// Pod makes a pod: a namespace with eth0 in the bridge, and default routes by
// the gateways.
func (n *PodNet) Pod(name string, addrs ...string) *Host {
	p := n.host.lab.host(name, "pod")
	l := n.host.lab
	l.mu.Lock()
	l.links++
	port := fmt.Sprintf("pod%d", l.links)
	l.mu.Unlock()
	p.sh(fmt.Sprintf("ip link add eth0 type veth peer name %s netns %s", port, n.host.ns))
	n.host.sh(fmt.Sprintf("ip link set %s master %s up", port, n.bridge))
	p.up("eth0", addrs)
	p.links = append(p.links, fmt.Sprintf("eth0 (%s) on %s", strings.Join(addrs, ", "), n.host.Name))
	for _, g := range n.gateways {
		p.Default(g.Addr().String())
	}
	return p
}
