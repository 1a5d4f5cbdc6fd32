package service

import (
	"fmt"
	"net/netip"
	"slices"

	svc "causeway/netns/service"
	"causeway/protocol"
)

// Outside is how this host may be met from elsewhere than the tunnel.
type Outside struct {
	Node   string                               // its name
	Addrs  []netip.Addr                         // of the host's own, at which others reach it
	Allows func(listen netip.AddrPort) bool     // the host's configuration; nil: nothing
	Still  [2]string                            // what is to be set before the host forwards IPv4, and IPv6; empty: it does
	Taken  func(proto string, port uint16) bool // by the agent itself; nil: nothing
}

// meet says where on this host the outside reaches services. Of two at one place the first counts.
func (o Outside) meet(site string, l []*placed) {
	type place struct {
		at    netip.AddrPort
		proto string
	}
	by, n := map[place]string{}, 0
	for _, p := range l {
		p.exposed = nil
		for _, x := range p.Expose {
			if x.Site != site && x.Node != o.Node {
				continue
			}
			listen, err := x.At()
			port, has := p.PortOf(x)
			if err != nil || !has {
				continue
			}
			v := protocol.ServiceExposedView{Listen: x.Listen, Proto: port.Protocol, Port: port.Port}
			at := []netip.AddrPort{listen}
			if listen.Addr().IsUnspecified() {
				at = nil
				for _, a := range o.Addrs {
					if a.Is4() == listen.Addr().Is4() {
						at = append(at, netip.AddrPortFrom(a, listen.Port()))
					}
				}
			}
			vip := p.families[familyIndex(listen.Addr())].vip
			other := ""
			for _, a := range at {
				if s, taken := by[place{a, port.Protocol}]; taken {
					other = s
				}
			}
			switch {
			case o.Allows == nil || !o.Allows(listen):
				v.Why = fmt.Sprintf("this host does not accept it: add %q to expose: in its configuration", x.Listen)
			case o.Taken != nil && o.Taken(port.Protocol, listen.Port()):
				v.Why = fmt.Sprintf("%s/%d is the agent's own", port.Protocol, listen.Port())
			case len(at) == 0 || !slices.Contains(o.Addrs, at[0].Addr()):
				v.Why = fmt.Sprintf("this host has no address %s at which others reach it", listen.Addr())
			case o.Still[familyIndex(listen.Addr())] != "":
				v.Why = fmt.Sprintf("this host forwards nothing from there: set %s", o.Still[familyIndex(listen.Addr())])
			case !vip.IsValid():
				v.Why = "the service has no address of that family"
			case other != "":
				v.Why = fmt.Sprintf("service %s is met there already", other)
			case n+len(at) > svc.MaxExposed:
				v.Why = fmt.Sprintf("more than %d addresses and ports of this host lead to services", svc.MaxExposed)
			default:
				for _, a := range at {
					by[place{a, port.Protocol}] = p.Name
				}
				v.At, n = at, n+len(at)
			}
			p.exposed = append(p.exposed, v)
		}
	}
}

// met is where on this host a port of a service is met, by the family of its address.
func (p *placed) met(port protocol.ServicePort, vip netip.Addr) (out []netip.AddrPort) {
	for _, x := range p.exposed {
		if x.Port != port.Port || x.Proto != port.Protocol {
			continue
		}
		for _, a := range x.At {
			if a.Addr().Is4() == vip.Is4() {
				out = append(out, a)
			}
		}
	}
	return out
}

// unmet says in one line which service is not exposed, and why; empty: all are.
func unmet(l []*placed) string {
	text, more := "", 0
	for _, p := range l {
		for _, x := range p.exposed {
			switch {
			case x.Why == "":
			case text == "":
				text = fmt.Sprintf("service %s is not exposed at %s: %s", p.Name, x.Listen, x.Why)
			default:
				more++
			}
		}
	}
	if more > 0 {
		text += fmt.Sprintf(" (and %d more)", more)
	}
	return text
}
