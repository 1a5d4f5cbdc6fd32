package protocol

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// MaxServiceExpose is how many places a service is exposed at.
const MaxServiceExpose = 64

// ServiceExpose is where who is not of the cluster reaches a service: at an address and port of nodes' hosts, as far as the configuration
// of each allows it (expose).
type ServiceExpose struct {
	Site   string `json:"site,omitempty"` // all nodes of a site, or
	Node   string `json:"node,omitempty"` // one node
	Listen string `json:"listen"`         // ADDRESS:PORT; 0.0.0.0 or [::] are all addresses of the host of that family
	Port   string `json:"port,omitempty"` // of the service, by name or number; the only one where it is empty
}

// At is the address and port.
func (x ServiceExpose) At() (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(x.Listen)
	switch ip := a.Addr(); {
	case err != nil || a.Port() == 0:
		return a, fmt.Errorf("%.80q is no ADDRESS:PORT such as 0.0.0.0:8080 or [::]:8080", x.Listen)
	case ip.Is4In6() || ip.Zone() != "" || !ip.IsUnspecified() && !ip.IsGlobalUnicast():
		return a, fmt.Errorf("%s is no address that the outside reaches", ip)
	case a.Port() >= OverlayPortFirst && a.Port() <= OverlayPortLast:
		return a, fmt.Errorf("%d is one of Causeway's own ports, %d to %d", a.Port(), OverlayPortFirst, OverlayPortLast)
	}
	return a, nil
}

// PortOf is the port of the service that is exposed there.
func (s Service) PortOf(x ServiceExpose) (ServicePort, bool) {
	for _, p := range s.Ports {
		if x.Port == "" && len(s.Ports) == 1 || x.Port != "" && (x.Port == p.Name || x.Port == fmt.Sprint(p.Port)) {
			return p, true
		}
	}
	return ServicePort{}, false
}

// Meets reports whether two exposures may be of one address and port of one host, of ports of such protocols.
func (x ServiceExpose) Meets(p ServicePort, y ServiceExpose, q ServicePort) bool {
	a, err := x.At()
	b, err2 := y.At()
	return err == nil && err2 == nil && p.Protocol == q.Protocol && a.Port() == b.Port() && a.Addr().Is4() == b.Addr().Is4() &&
		(a.Addr() == b.Addr() || a.Addr().IsUnspecified() || b.Addr().IsUnspecified()) && x.Site == y.Site && x.Node == y.Node
}

func (s Service) checkExpose() error {
	if len(s.Expose) > MaxServiceExpose {
		return fmt.Errorf("expose: %d places, at most %d", len(s.Expose), MaxServiceExpose)
	}
	for i, x := range s.Expose {
		_, err := x.At()
		p, has := s.PortOf(x)
		switch {
		case err != nil:
			return fmt.Errorf("expose: listen: %w", err)
		case s.Headless:
			return fmt.Errorf("expose: a headless service has no address that could be met elsewhere")
		case (x.Site == "") == (x.Node == ""):
			return fmt.Errorf("expose: %s: say site or node", x.Listen)
		case !ValidName(cmp.Or(x.Site, x.Node)):
			return fmt.Errorf("expose: %s: %.80q cannot name a site or node", x.Listen, cmp.Or(x.Site, x.Node))
		case !has:
			return fmt.Errorf("expose: %s: port: say which of the service's ports, %.80q is none", x.Listen, x.Port)
		case slices.ContainsFunc(s.Expose[:i], func(y ServiceExpose) bool { q, _ := s.PortOf(y); return x.Meets(p, y, q) }):
			return fmt.Errorf("expose: %s is there twice", x.Listen)
		}
	}
	return nil
}

// ServiceExposedView is a place where a node's host exposes a service, or does not.
type ServiceExposedView struct {
	Listen string           `json:"listen"`
	Proto  string           `json:"protocol"`
	Port   uint16           `json:"port"`          // of the service
	At     []netip.AddrPort `json:"at,omitempty"`  // addresses of the host that lead to it now
	Why    string           `json:"why,omitempty"` // it is not exposed there
}
