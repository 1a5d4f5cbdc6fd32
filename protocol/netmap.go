package protocol

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"sort"
	"strings"
	"time"
)

// NetmapVersion orders netmaps. Version is the sequence of the state log that
// the netmap was computed from; it never falls within an epoch, and restoring
// a backup raises the epoch. Minor tells netmaps of the same Version apart:
// what is no state (candidates, which node of an HA group carries a route)
// changes without a transaction. It counts for one agent alone, on from what
// its Hello says that it holds, so that it never falls either, whichever hub
// the agent talks to and however often that one restarted.
type NetmapVersion struct {
	Epoch   uint64 `json:"epoch"`
	Version uint64 `json:"version"`
	Minor   uint64 `json:"minor,omitempty"`
}

// Less reports whether v is older than w.
func (v NetmapVersion) Less(w NetmapVersion) bool {
	if v.Epoch != w.Epoch {
		return v.Epoch < w.Epoch
	}
	if v.Version != w.Version {
		return v.Version < w.Version
	}
	return v.Minor < w.Minor
}

// String is epoch.version.minor.
func (v NetmapVersion) String() string {
	return fmt.Sprintf("%d.%d.%d", v.Epoch, v.Version, v.Minor)
}

// Netmap is an agent's whole desired state, or the change from Base to it.
type Netmap struct {
	NetmapVersion
	Base    *NetmapVersion `json:"base,omitempty"`     // nil: full
	HubList *SignedHubList `json:"hub_list,omitempty"` // full, or when it changed
	// Gone names nodes that are never taken back; full, or when it changed.
	Gone    *SignedGoneList `json:"gone,omitempty"`
	Self    NetmapSelf      `json:"self"`
	Peers   []Peer          `json:"peers"`             // full: all; else added and changed ones
	Removed []NodeNumber    `json:"removed,omitempty"` // with Base only
	// Items are what operators declared, as far as it concerns the node: all where the netmap is
	// full or AllItems says so, else added and changed ones.
	Items        []Item        `json:"items,omitempty"`
	AllItems     bool          `json:"all_items,omitempty"`     // with Base only
	RemovedItems []ItemKey     `json:"removed_items,omitempty"` // with Base only
	MaxAge       time.Duration `json:"max_age_ns"`              // agents go on without a hub this long; 0: forever
	Requires     []string      `json:"requires,omitempty"`      // features without which the agent refuses the map
	Mark         *StateMark    `json:"mark,omitempty"`          // of the state that the newest change was computed from
}

// NetmapSelf is what the hub says of the agent's own node.
type NetmapSelf struct {
	Number  NodeNumber       `json:"number"`
	Name    string           `json:"name"`
	Site    string           `json:"site"`
	Overlay []netip.Addr     `json:"overlay"`
	Routes  []AnnouncedRoute `json:"routes"` // its own routes and what became of them
	// KeyEpoch is the epoch that the node's WireGuard key shall have: below it
	// the agent makes a new key. KeyOverlap is how long the old one is good then.
	KeyEpoch   uint32        `json:"key_epoch,omitempty"`
	KeyOverlap time.Duration `json:"key_overlap_ns,omitempty"`
	// RotateKeys is the age at which the agent makes a new key by itself; 0: never.
	RotateKeys time.Duration `json:"rotate_keys_ns,omitempty"`
	// Upgrade is the version that the agent shall run; nil: any.
	Upgrade *UpgradeWish `json:"upgrade,omitempty"`
}

// AnnouncedRoute is a node's own route as the hub sees it.
type AnnouncedRoute struct {
	Prefix netip.Prefix `json:"prefix"`
	State  RouteState   `json:"state"`
}

// RouteState is what became of an announced route.
type RouteState string

// Route states.
const (
	RoutePending  RouteState = "pending"
	RouteApproved RouteState = "approved"
	RouteRejected RouteState = "rejected"
)

// Peer is another node in a netmap.
type Peer struct {
	Statement SignedNodeStatement `json:"statement"`
	Name      string              `json:"name"`
	Site      string              `json:"site"`
	Overlay   []netip.Addr        `json:"overlay"`
	Routes    []netip.Prefix      `json:"routes"` // approved, owned by this peer
	// Sources are prefixes that another node of the peer's site owns and this one
	// announces too, approved: packets from there may come from either, since a LAN
	// behind both answers through whichever its gateway chooses.
	Sources    []netip.Prefix   `json:"sources,omitempty"`
	Candidates []netip.AddrPort `json:"candidates"` // where it may be reached directly; may be empty
	Direct     bool             `json:"direct"`     // policy allows a direct path
}

// Number is the peer's node number.
func (p Peer) Number() NodeNumber { return p.Statement.Number }

// Prefixes returns what may be routed to the peer: its overlay addresses and
// its routes.
func (p Peer) Prefixes() []netip.Prefix {
	out := make([]netip.Prefix, 0, len(p.Overlay)+len(p.Routes))
	for _, a := range p.Overlay {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return append(out, p.Routes...)
}

// ErrUnknownBase says that a netmap change does not fit the netmap held.
var ErrUnknownBase = fmt.Errorf("netmap change has another base than the netmap held")

// minPeer and minPrefix are less than the JSON of a peer without prefixes, and of a prefix,
// takes.
const (
	minPeer   = 256
	minPrefix = 10
)

// checkSize refuses what no hub could send whole: changes that are each small enough would
// have an agent hold any amount.
func (n Netmap) checkSize() error {
	prefixes := 0
	for _, p := range n.Peers {
		prefixes += len(p.Overlay) + len(p.Routes) + len(p.Sources) + len(p.Candidates)
	}
	for _, i := range n.Items {
		prefixes += len(i.Body) / minPrefix
	}
	if len(n.Peers)*minPeer+prefixes*minPrefix > MaxToAgent {
		return fmt.Errorf("netmap of %d peers and %d prefixes is larger than a hub can send at once", len(n.Peers), prefixes)
	}
	return nil
}

// Apply returns the full netmap that results from receiving n while holding
// held (nil for none). A full n is returned as it is. Peers are sorted by
// number. One that is too large to be sent whole is an error.
func (n Netmap) Apply(held *Netmap) (Netmap, error) {
	peers := map[NodeNumber]Peer{}
	if n.Base != nil {
		if held == nil || held.NetmapVersion != *n.Base {
			return Netmap{}, ErrUnknownBase
		}
		for _, p := range held.Peers {
			peers[p.Number()] = p
		}
		for _, r := range n.Removed {
			delete(peers, r)
		}
		if n.HubList == nil {
			n.HubList = held.HubList
		}
		if n.Gone == nil {
			n.Gone = held.Gone
		}
	}
	if held != nil && held.Mark != nil && (n.Mark == nil || n.Mark.Less(*held.Mark)) {
		n.Mark = held.Mark // a hub of the version before has none
	}
	for _, p := range n.Peers {
		peers[p.Number()] = p
	}
	items, err := n.items(held)
	if err != nil {
		return Netmap{}, err
	}
	n.Items, n.AllItems, n.RemovedItems = items, false, nil
	n.Base, n.Removed = nil, nil
	n.Peers = make([]Peer, 0, len(peers))
	for _, p := range peers {
		n.Peers = append(n.Peers, p)
	}
	if err := n.checkSize(); err != nil {
		return Netmap{}, err
	}
	sort.Slice(n.Peers, func(i, j int) bool { return n.Peers[i].Number() < n.Peers[j].Number() })
	return n, nil
}

// PeersSum is a digest of a netmap's peers in any order: the exclusive or of the
// SHA-256 of each one's JSON. By it a hub finds that an agent holds what it
// would be sent. It proves nothing: who lies about it deceives himself alone.
type PeersSum [sha256.Size]byte

// Add adds a peer, or takes it out again.
func (s *PeersSum) Add(p PeersSum) {
	for i := range s {
		s[i] ^= p[i]
	}
}

// SumPeer is the digest of one peer, given its JSON.
func SumPeer(peer []byte) PeersSum { return sha256.Sum256(peer) }

// SumPeers is the digest of peers.
func SumPeers(peers []Peer) (sum PeersSum, err error) {
	for _, p := range peers {
		b, err := json.Marshal(p)
		if err != nil {
			return PeersSum{}, fmt.Errorf("encode peer %d: %w", p.Number(), err)
		}
		sum.Add(SumPeer(b))
	}
	return sum, nil
}

// SplitNetmap returns what is before and behind the peers in the JSON of n, whose
// own peers are left out: between them belong those of peers, separated by
// commas. So a peer is encoded once for any number of netmaps. What is behind begins with
// the end of the list: other lists of n that are empty may be opened before it.
func SplitNetmap(n Netmap) (head, tail []byte, err error) {
	n.Peers = []Peer{}
	b, err := json.Marshal(n)
	if err != nil {
		return nil, nil, fmt.Errorf("encode netmap: %w", err)
	}
	const mark = `"peers":[` // in a string the quotes would be escaped, and no other key has this name
	i := bytes.Index(b, []byte(mark)) + len(mark)
	return b[:i:i], b[i:], nil
}

// NetmapAck answers every Netmap.
type NetmapAck struct {
	NetmapVersion
	Full    bool          `json:"full,omitempty"`    // base unknown: send a full one
	Refused []RefusedPart `json:"refused,omitempty"` // parts that the agent did not take
	Errors  []string      `json:"errors,omitempty"`  // parts that it could not apply
	// Lost are peers of the netmap held before that this one, of a higher epoch,
	// does not have: nodes that joined after the backup which the hub was restored from.
	Lost []LostPeer `json:"lost,omitempty"`
}

// LostPeer is a node that an agent knew.
type LostPeer struct {
	Number NodeNumber `json:"number"`
	Name   string     `json:"name"`
	Site   string     `json:"site"`
}

// RefusedPart is a part of a netmap that the agent's own rules do not allow.
type RefusedPart struct {
	Peer   NodeNumber `json:"peer"`
	Prefix string     `json:"prefix,omitempty"`
	Kind   string     `json:"kind,omitempty"` // of an item, with its Name
	Name   string     `json:"name,omitempty"`
	Reason string     `json:"reason"`
}

// Part names the part: a node and its prefix, or an item.
func (p RefusedPart) Part() string {
	if p.Kind != "" {
		return p.Kind + " " + p.Name
	}
	return strings.TrimSpace(fmt.Sprintf("node %d %s", p.Peer, p.Prefix))
}
