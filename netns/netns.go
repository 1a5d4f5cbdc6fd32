// Package netns is the host's network: what an agent puts there (link
// addresses, routes, rules, nftables, sysctls) as a plan that is a plain value,
// and the code that applies a plan whole, finds what is there, and takes it
// all back.
//
//	p, err := netns.NewPlan(cfg)        // pure
//	h := netns.NewHost(stateDir, log)
//	err = h.Apply(ctx, p)               // as often as wanted
//	err = h.Remove(ctx, cfg)            // as it was before
//
// What a host does with a flow, and what others have put there, is told by netns/look, which imports
// this package; the other way round never.
//
// The TUN device itself is made by the tunnel; Remove deletes it. Which
// prefixes may be routed at all is the agent's decision, not made here.
package netns

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/rs/zerolog"
)

// Config is what an agent wants of its host.
type Config struct {
	Interface string       // the TUN device, made by the tunnel
	Index     int          // of that device, whatever it is called now; 0: known by its name alone; or NoDevice
	LinkMTU   int          // of the device; 0: left as it is
	Queue     int          // of the device, in packets (txqueuelen); 0: left as it is
	MTU       int          // of routes into the tunnel that MTUs does not name
	Mark      uint32       // SO_MARK of underlay sockets: these never take tunnel routes
	Table     int          // routing table of the tunnel's own
	Overlay   []netip.Addr // the node's overlay addresses
	// Names is the link-local IPv4 address of the device at which this host and its containers ask the agent for names; not
	// valid: none. Its scope is host, so that it is no source of what leaves.
	Names  netip.Addr
	Routes []netip.Prefix // what is routed into the tunnel, the overlay ranges included
	Local  []netip.Prefix // what the node itself announces: pods and LANs behind it
	// Bare are those of Local that the host has no route of its own to: they are
	// not thrown back to it, as its default route would take them.
	Bare []netip.Prefix
	// Held are closed where no other route of the table leads: what was ever routed
	// into the tunnel, those of Routes among them, so that nothing of it takes the
	// default route when a route, or the device, goes away.
	Held []netip.Prefix
	// Refused are those of Held that lead into the tunnel all the same, in front of their closed route: a part
	// refuses there what goes to them, with an answer that ends a connection, which a closed route has not.
	Refused []netip.Prefix
	// Except stay the host's own though a route into the tunnel, or Held, has them.
	Except []Exception
	Wall   Wall // around Causeway's own in the overlay
	// MTUs are those of single routes, by their masked prefix; from MinMTU on.
	// Where IPv6 does not allow one so small, the route has 1280 and TCP alone
	// is kept below by its MSS.
	MTUs    map[netip.Prefix]int
	Shields Shields
	Uses    // settings of the host
	// Parts are what appliers of declared objects have there.
	Parts []Part
}

// NoDevice is a Config's Index while the tunnel's device is gone: what has its name is
// somebody else's.
const NoDevice = -1

// MinMTU is the smallest MTU of a route: the smallest path that the tunnel
// looks for carries more.
const MinMTU = 256

// Defaults of Config.
const (
	DefaultInterface = "cw0"
	DefaultTable     = 0xca5e // 51806
	DefaultMark      = 0xca5e
	DefaultMTU       = 1380
)

const (
	// RulePreference is where the rules for the tunnel's table lie: after the
	// local table (0), before main (32766).
	RulePreference = 5206
	// RouteProtocol marks our routes and rules (rtm_protocol). It is free in
	// iproute2's rt_protos.
	RouteProtocol = 202
	// NftTable is the name of our nftables table, in family inet.
	NftTable = "causeway"
)

// Host applies plans to the network namespace that the calling thread is in.
// What it changed beyond its own objects (sysctls, foreign firewalls) it
// records in stateDir so that Remove can put it back, after a crash too. Its
// methods work on the caller's thread; two calls do not run at once.
type Host struct {
	stateDir string
	log      zerolog.Logger

	mu     sync.Mutex
	last   Plan              // of the last Apply, which may have failed; for Watch, Drift and Mend
	good   map[Kind][]string // lines that the last Apply found or put in place
	failed map[string]bool   // lines that could not be put in place: no drift of others' making
	walls  []string          // our table as it was last known to be ours
	undone []Drift
	left   []string
	parts  map[string]Part // as they were put in place, by table
	marks  string          // content of our table for Docker

	nftables seenNft

	watched atomic.Pointer[Config]       // last's, for events that come while mu is held
	links   atomic.Pointer[map[int]bool] // those that the host's own routes lead to, by index
}

// NewHost opens nothing.
func NewHost(stateDir string, log zerolog.Logger) *Host {
	return &Host{stateDir: stateDir, log: log}
}

// Last is the plan of the last Apply, which may have failed; before the first one its Interface is empty.
func (h *Host) Last() Plan {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}
