// Package dns answers DNS for the zone 'causeway': services, nodes and containers by name, from what the agent holds in
// memory, hub or no hub.
//
//	s := dns.New(dns.Config{…})
//	s.Set(view) // as often as something changes
//	sockets, err := dns.Listen(ctx, address)
//	err = s.Serve(ctx, sockets) // until ctx ends
//
// It asks nobody else, and refuses what is outside its zone. What a name means is in zone.go, which is pure; the messages are
// in answer.go, the sockets and their bounds in server.go.
package dns

import (
	"net/netip"
	"strings"

	"causeway/protocol"
)

// Zone is the zone, as DNS writes it.
const Zone = "causeway."

// Times to live of answers, in seconds.
const (
	ttlVIP      = 30 // an address that stays
	ttlBackends = 5  // addresses of backends, which come and go
	ttlNone     = 1  // that there is none
)

// View is what there is to name. Names are DNS labels (protocol.ValidName); what has another is left out. Nothing that a view
// points to is changed once it was set.
type View struct {
	Address  netip.Addr // of the server, for whoever asks who serves the zone
	Serial   uint32     // grows with what is held, for whoever compares
	Services []Service
	Nodes    []Node
	Pods     []Pod
}

// Service is a service.
type Service struct {
	Name, Segment string
	VIP4, VIP6    netip.Addr // either may be missing
	Ports         []Port
	Headless      bool
	Endpoints     []Endpoint
}

// Port is a port of a service. Without a name it has no SRV record.
type Port struct {
	Name     string
	Protocol string // tcp or udp
	Port     uint16
	Target   uint16 // at its backends
}

// Endpoint is a backend of a service.
type Endpoint struct {
	Addr netip.Addr
	Site string
	Name string // empty: it is called as its address, 10-1-2-3
	// Usable says that it is known to serve. Of a service none of whose endpoints is, all are answered.
	Usable bool
}

// Node is a node, this one among them.
type Node struct {
	Name, Site string
	Overlay    []netip.Addr
}

// Pod is a container on a node.
type Pod struct {
	Name, Node, Site string
	Addrs            []netip.Addr
}

// label is what an endpoint is called in names.
func (e Endpoint) label() string {
	if e.Name != "" {
		return e.Name
	}
	return strings.NewReplacer(".", "-", ":", "-").Replace(e.Addr.StringExpanded())
}

// answered are the endpoints that a headless service's name has.
func (s Service) answered() []Endpoint {
	var out []Endpoint
	for _, e := range s.Endpoints {
		if e.Usable {
			out = append(out, e)
		}
	}
	if len(out) == 0 {
		return s.Endpoints
	}
	return out
}

// named reports whether all of these can be labels of a name.
func named(l ...string) bool {
	for _, s := range l {
		if !protocol.ValidName(s) {
			return false
		}
	}
	return true
}
