package protocol

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// ItemService is the kind of declared objects that are a Service, and of items that are a ServiceItem.
const ItemService = "service"

// DefaultSegment is the segment of a service that names none: that of its clients, where no segment is declared.
const DefaultSegment = "default"

// ServiceMode is how a service uses its sites.
type ServiceMode string

// Modes of services.
const (
	ServiceSpread       ServiceMode = "spread"        // several sites at once
	ServiceFailover     ServiceMode = "failover"      // one site while any of its backends is usable, then the next
	ServiceSingleWriter ServiceMode = "single-writer" // one site, which operators switch and nobody else
)

// ServicePrefer is which sites come first.
type ServicePrefer string

// Preferences of services.
const (
	PreferNear    ServicePrefer = "near"    // the client's own site, then the others
	PreferWeights ServicePrefer = "weights" // by weight
	PreferOrder   ServicePrefer = "order"   // in order
)

// ServiceSticky is what keeps a client at its backend.
type ServiceSticky string

// Kinds of stickiness.
const (
	StickyNone   ServiceSticky = "none"
	StickyClient ServiceSticky = "client" // by the client's address, equal on every node
)

// ServiceOnDead is what becomes of connections to a backend that is dead.
type ServiceOnDead string

// What becomes of such connections.
const (
	OnDeadReset ServiceOnDead = "reset"
	OnDeadKeep  ServiceOnDead = "keep"
)

// HealthType is how a backend is asked whether it is ready.
type HealthType string

// Types of health checks.
const (
	HealthTCP  HealthType = "tcp"  // it takes a connection
	HealthHTTP HealthType = "http" // it answers GET with a status of 200 to 399
	HealthGRPC HealthType = "grpc" // grpc.health.v1 says SERVING
	HealthNone HealthType = "none" // it is ready while its node is reached
)

// Bounds of services.
const (
	MaxServicePorts     = 64
	MaxServiceBackends  = 256 // entries of its list
	MaxServiceEndpoints = 250 // addresses that these come to
	MaxServiceWeight    = 1000
	MaxServiceSites     = 64
)

// Service is one name and address for what runs at several sites.
type Service struct {
	Segment   string           `json:"segment,omitempty"`    // whose nodes are its clients; default: all, or those in no segment
	Ports     []ServicePort    `json:"ports"`                // what it is reached by
	Backends  []ServiceBackend `json:"backends,omitempty"`   // who serves it
	Headless  bool             `json:"headless,omitempty"`   // no address of its own: its name has those of its backends
	Mode      ServiceMode      `json:"mode,omitempty"`       // spread (default), failover or single-writer
	Prefer    ServicePrefer    `json:"prefer,omitempty"`     // near (default), weights or order; of failover order where there is one
	Weights   map[string]int   `json:"weights,omitempty"`    // of sites, 0 to 1000; 0 takes no traffic
	Order     []string         `json:"order,omitempty"`      // of sites
	Sticky    ServiceSticky    `json:"sticky,omitempty"`     // none (default) or client
	Health    ServiceHealth    `json:"health,omitzero"`      // how backends are asked whether they are ready
	OnDead    ServiceOnDead    `json:"on_dead,omitempty"`    // reset (default) or keep
	SlowStart Duration         `json:"slow_start,omitempty"` // how long the share of what is new grows; 30s, at most 1h
	Drain     Duration         `json:"drain,omitempty"`      // how long what leaves keeps its connections; 60s, at most 24h
	Stay      []string         `json:"stay,omitempty"`       // sites that it may not leave
	Exclude   []string         `json:"exclude,omitempty"`    // sites that take no traffic now
	Writer    string           `json:"writer,omitempty"`     // of single-writer the site that is used
	Lease     Duration         `json:"lease,omitempty"`      // of single-writer how long the writer's site serves without a word from a hub; 15s to 1h, 0 (default): for ever
	To        string           `json:"to,omitempty"`         // of single-writer the site that it is being switched to; nobody serves meanwhile. The hub says it
	Fenced    []string         `json:"fenced,omitempty"`     // sites whose nodes block its backends, since it was switched away from there; the hub says it
	Expose    []ServiceExpose  `json:"expose,omitempty"`     // where the outside reaches it, at nodes' hosts
	VIP4      netip.Addr       `json:"vip4,omitzero"`        // its IPv4 address: the hub gives it, and it stays while the service is declared
	VIP6      netip.Addr       `json:"vip6,omitzero"`        // likewise its IPv6 address
}

// ServicePort is a port of a service.
type ServicePort struct {
	Name     string `json:"name,omitempty"`     // for SRV records; of several ports each has one
	Port     uint16 `json:"port"`               // at the service's address
	Target   uint16 `json:"target,omitempty"`   // at its backends; the same where it is 0
	Protocol string `json:"protocol,omitempty"` // tcp (default) or udp
}

// ServiceBackend says who serves a service: running containers by labels, a node itself, or addresses at a site.
type ServiceBackend struct {
	Selector  map[string]string `json:"selector,omitempty"`  // containers that have all of these labels, at Site or anywhere
	Node      string            `json:"node,omitempty"`      // programs of this node's host
	Site      string            `json:"site,omitempty"`      // where the others are
	Addresses []netip.Addr      `json:"addresses,omitempty"` // within what nodes of Site carry: hosts of a LAN, pods, a managed database
}

// ServiceHealth is how a backend is asked, by a node beside it.
type ServiceHealth struct {
	Type     HealthType `json:"type,omitempty"`     // tcp (default; of a service of udp alone none), http, grpc or none
	Port     uint16     `json:"port,omitempty"`     // that is asked; of the first tcp port the target where it is 0
	Path     string     `json:"path,omitempty"`     // of http; /
	Interval Duration   `json:"interval,omitempty"` // 1s; 200ms to 5m
	Timeout  Duration   `json:"timeout,omitempty"`  // of one answer; 1s, at most 30s
	Fail     int        `json:"fail,omitempty"`     // so many bad answers in a row, and it is not ready; 3
	OK       int        `json:"ok,omitempty"`       // so many good ones, and it is; 2
}

// Proto is the port's IP protocol.
func (p ServicePort) Proto() Proto {
	if p.Protocol == "udp" {
		return ProtoUDP
	}
	return ProtoTCP
}

// Normal is the service with all that it leaves out said, and in one order; or what is wrong with it, in one line. VIPs are
// not looked at.
func (s Service) Normal() (Service, error) {
	def(&s.Segment, DefaultSegment)
	def(&s.Mode, ServiceSpread)
	if s.Mode == ServiceFailover && len(s.Order) > 0 {
		def(&s.Prefer, PreferOrder)
	}
	def(&s.Prefer, PreferNear)
	def(&s.Sticky, StickyNone)
	def(&s.OnDead, OnDeadReset)
	def(&s.SlowStart, Duration(30*time.Second))
	def(&s.Drain, Duration(time.Minute))
	s.Ports, s.Backends = slices.Clone(s.Ports), slices.Clone(s.Backends)
	for i := range s.Ports {
		def(&s.Ports[i].Target, s.Ports[i].Port)
		def(&s.Ports[i].Protocol, "tcp")
	}
	s.Health = s.Health.normal(s.Ports)
	for _, l := range []*[]string{&s.Stay, &s.Exclude, &s.Fenced} {
		*l = slices.Compact(slices.Sorted(slices.Values(*l)))
	}
	return s, cmp.Or(s.checkWords(), s.checkPorts(), s.checkBackends(), s.checkSites(), s.checkFence(), s.Health.check(), s.checkTimes(), s.checkExpose())
}

func def[T comparable](v *T, d T) { *v = cmp.Or(*v, d) }

func oneOf[T ~string](field string, v T, of ...T) error {
	if slices.Contains(of, v) {
		return nil
	}
	var words []string
	for _, w := range of {
		words = append(words, string(w))
	}
	return fmt.Errorf("%s: %.40q is none of %s", field, string(v), strings.Join(words, ", "))
}

func (s Service) checkWords() error {
	if !ValidName(s.Segment) {
		return fmt.Errorf("segment: %.80q cannot name a segment", s.Segment)
	}
	return cmp.Or(
		oneOf("mode", s.Mode, ServiceSpread, ServiceFailover, ServiceSingleWriter),
		oneOf("prefer", s.Prefer, PreferNear, PreferWeights, PreferOrder),
		oneOf("sticky", s.Sticky, StickyNone, StickyClient),
		oneOf("on_dead", s.OnDead, OnDeadReset, OnDeadKeep))
}

func (s Service) checkPorts() error {
	if len(s.Ports) == 0 && !s.Headless {
		return errors.New("ports: a service has at least one, such as {name: http, port: 80, target: 8080}")
	}
	if len(s.Ports) > MaxServicePorts {
		return fmt.Errorf("ports: %d, at most %d", len(s.Ports), MaxServicePorts)
	}
	type key struct {
		proto Proto
		port  uint16
	}
	seen, names := map[key]bool{}, map[string]bool{}
	for _, p := range s.Ports {
		switch k := (key{p.Proto(), p.Port}); {
		case p.Port == 0:
			return errors.New("ports: port is 1 to 65535")
		case p.Protocol != "tcp" && p.Protocol != "udp":
			return fmt.Errorf("ports: protocol: %.40q is none of tcp, udp", p.Protocol)
		case p.Port >= OverlayPortFirst && p.Port <= OverlayPortLast:
			return fmt.Errorf("ports: %d is one of Causeway's own, %d to %d", p.Port, OverlayPortFirst, OverlayPortLast)
		case p.Port == 53 && p.Name == "":
			return errors.New("ports: port 53 needs a name")
		case p.Name != "" && !ValidName(p.Name):
			return fmt.Errorf("ports: %.80q cannot name a port", p.Name)
		case p.Name == "" && len(s.Ports) > 1:
			return fmt.Errorf("ports: port %d needs a name where there are several", p.Port)
		case seen[k]:
			return fmt.Errorf("ports: there are two of %s/%d", p.Protocol, p.Port)
		case p.Name != "" && names[p.Name]:
			return fmt.Errorf("ports: there are two %s", p.Name)
		default:
			seen[k], names[p.Name] = true, true
		}
	}
	return nil
}

func (s Service) checkBackends() error {
	if len(s.Backends) > MaxServiceBackends {
		return fmt.Errorf("backends: %d, at most %d", len(s.Backends), MaxServiceBackends)
	}
	n := 0
	seen := map[netip.Addr]bool{}
	for _, b := range s.Backends {
		kinds := 0
		for _, is := range []bool{len(b.Selector) > 0, b.Node != "", len(b.Addresses) > 0} {
			if is {
				kinds++
			}
		}
		switch {
		case kinds != 1:
			return errors.New("backends: each has one of selector, node and addresses")
		case b.Node != "" && !ValidName(b.Node):
			return fmt.Errorf("backends: %.80q cannot name a node", b.Node)
		case b.Node != "" && b.Site != "":
			return fmt.Errorf("backends: node %s needs no site", b.Node)
		case b.Site != "" && !ValidName(b.Site):
			return fmt.Errorf("backends: %.80q cannot name a site", b.Site)
		case len(b.Addresses) > 0 && b.Site == "":
			return fmt.Errorf("backends: say at which site %s is", b.Addresses[0])
		}
		if err := CheckLabels(b.Selector); err != nil {
			return fmt.Errorf("backends: selector: %w", err)
		}
		for _, a := range b.Addresses {
			if a.Is4In6() || a.Zone() != "" || !a.IsGlobalUnicast() {
				return fmt.Errorf("backends: %s is no address of a backend", a)
			}
			if seen[a] {
				return fmt.Errorf("backends: %s is there twice", a)
			}
			seen[a] = true
		}
		if n += len(b.Addresses); n > MaxServiceEndpoints {
			return fmt.Errorf("backends: more than %d addresses", MaxServiceEndpoints)
		}
	}
	return nil
}

func (s Service) checkSites() error {
	for site, w := range s.Weights {
		if w < 0 || w > MaxServiceWeight {
			return fmt.Errorf("weights: %s: %d is not between 0 and %d", site, w, MaxServiceWeight)
		}
	}
	for field, l := range map[string][]string{"weights": slices.Collect(maps.Keys(s.Weights)), "order": s.Order, "stay": s.Stay, "exclude": s.Exclude, "fenced": s.Fenced} {
		if len(l) > MaxServiceSites {
			return fmt.Errorf("%s: %d sites, at most %d", field, len(l), MaxServiceSites)
		}
		seen := map[string]bool{}
		for _, site := range l {
			if !ValidName(site) {
				return fmt.Errorf("%s: %.80q cannot name a site", field, site)
			}
			if seen[site] {
				return fmt.Errorf("%s: %s is there twice", field, site)
			}
			seen[site] = true
		}
	}
	switch {
	case s.Prefer == PreferWeights && len(s.Weights) == 0:
		return errors.New("prefer: weights needs weights of sites, such as {idc-sh: 90, cloud-eu: 10}")
	case s.Prefer == PreferOrder && len(s.Order) == 0:
		return errors.New("prefer: order needs an order of sites, such as [idc-sh, cloud-eu]")
	case s.Writer != "" && s.Mode != ServiceSingleWriter:
		return fmt.Errorf("writer: only mode single-writer has one, and this is %s", s.Mode)
	case s.Mode == ServiceSingleWriter && !ValidName(s.Writer):
		return errors.New("writer: say which site a single-writer service uses")
	case s.Mode == ServiceSingleWriter && len(s.Stay) > 0 && !slices.Contains(s.Stay, s.Writer):
		return fmt.Errorf("writer: %s is not among the sites that the service may not leave", s.Writer)
	case s.Prefer == PreferWeights && len(s.Weights) > 0 && !slices.ContainsFunc(slices.Collect(maps.Values(s.Weights)), func(w int) bool { return w > 0 }):
		return errors.New("weights: all are 0")
	}
	return nil
}

func (s Service) checkTimes() error {
	switch {
	case s.SlowStart < 0 || s.SlowStart > Duration(time.Hour):
		return fmt.Errorf("slow_start: %s is not between 0s and 1h", s.SlowStart)
	case s.Drain < 0 || s.Drain > Duration(24*time.Hour):
		return fmt.Errorf("drain: %s is not between 0s and 24h", s.Drain)
	}
	return nil
}

func (h ServiceHealth) normal(ports []ServicePort) ServiceHealth {
	tcp := slices.IndexFunc(ports, func(p ServicePort) bool { return p.Proto() == ProtoTCP })
	if h.Type == "" {
		if h.Type = HealthTCP; tcp < 0 && h.Port == 0 {
			h.Type = HealthNone
		}
	}
	if h.Type == HealthNone {
		return h
	}
	if tcp >= 0 {
		def(&h.Port, ports[tcp].Target)
	}
	if h.Type == HealthHTTP {
		def(&h.Path, "/")
	}
	def(&h.Interval, Duration(time.Second))
	def(&h.Timeout, Duration(time.Second))
	def(&h.Fail, 3)
	def(&h.OK, 2)
	return h
}

func (h ServiceHealth) check() error {
	if err := oneOf("health: type", h.Type, HealthTCP, HealthHTTP, HealthGRPC, HealthNone); err != nil {
		return err
	}
	switch {
	case h.Path != "" && h.Type != HealthHTTP:
		return fmt.Errorf("health: only type http has a path, and this is %s", h.Type)
	case h.Type == HealthNone && h != ServiceHealth{Type: HealthNone}:
		return errors.New("health: type none asks nothing, so that it has nothing else")
	case h.Type == HealthNone:
		return nil
	case h.Port == 0:
		return errors.New("health: say the port that is asked")
	case h.Path != "" && (!strings.HasPrefix(h.Path, "/") || len(h.Path) > 1024 || strings.ContainsFunc(h.Path, func(r rune) bool { return r <= ' ' || r >= 0x7f })):
		return fmt.Errorf("health: path: %.80q is no path of a URL", h.Path)
	case h.Interval < Duration(200*time.Millisecond) || h.Interval > Duration(5*time.Minute):
		return fmt.Errorf("health: interval: %s is not between 200ms and 5m", h.Interval)
	case h.Timeout < Duration(10*time.Millisecond) || h.Timeout > Duration(30*time.Second):
		return fmt.Errorf("health: timeout: %s is not between 10ms and 30s", h.Timeout)
	case h.Fail < 1 || h.Fail > 100 || h.OK < 1 || h.OK > 100:
		return errors.New("health: fail and ok are 1 to 100")
	}
	return nil
}

// ServiceItem is the body of an item of kind service: the service, without its backends, and who they are now. An item is told
// to clients and to the nodes beside its backends.
type ServiceItem struct {
	Service
	Endpoints []ServiceEndpoint `json:"endpoints,omitempty"` // by site, then address
	// Epoch counts the switches of a single-writer's site.
	Epoch uint64 `json:"epoch,omitempty"`
}

// ServiceEndpoint is an address that serves.
type ServiceEndpoint struct {
	Addr netip.Addr `json:"addr"`
	Site string     `json:"site"`
	Name string     `json:"name,omitempty"` // of the node or container, for its DNS name; a DNS label
}

// Check says what is wrong with an item that a hub sent. Its service is normal then.
func (i *ServiceItem) Check() error {
	s, err := i.Normal()
	if err != nil {
		return err
	}
	i.Service = s
	if len(i.Endpoints) > MaxServiceEndpoints {
		return fmt.Errorf("%d endpoints, at most %d", len(i.Endpoints), MaxServiceEndpoints)
	}
	seen := map[netip.Addr]bool{}
	for _, e := range i.Endpoints {
		switch {
		case !e.Addr.IsGlobalUnicast() || e.Addr.Is4In6() || e.Addr.Zone() != "":
			return fmt.Errorf("%s is no address of a backend", e.Addr)
		case seen[e.Addr]:
			return fmt.Errorf("backend %s is there twice", e.Addr)
		case !ValidName(e.Site) || e.Name != "" && !ValidName(e.Name):
			return fmt.Errorf("backend %s: %.40q and %.40q are no names of a site and an endpoint", e.Addr, e.Site, e.Name)
		}
		seen[e.Addr] = true
	}
	switch {
	case i.VIP4.IsValid() && !i.VIP4.Is4():
		return fmt.Errorf("vip4: %s is no IPv4 address", i.VIP4)
	case i.VIP6.IsValid() && (!i.VIP6.Is6() || i.VIP6.Is4In6() || i.VIP6.Zone() != ""):
		return fmt.Errorf("vip6: %s is no IPv6 address", i.VIP6)
	}
	return nil
}

// ServiceView is how a node sees a service: what its agent answers at DebugServices.
type ServiceView struct {
	Name      string                `json:"name"`
	Segment   string                `json:"segment"`
	VIP4      netip.Addr            `json:"vip4,omitzero"`
	VIP6      netip.Addr            `json:"vip6,omitzero"`
	Mode      ServiceMode           `json:"mode"`
	Prefer    ServicePrefer         `json:"prefer"`
	Endpoints []ServiceEndpointView `json:"endpoints"`
	Exposed   []ServiceExposedView  `json:"exposed,omitempty"` // at this host
}

// ServicesCounted in place of a service's name asks for the connections of all services, without backends that nobody uses.
const ServicesCounted = "*"

// ReachLocal is the reach of an endpoint that is at the node itself.
const ReachLocal = "local"

// ServiceEndpointView is how a node sees an endpoint. Times are the node's.
type ServiceEndpointView struct {
	ServiceEndpoint
	Node     string        `json:"node,omitempty"`   // that carries it; empty: none that this one may talk to
	Reach    string        `json:"reach"`            // local, up, suspect, dead, probation, unknown or none
	Answered time.Duration `json:"answered_ns"`      // since its node answered last; 0: never, or it is here
	Ready    string        `json:"ready"`            // as its node told last: ready, not ready or unknown
	Cause    string        `json:"cause,omitempty"`  // why it is not, where this node asks it
	Use      bool          `json:"use"`              // it takes new connections
	Why      string        `json:"why,omitempty"`    // it does not
	Slots    int           `json:"slots"`            // that lead to it, of all of its family
	Of       int           `json:"of"`               // all
	Starting int           `json:"starting_percent"` // of its share that it has yet; 100: all
	Open     int           `json:"connections"`      // from here, by conntrack, where they were asked for
	Half     int           `json:"unanswered"`       // those that only begin
	RTT      time.Duration `json:"rtt_ns"`           // of the agent's own questions to its node; 0: not known, or it is here
	// Since the agent runs, as far as its connections were counted every 100 s at least: how many began that were not refused at
	// once, and what they carried both ways.
	Begun   uint64 `json:"begun"`
	Bytes   uint64 `json:"bytes"`
	Counted bool   `json:"bytes_counted"` // the kernel counts bytes: net.netfilter.nf_conntrack_acct is 1
}

// ServicesView is what a node knows of services.
type ServicesView struct {
	Services []ServiceView `json:"services"`
	Doubts   bool          `json:"doubts_itself"`    // it sees less than half of their sites, and resets nothing
	Counted  time.Time     `json:"counted,omitzero"` // when connections were
	Late     uint64        `json:"late"`             // how often its agent was late at its own questions since it runs
}
