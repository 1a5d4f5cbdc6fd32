package explain

import (
	"fmt"
	"net/netip"

	"causeway/hub/api"
	"causeway/protocol"
)

// gateway is the node's address that machines behind it know it by.
func gateway(s side, p *protocol.PodEvidence) string {
	if p.Beside.IsValid() {
		return p.Beside.String()
	}
	return "the address of " + s.node() + " on " + p.Interface
}

// noReturn reports whether what is behind a node answers its neighbours, and nobody beyond,
// for its answers go elsewhere.
func (j *judge) noReturn(s side, p *protocol.PodEvidence) bool {
	if p.Near == nil || p.Far == nil || p.Near.Received == 0 || p.Far.Received > 0 {
		return false
	}
	if o := s.other.Evidence; o != nil && (o.Reach != nil && o.Reach.Received > 0 || s.to && o.Connect != nil && o.Connect.Result != protocol.ConnectTimeout) {
		return false // something came back to the other end: it has no need of the way to overlay addresses
	}
	if len(p.Spaces) == 1 { // its routes are known, and firewalls inside may drop pings
		via := p.Spaces[0].Gateway
		return via.IsValid() && p.Beside.IsValid() && via != p.Beside && via.Is4() // IPv6's is often link-local
	}
	return len(p.Spaces) == 0
}

// noReturnFault says where the way back has to be made: on a machine that nobody here sees.
func (j *judge) noReturnFault(s side, p *protocol.PodEvidence) api.Fault {
	far := rangeOf(s.other)
	f := api.Fault{Cause: "no-way-back", Hop: HopPod, Node: s.node(), Blocks: true,
		Evidence: []string{fmt.Sprintf("pings from beside it: %d of %d answered, from the overlay address of %s: none", p.Near.Received, p.Near.Sent, s.node())}}
	router, why := netip.Addr{}, "its gateway is another than "+s.node()+" and does not know the way, or it has none, or its own firewall lets only neighbours in"
	if len(p.Spaces) == 1 {
		router = p.Spaces[0].Gateway
		why = "its gateway is " + router.String() + ", not " + s.node()
		f.Evidence = append(f.Evidence, fmt.Sprintf("/proc/%d/net/route leads to %s", p.Spaces[0].PID, router))
	}
	f.Summary = fmt.Sprintf("answers of %s do not come back to %s: %s", s.Addr, s.node(), why)
	place := "the router that is the gateway of " + s.Addr.String()
	if router.IsValid() {
		place = "the router " + router.String()
	}
	f.Mend = on(place, fmt.Sprintf("ip%s route add %s via %s", ip6(s.Addr), far, gateway(s, p)))
	if p.Beside.IsValid() && plainOnly(p.Interface, s.e.Flow.Interface) {
		f.Mend += "; or, if that cannot be (whoever is asked then sees " + p.Beside.String() + "), " + masquerade(s, p)
	}
	return f
}

// masquerade gives what comes out of the tunnel to one machine the node's own address there,
// in a table of its own that one command takes away again.
func masquerade(s side, p *protocol.PodEvidence) string {
	family := "ip"
	if s.Addr.Is6() {
		family = "ip6"
	}
	t := family + " causeway_back"
	return on(s.node(), fmt.Sprintf("nft 'add table %s; add chain %s post { type nat hook postrouting priority 80; }; add rule %s post iifname \"%s\" oifname \"%s\" %s saddr %s %s daddr %s masquerade'",
		t, t, t, s.e.Flow.Interface, p.Interface, family, rangeOf(s.other), family, s.Addr))
}
