package dns

import (
	"net/netip"
	"strings"
)

// Labels directly below the zone.
const (
	underService = "svc"
	underNode    = "node"
	underPod     = "pod"
	nameServer   = "ns"
)

// zone is a view that can be asked. Nothing of it changes.
type zone struct {
	view     View
	services map[string]map[string]*Service // by segment and name
	nodes    map[string]map[string][]netip.Addr
	pods     map[string]map[string]map[string][]netip.Addr // by site, node and name
}

// target is what an SRV record says.
type target struct {
	port  uint16
	name  string
	addrs []netip.Addr
}

// found is what there is at a name.
type found struct {
	exists bool // the name, or one below it
	top    bool // it is the zone's
	ttl    uint32
	addrs  []netip.Addr
	srv    []target
}

// newZone takes a view in. Of two of one name the first counts.
func newZone(v View) *zone {
	z := &zone{view: v, services: map[string]map[string]*Service{}, nodes: map[string]map[string][]netip.Addr{}, pods: map[string]map[string]map[string][]netip.Addr{}}
	for i, s := range v.Services {
		if !named(s.Name, s.Segment) || below(z.services, s.Segment)[s.Name] != nil {
			continue
		}
		z.services[s.Segment][s.Name] = &v.Services[i]
	}
	for _, n := range v.Nodes {
		if named(n.Name, n.Site) && below(z.nodes, n.Site)[n.Name] == nil {
			z.nodes[n.Site][n.Name] = n.Overlay
		}
	}
	for _, p := range v.Pods {
		if !named(p.Name, p.Node, p.Site) || len(p.Addrs) == 0 {
			continue
		}
		if at := below(below(z.pods, p.Site), p.Node); at[p.Name] == nil {
			at[p.Name] = p.Addrs
		}
	}
	return z
}

// below is m's map of a key, made where there is none.
func below[V any](m map[string]map[string]V, key string) map[string]V {
	if m[key] == nil {
		m[key] = map[string]V{}
	}
	return m[key]
}

// find is what there is at a name, given by its labels in lower case from the zone's own down: svc, prod, web. A name that has
// others below it exists, and has nothing of its own.
func (z *zone) find(labels []string) found {
	if len(labels) == 0 {
		return found{exists: true, top: true, ttl: ttlVIP}
	}
	rest := labels[1:]
	switch labels[0] {
	case nameServer:
		if len(rest) == 0 {
			return found{exists: true, ttl: ttlVIP, addrs: valid(z.view.Address)}
		}
	case underService:
		return z.findService(rest)
	case underNode:
		return inTree(rest, z.nodes)
	case underPod:
		if len(rest) < 2 {
			return found{exists: len(rest) == 0 || len(z.pods[rest[0]]) > 0}
		}
		return inTree(rest[1:], z.pods[rest[0]])
	}
	return found{}
}

// inTree is what a tree of two levels has at labels.
func inTree(labels []string, tree map[string]map[string][]netip.Addr) found {
	switch len(labels) {
	case 0:
		return found{exists: true}
	case 1:
		return found{exists: len(tree[labels[0]]) > 0}
	case 2:
		addrs, ok := tree[labels[0]][labels[1]]
		return found{exists: ok, ttl: ttlVIP, addrs: addrs}
	}
	return found{}
}

// findService is find below svc.
func (z *zone) findService(labels []string) found {
	switch len(labels) {
	case 0:
		return found{exists: true}
	case 1:
		return found{exists: len(z.services[labels[0]]) > 0}
	}
	s := z.services[labels[0]][labels[1]]
	if s == nil {
		return found{}
	}
	switch rest := labels[2:]; {
	case len(rest) == 0:
		return s.own()
	case len(rest) > 2:
		return found{}
	case strings.HasPrefix(rest[0], "_"):
		return s.port(rest)
	default:
		return s.endpoint(rest)
	}
}

// own is what the service's own name has.
func (s *Service) own() found {
	if !s.Headless {
		return found{exists: true, ttl: ttlVIP, addrs: valid(s.VIP4, s.VIP6)}
	}
	f := found{exists: true, ttl: ttlBackends}
	for _, e := range s.answered() {
		f.addrs = append(f.addrs, e.Addr)
	}
	return f
}

// port is what _PROTOCOL, and _PORT below it, have.
func (s *Service) port(labels []string) (f found) {
	for _, p := range s.Ports {
		if p.Name == "" || labels[0] != "_"+p.Protocol {
			continue
		}
		f.exists = f.exists || len(labels) == 1
		if len(labels) == 1 || labels[1] != "_"+p.Name {
			continue
		}
		name := s.Name + "." + s.Segment + "." + underService + "." + Zone
		if !s.Headless {
			return found{exists: true, ttl: ttlVIP, srv: []target{{p.Port, name, valid(s.VIP4, s.VIP6)}}}
		}
		f = found{exists: true, ttl: ttlBackends}
		at := map[string]int{}
		for _, e := range s.answered() {
			if !named(e.label(), e.Site) {
				continue
			}
			host := e.label() + "." + e.Site + "." + name
			if i, ok := at[host]; ok { // by both families
				f.srv[i].addrs = append(f.srv[i].addrs, e.Addr)
				continue
			}
			at[host] = len(f.srv)
			f.srv = append(f.srv, target{p.Target, host, []netip.Addr{e.Addr}})
		}
		return f
	}
	return f
}

// endpoint is what SITE, and ENDPOINT below it, have.
func (s *Service) endpoint(labels []string) (f found) {
	f.ttl = ttlBackends
	for _, e := range s.Endpoints {
		if e.Site != labels[0] || !named(e.label(), e.Site) {
			continue
		}
		if len(labels) == 1 {
			return found{exists: true}
		}
		if e.label() == labels[1] {
			f.exists, f.addrs = true, append(f.addrs, e.Addr)
		}
	}
	return f
}

// valid are those of these addresses that are any.
func valid(l ...netip.Addr) (out []netip.Addr) {
	for _, a := range l {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}
