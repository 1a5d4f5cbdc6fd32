// Package state is the hub's truth: one log of transactions in JetStream and
// the fold over it.
//
// State is the fold. A transaction's changes are applied in order by
// Change.apply, which checks every invariant and so guards the log twice: when
// a decision is drafted, and when anyone folds the log later. Store reads the
// log, appends to it with the expected last sequence of the whole stream, and
// tells watchers about new states.
//
// A snapshot is the fold at a sequence. The log is cut at the one before the newest, and what is cut off
// is archived beside them (Vault).
package state

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"causeway/protocol"
)

// State is the fold of the log up to Seq. A State that a Store hands out is
// never changed again; it may be read by any number of goroutines, and its
// maps and slices must not be written to.
type State struct {
	Seq        uint64    // sequence of the last transaction
	Time       time.Time // of the last transaction
	Cluster    protocol.ClusterPublicKey
	Epoch      uint64 // of netmaps
	Overlay    []netip.Prefix
	NextNumber protocol.NodeNumber // the next node or hub gets it; numbers are never used again
	Settling   bool                // restored from a backup, and not in effect yet: see Settled

	HubList *protocol.SignedHubList // the last one signed
	Hubs    protocol.HubList        // its content

	HubNumbers Map[protocol.NodeNumber, bool]
	Sites      Sites
	Tokens     Map[protocol.TokenID, Token]
	Nodes      Map[protocol.NodeNumber, Node] // those that left or were revoked too
	Routes     Routes                         // of live nodes
	Admins     Map[string, Admin]             // by name; those that were revoked too
	NATSUsers  Map[string, NATSUser]          // likewise
	Objects    Map[ObjectKey, Object]         `json:",omitzero"` // declared

	Upgrade *Upgrade // the last one; nil: there was none
	// BySegment says that claims are held against those of their realm alone: see ClaimsBySegment.
	BySegment bool `json:",omitzero"`

	hash       []byte                                                // of the last transaction
	names      Map[string, protocol.NodeNumber]                      // live nodes
	keys       Map[protocol.WireGuardPublicKey, protocol.NodeNumber] // every node that ever was
	identities Map[protocol.IdentityPublicKey, protocol.NodeNumber]
	held       Map[netip.Addr, ObjectKey] // addresses of the overlay that objects have
	targets    map[ObjectKey]string       // names of objects by what they are for; nil: made when it is wanted
	namers     map[ObjectKey][]ObjectKey  // objects by what they name; likewise
	realms     *knownRealms               // replaced when they may be others; nil: worked out each time
	newest     *newest                    // of live nodes; nil: nothing is kept
	forgot     []Thing                    // by the last transaction
	folding    bool                       // what a log holds is taken, though the rules of today forbid it anew
}

// Site is a data centre or cloud region. Routes inside Ranges are approved by
// themselves.
type Site struct {
	Name    string
	Ranges  []netip.Prefix
	Created time.Time
	MaxAge  time.Duration // its agents go on without any hub this long; 0: for ever
	// RotateKeys is the age at which its nodes make new WireGuard keys; 0: never.
	RotateKeys time.Duration
	// Of the object that it is: transaction that put it last, and when; zero since a version that knew no objects.
	Generation uint64    `json:",omitzero"`
	Changed    time.Time `json:",omitzero"`
}

// Token is a join token. Of its secret only the SHA-256 is known.
type Token struct {
	ID      protocol.TokenID
	Hash    [32]byte
	Site    string
	Routes  []netip.Prefix
	Labels  map[string]string
	Replace string // name that the joining host may take over
	Created time.Time
	Expires time.Time
	Revoked bool
	UsedBy  protocol.NodeNumber // 0: not used
	Over    []RouteKey          // claims of others that Routes met when it was made
}

// Node is a host that joined.
type Node struct {
	Number       protocol.NodeNumber
	Name         string
	Site         string
	WireGuardKey protocol.WireGuardPublicKey
	IdentityKey  protocol.IdentityPublicKey
	Labels       map[string]string
	Token        protocol.TokenID
	Joined       time.Time
	Statement    *protocol.SignedNodeStatement // nil: no Hello yet
	Proven       time.Time                     // since when its control sessions have to prove its identity key; zero: not yet
	KeySince     time.Time                     // when WireGuardKey became the node's
	KeyWanted    uint32                        // epoch that an admin asked for; 0: none
	KeyAsked     time.Time                     // when
	KeyOverlap   time.Duration                 // how long the key before it shall stay good then
	Quarantine   string                        // why it may talk to nobody; empty: it may
	Drained      time.Time                     // since when it is the last choice for its prefixes; zero: it is not
	Gone         Gone
	GoneTime     time.Time
}

// Gone says how a node went.
type Gone string

// Values of Gone. The zero value is a live node.
const (
	GoneLeft    Gone = "left"
	GoneRevoked Gone = "revoked"
)

// Live reports whether the node still belongs to the cluster.
func (n Node) Live() bool { return n.Gone == "" }

// KeyEpoch is the epoch of the node's WireGuard key.
func (n Node) KeyEpoch() uint32 {
	if n.Statement == nil {
		return protocol.FirstKeyEpoch
	}
	return n.Statement.Epoch
}

// RouteKey names a route: a node and a prefix that it announces.
type RouteKey struct {
	Node   protocol.NodeNumber
	Prefix netip.Prefix
}

// Route is what became of an announced prefix. A decision outlives the
// announcement: a node that announces the prefix again finds it.
type Route struct {
	RouteKey
	State     protocol.RouteState
	By        string // token, range, rule, or who decided
	FromToken bool   // announced by the node's token
	Announced bool   // announced by the node's configuration
}

// Carried reports whether the route may be in netmaps.
func (r Route) Carried() bool {
	return r.State == protocol.RouteApproved && (r.Announced || r.FromToken)
}

// New is the state before the first transaction.
func New() *State { return &State{NextNumber: 1, newest: new(newest), realms: new(knownRealms)} }

// clone is a copy for whoever changes it. It shares all that nobody changes.
func (s *State) clone() *State {
	c := *s
	c.targets, c.namers = nil, nil
	return &c
}

// LiveAt returns the live node of that name if it is at that site.
func (s *State) LiveAt(site, name string) (Node, bool) {
	n, ok := s.Nodes.Find(s.names.Get(name))
	return n, ok && n.Live() && n.Site == site
}

// NodeByName returns the live node of that name or, if there is none, the
// last one that had it.
func (s *State) NodeByName(name string) (Node, bool) {
	if n, ok := s.names.Find(name); ok {
		return s.Nodes.Get(n), true
	}
	var found Node
	for _, n := range s.Nodes.All() {
		if n.Name == name && n.Number > found.Number {
			found = n
		}
	}
	return found, found.Number != 0
}

// NodeByKey returns the node that has or had this WireGuard key.
func (s *State) NodeByKey(k protocol.WireGuardPublicKey) (Node, bool) {
	n, ok := s.keys.Find(k)
	return s.Nodes.Get(n), ok
}

// NodeRoutes lists a node's routes by prefix.
func (s *State) NodeRoutes(n protocol.NodeNumber) (out []Route) {
	for k, r := range s.Routes.From(RouteKey{Node: n}) {
		if k.Node != n {
			break
		}
		out = append(out, r)
	}
	return out
}

// compareRoutes compares by node and prefix.
func compareRoutes(a, b RouteKey) int {
	return cmp.Or(cmp.Compare(a.Node, b.Node), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
}

// SortRoutes sorts by node and prefix.
func SortRoutes(r []Route) {
	slices.SortFunc(r, func(a, b Route) int { return compareRoutes(a.RouteKey, b.RouteKey) })
}

// OverlayOf returns the overlay addresses of a node or hub.
func (s *State) OverlayOf(n protocol.NodeNumber) ([]netip.Addr, error) {
	out := make([]netip.Addr, 0, len(s.Overlay))
	for _, p := range s.Overlay {
		a, err := n.Overlay(p)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// NodeByOverlay returns the live node that has overlay address a.
func (s *State) NodeByOverlay(a netip.Addr) (Node, bool) {
	a = a.Unmap()
	for _, p := range s.Overlay {
		if !p.Contains(a) {
			continue
		}
		node, ok := s.Nodes.Find(numberAt(p, a))
		return node, ok && node.Live()
	}
	return Node{}, false
}

// numberAt is the number of whoever has a in the overlay range p, whether it was given yet or not; 0: nobody can.
func numberAt(p netip.Prefix, a netip.Addr) protocol.NodeNumber {
	b, base := a.AsSlice(), p.Masked().Addr().AsSlice()
	var diff uint64
	for i := range b {
		diff = diff<<8 + uint64(b[i]) - uint64(base[i]) // wraps back when a lower byte borrowed
	}
	n := protocol.NodeNumber(diff)
	if have, err := n.Overlay(p); uint64(n) != diff || err != nil || have != a {
		return 0
	}
	return n
}
