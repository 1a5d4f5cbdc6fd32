// Package service works out who serves declared services. It is pure: values in, values out.
//
// A Table keeps what it worked out, and does it anew only for services that a change concerns: one that was declared, a
// container that came or went. What a node says of its containers counts within what it carries.
package service

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"causeway/protocol"
)

// Bounds of what one node is told. What was declared first stays.
const (
	MaxItems = 3072    // services; a netmap has room for other items beside them
	MaxBytes = 8 << 20 // of their bodies
)

// Declared is a declared service.
type Declared struct {
	Name       string
	Generation uint64 // transaction that declared it
	Created    time.Time
	protocol.Service
	Epoch  uint64
	Public protocol.ServicePublic // zero: none
}

// Container is a running container, as its node tells.
type Container struct {
	ID     string
	Name   string
	Labels map[string]string
	Addrs  []netip.Addr
}

// CompareContainers orders containers of one node.
func CompareContainers(a, b Container) int {
	return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Name, b.Name))
}

// has reports whether it has all of these labels.
func (c *Container) has(labels map[string]string) bool {
	for k, v := range labels {
		if had, ok := c.Labels[k]; !ok || had != v {
			return false
		}
	}
	return true
}

// podName is the label by which Kubernetes says which pod a container is of: runtimes below it call containers by their ids.
const podName = "io.kubernetes.pod.name"

// label is a DNS label for the container.
func (c *Container) label() string {
	name := c.Name
	if pod := c.Labels[podName]; pod != "" {
		name = pod
	}
	return dnsLabel(name)
}

// dnsLabel makes a DNS label of any text; empty: nothing of it can be one.
func dnsLabel(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, s[:min(len(s), 63)])
	if s = strings.Trim(s, "-"); !protocol.ValidName(s) {
		return ""
	}
	return s
}

// addrLabel is a DNS label of an address.
func addrLabel(a netip.Addr) string {
	return strings.Map(func(r rune) rune {
		if r == '.' || r == ':' {
			return '-'
		}
		return r
	}, a.StringExpanded())
}

// Checks of findings, as 'causeway doctor' has them.
const (
	CheckEmpty   = "service-empty"          // nobody takes its connections
	CheckNobody  = "service-selects-nobody" // a backend that means nobody
	CheckNoRoute = "service-no-route"       // an address that no node of its site carries
	CheckSwitch  = "service-switch"         // a switch of a single-writer waits
	CheckSurplus = "service-surplus"        // more than nodes are told
)

// LeftOutText says that nodes are not told of a service.
const LeftOutText = "a node is told of no more services than it has room for, and of this one some are not; part services by segments"

// Finding is what is wrong with a service; it goes on with what is right.
type Finding struct{ Check, Text string }

// maxFindings are told of one service.
const maxFindings = 20

// Endpoint is an address that serves, and what the hub knows of it.
type Endpoint struct {
	protocol.ServiceEndpoint
	Nodes []protocol.NodeNumber // that carry it, by number: their words on it count
	Away  string                // why nodes are not told of it; empty: they are
}

func compareEndpoints(a, b Endpoint) int {
	return cmp.Or(cmp.Compare(a.Site, b.Site), a.Addr.Compare(b.Addr))
}

func sameEndpoint(a, b Endpoint) bool {
	return a.ServiceEndpoint == b.ServiceEndpoint && a.Away == b.Away && slices.Equal(a.Nodes, b.Nodes)
}

// Result is what was worked out of a service. It is never changed.
type Result struct {
	Declared
	Endpoints []Endpoint // by site and address; those that nodes are not told of, too
	Findings  []Finding

	item  *protocol.Item
	extra []protocol.NodeNumber // nodes that are told beside the clients, by number
	at    string                // segment of the clients
}

// Used reports whether the endpoint may take new connections, as far as the hub says.
func (r *Result) Used(e Endpoint) bool {
	return e.Away == "" && !slices.Contains(r.Exclude, e.Site) && (r.Mode != protocol.ServiceSingleWriter || r.MayServe(e.Site))
}

// Set is what nodes that are told the same are told of services. It is never changed, and the same pointers say that nothing
// is new.
type Set struct{ Items []*protocol.Item } // by name

// Told is what all nodes are told. It is never changed.
type Told struct {
	Nodes    map[protocol.NodeNumber]*Set // those that are told of any service
	Services map[string]*Result
	// LeftOut are services of which some nodes are not told, beyond what one may be.
	LeftOut map[string]bool

	sets map[string]*Set
}

// Tells reports whether a node is told of a service.
func (t *Told) Tells(n protocol.NodeNumber, name string) bool {
	if t == nil || t.Nodes[n] == nil {
		return false
	}
	_, is := slices.BinarySearchFunc(t.Nodes[n].Items, name, func(i *protocol.Item, name string) int { return strings.Compare(i.Name, name) })
	return is
}
