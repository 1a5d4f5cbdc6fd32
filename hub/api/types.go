// Package api is the hub's admin API as its clients see it: the JSON types,
// the paths and a client. It depends on neither the hub nor its state, so that
// the admin CLI stays small. Field names are stable: scripts read them.
package api

import (
	"encoding/json"
	"net/netip"
	"time"

	"causeway/protocol"
)

// Version is a build's version.
type Version struct {
	Version  string `json:"version"`
	Protocol int    `json:"protocol"`
}

// Status is the hub on one screen.
type Status struct {
	Hub        HubStatus            `json:"hub"`
	Sites      []SiteStatus         `json:"sites"`
	Conditions []protocol.Condition `json:"conditions"`
	Relay      RelayStatus          `json:"relay"`
	Policies   PolicyStatus         `json:"policies"`
	Unknown    []UnknownNode        `json:"unknown_nodes,omitempty"` // of a hub restored from a backup
}

// PolicyStatus is what is declared of who may talk to whom. Without anything all is open.
type PolicyStatus struct {
	Segments int `json:"segments"`
	Policies int `json:"policies"`
	// Doubts are nodes and prefixes of which it is not sure in which segment they are: all with them is closed.
	Doubts     []string `json:"doubts,omitempty"`
	MoreDoubts int      `json:"more_doubts,omitempty"` // beyond those that are listed
	// Confirm is a change that goes back unless it is confirmed; none: no change waits.
	Confirm *PolicyPending `json:"confirm,omitempty"`
	// Error says why what is declared is not in force, and what was before goes on.
	Error string `json:"error,omitempty"`
	// Stage is how far the last change of it is: closing, receiving (what opens does so where it arrives) or whole.
	Stage string `json:"stage"`
	// Behind are nodes that did not acknowledge a stage in time, and have not since: no stage waits for them.
	Behind []string `json:"behind,omitempty"`
}

// UnknownNode is a node that joined after the backup which the hub was restored
// from, by the word of another node.
type UnknownNode struct {
	Name       string              `json:"name"`
	Site       string              `json:"site"`
	Number     protocol.NodeNumber `json:"number"`
	ReportedBy string              `json:"reported_by"`
}

// HubStatus is the hub itself.
type HubStatus struct {
	Version    string              `json:"version"`
	Number     protocol.NodeNumber `json:"number"`
	Started    time.Time           `json:"started"`
	PublicUDP  string              `json:"public_udp"`
	PublicHTTP string              `json:"public_https"`
	Overlay    []netip.Prefix      `json:"overlay"`
	LogLength  uint64              `json:"log_sequence"` // last sequence of the state log
}

// RelayStatus counts what the switchboard did since the hub's start.
type RelayStatus struct {
	Bound          int               `json:"bound_nodes"`
	ForwardedBytes uint64            `json:"forwarded_bytes"`
	Forwarded      uint64            `json:"forwarded_datagrams"`
	Dropped        map[string]uint64 `json:"dropped_datagrams"` // by reason
}

// SiteStatus is one site in Status.
type SiteStatus struct {
	Name        string `json:"name"`
	Nodes       int    `json:"nodes"`
	Ready       int    `json:"ready"`
	Degraded    int    `json:"degraded"`
	Unreachable int    `json:"unreachable"`
}

// SiteSpec asks for a site. Routes inside Ranges are approved by themselves, unless they meet
// another node's claim.
type SiteSpec struct {
	Name   string         `json:"name"`
	Ranges []netip.Prefix `json:"ranges,omitempty"`
	MaxAge MaxAge         `json:"max_age,omitempty"` // empty asks for the default
	// RotateKeys is the age at which its nodes make new WireGuard keys; empty:
	// by command alone.
	RotateKeys RotateKeys `json:"rotate_keys,omitempty"`
}

// SitePatch changes a site: what it leaves out stays. Ranges are all of them, null leaves them.
type SitePatch = protocol.SiteFields

// RotateKeys is the age at which nodes make new WireGuard keys.
type RotateKeys = protocol.RotateKeys

// Never is by command alone.
const Never = protocol.Never

// KeyRotation asks a node for a new WireGuard key. Its old one stays good for
// Overlap, for peers that have not heard of the new one.
type KeyRotation struct {
	Overlap Duration `json:"overlap"`
}

// MaxAge is how long agents go on without any hub.
type MaxAge = protocol.MaxAge

// Forever is no end.
const Forever = protocol.Forever

// Site is a data centre or cloud region.
type Site struct {
	SiteSpec
	Created time.Time `json:"created"`
	Nodes   int       `json:"nodes"`
	ETag    string    `json:"etag,omitempty"` // of what is stored
}

// TokenSpec asks for a join token. TTL zero means one hour.
type TokenSpec struct {
	Site    string            `json:"site"`
	TTL     Duration          `json:"ttl,omitempty"`
	Routes  []netip.Prefix    `json:"routes,omitempty"` // announced by the node, already approved
	Labels  map[string]string `json:"labels,omitempty"`
	Replace string            `json:"replace,omitempty"` // node whose name the joining host may take
}

// Token is a join token without its secret. State is open, used, expired or revoked.
type Token struct {
	TokenSpec
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	State   string    `json:"state"`
	UsedBy  string    `json:"used_by,omitempty"` // node name
	ETag    string    `json:"etag,omitempty"`    // of what is stored
}

// TokenCreated is the one answer that holds the token's text.
type TokenCreated struct {
	Text string `json:"token"`
	Token
	Meets []string `json:"meets,omitempty"` // its routes that meet claims of other nodes, and which
}

// Node states.
const (
	NodeJoined      = "joined"      // redeemed a token, was never seen on the tunnel
	NodeReady       = "ready"       // the hub hears of it, all conditions ok
	NodeDegraded    = "degraded"    // the hub hears of it, some condition is not ok
	NodeUnreachable = "unreachable" // the hub hears nothing, or has no control session
	NodeLeft        = "left"        // took itself out by 'causeway-agent leave'
	NodeRevoked     = "revoked"
	NodeQuarantined = "quarantined" // talks to nobody until an admin releases or revokes it
)

// Node is a host that runs an agent.
type Node struct {
	Name         string                 `json:"name"`
	Site         string                 `json:"site"`
	Number       protocol.NodeNumber    `json:"number"`
	Overlay      []netip.Addr           `json:"overlay"`
	State        string                 `json:"state"`
	StateSince   time.Time              `json:"state_since"`
	Reasons      []string               `json:"reasons"`            // why it is not ready
	Connected    time.Time              `json:"connected,omitzero"` // since when it has the control session that it has
	Drained      time.Time              `json:"drained,omitzero"`   // since when other nodes carry its routes where they can
	Paths        []protocol.PathStatus  `json:"paths"`
	Routes       []Route                `json:"routes"`
	Labels       map[string]string      `json:"labels,omitempty"`
	AgentVersion string                 `json:"agent_version,omitempty"`
	Engine       string                 `json:"engine,omitempty"`
	Underlay     []netip.AddrPort       `json:"underlay"` // addresses bound at the hub
	Joined       time.Time              `json:"joined"`
	Netmap       protocol.NetmapVersion `json:"netmap"` // acknowledged
	Refused      []protocol.RefusedPart `json:"refused,omitempty"`
	Conditions   []protocol.Condition   `json:"conditions"`
	WireGuardKey string                 `json:"wireguard_key"`
	KeyEpoch     uint32                 `json:"key_epoch"`
	KeySince     time.Time              `json:"key_since"`
	KeyWanted    uint32                 `json:"key_wanted,omitempty"` // epoch that it was asked for and has not yet
	ETag         string                 `json:"etag,omitempty"`       // of what is stored
	Dropped      *DroppedInventory      `json:"inventory_dropped,omitempty"`
	Upgrade      *NodeUpgrade           `json:"upgrade,omitempty"`  // the last one that it was asked for
	Unproven     bool                   `json:"unproven,omitempty"` // a session that does not prove its identity is taken: its agent is of a version before that, or was until minutes ago
}

// Revocation is how the cluster lets go of a revoked node. Relay, control and
// NATS of the node end together, at the hub.
type Revocation struct {
	Node      string              `json:"node"`
	Number    protocol.NodeNumber `json:"number"`
	Revoked   time.Time           `json:"revoked"`
	Cut       bool                `json:"cut"` // the hub has ended relay, control and NATS
	CutAfter  Duration            `json:"cut_after"`
	Confirmed []Confirmed         `json:"confirmed"` // nodes that have dropped it
	Waiting   []Unconfirmed       `json:"waiting"`   // nodes that have not
}

// Confirmed is a node that has dropped a revoked one, so long after the revocation.
type Confirmed struct {
	Node  string   `json:"node"`
	After Duration `json:"after"`
}

// Unconfirmed is a node that has not dropped a revoked one, as far as the hub knows.
type Unconfirmed struct {
	Node string `json:"node"`
	Why  string `json:"why"`
}

// Done reports whether nothing is left to wait for.
func (r Revocation) Done() bool { return r.Cut && len(r.Waiting) == 0 }

// NodePatch changes a node. A label with an empty value is removed.
type NodePatch struct {
	Labels map[string]string `json:"labels,omitempty"`
}

// Route is a CIDR that a node announces. State is pending, approved or
// rejected; By says how it came to that: token, range or an admin.
type Route struct {
	Node    string              `json:"node"`
	Site    string              `json:"site"`
	Segment string              `json:"segment,omitempty"` // of the node, where segments are declared: others that no rule joins may have the same prefix
	Prefix  netip.Prefix        `json:"prefix"`
	State   protocol.RouteState `json:"state"`
	By      string              `json:"by,omitempty"`
	Owner   bool                `json:"owner"`          // this node carries the prefix in netmaps (one of its HA group)
	Why     string              `json:"why,omitempty"`  // why it is not carried although approved, or which claim it meets where it waits
	ETag    string              `json:"etag,omitempty"` // of what is stored
}

// RouteDecision approves or rejects a node's route.
type RouteDecision struct {
	Node    string       `json:"node"`
	Prefix  netip.Prefix `json:"prefix"`
	Approve bool         `json:"approve"`
}

// Inventory is a node's present facts with where they come from.
type Inventory struct {
	Node     string              `json:"node"`
	Site     string              `json:"site"`
	Number   protocol.NodeNumber `json:"number"`
	Received time.Time           `json:"received"`
	protocol.Inventory
}

// DroppedInventory is what a node's agent sent as facts that made no sense, since the hub's start.
type DroppedInventory struct {
	Count uint64    `json:"count"`
	Last  time.Time `json:"last"`
	Why   string    `json:"why"` // of the last one
}

// InventoryChange is one message of a node's facts.
type InventoryChange struct {
	Node     string              `json:"node"`
	Site     string              `json:"site"`
	Number   protocol.NodeNumber `json:"number"`
	Time     time.Time           `json:"time"`     // by the node's clock
	Received time.Time           `json:"received"` // by the hub's
	Sequence uint64              `json:"seq"`
	Lines    []string            `json:"lines"`             // what changed, for a person; load and the like are not told of
	Changes  json.RawMessage     `json:"changes,omitempty"` // all that changed, as a JSON merge patch (RFC 7396)
}

// AuditEntry is one transaction of the state log.
type AuditEntry struct {
	Sequence uint64    `json:"seq"`
	Time     time.Time `json:"time"`
	Who      string    `json:"who"` // unix:<user>, admin:<name>, node:<name>, nodes, token:<id>, hub
	Why      string    `json:"why"`
	Changes  []string  `json:"changes"` // one line each, for a person
	// Differences are the fields of objects that changed.
	Differences []Difference `json:"differences,omitempty"`
}

// Difference is a field that a transaction changed. Before or After is empty where
// there was or is no such object, or nothing in the field.
type Difference struct {
	Object string `json:"object"`
	Field  string `json:"field"`
	Before string `json:"before"`
	After  string `json:"after"`
}

// AdminSpec asks for an admin who may use the API from elsewhere than the hub's host.
// TTL zero means 90 days.
type AdminSpec struct {
	Name string   `json:"name"`
	Role string   `json:"role"` // viewer, operator or admin
	TTL  Duration `json:"ttl,omitempty"`
	CSR  string   `json:"csr"` // PKCS #10 in PEM; of it only the key counts
}

// Admin is whoever holds a certificate for the API of a hub. State is active, expired
// or revoked.
type Admin struct {
	Name    string              `json:"name"`
	Role    string              `json:"role"`
	Hub     protocol.NodeNumber `json:"hub"` // the hub that takes the certificate
	Created time.Time           `json:"created"`
	Expires time.Time           `json:"expires"`
	State   string              `json:"state"`
	ETag    string              `json:"etag,omitempty"` // of what is stored
}

// AdminCreated has what a context is made of, but the key.
type AdminCreated struct {
	Admin
	Address     string `json:"address"`     // host:port of the API
	CA          string `json:"ca"`          // PEM
	Certificate string `json:"certificate"` // PEM
}

// NATSUserSpec asks for a user of the hub's NATS server.
type NATSUserSpec struct {
	Name string `json:"name"`
	Role string `json:"role"` // reader
	Key  string `json:"key"`  // public nkey of a user; the private one stays with him
}

// NATSUser is whoever may connect to the hub's NATS server from elsewhere, by the private
// key to Key. State is active or revoked.
type NATSUser struct {
	Name    string    `json:"name"`
	Role    string    `json:"role"`
	Key     string    `json:"key"`
	Created time.Time `json:"created"`
	State   string    `json:"state"`
	ETag    string    `json:"etag,omitempty"` // of what is stored
}

// NATSUserCreated has what a user needs to connect, but the private key.
type NATSUserCreated struct {
	NATSUser
	Address     string `json:"address"`      // host:port, TLS
	CA          string `json:"ca"`           // PEM: who vouches for the server's certificate
	InboxPrefix string `json:"inbox_prefix"` // the one that the user's client has to have
}

// Event is something that happened and is no change of state: joins refused,
// nodes coming and going. Kept in memory, newest first.
type Event struct {
	Sequence uint64    `json:"seq"` // since the hub's start
	Time     time.Time `json:"time"`
	Kind     string    `json:"kind"`
	Node     string    `json:"node,omitempty"`
	Message  string    `json:"message"`
}

// Change is an event of a watch: what became of one object of a list. At the start of a
// watch all of the list are Present.
type Change struct {
	Change string          `json:"change"`           // present, added, changed or removed
	Name   string          `json:"name"`             // of the object: as -o name prints it
	Object json.RawMessage `json:"object,omitempty"` // as the list has it; nothing if removed
}

// Values of Change.
const (
	Present = "present"
	Added   = "added"
	Changed = "changed"
	Removed = "removed"
)

// Incident is something that went wrong on a node: what its agent has set up was changed by
// others and put back, or its hub was out of reach.
type Incident struct {
	ID       string    `json:"id"`
	Node     string    `json:"node"`
	Site     string    `json:"site"`
	Received time.Time `json:"received"` // in this form
	protocol.Incident
}

// IncidentQuery says which incidents are wanted; zero values want all.
type IncidentQuery struct {
	Node, Site string
	Since      time.Time // those that began then or later, or lasted until then
	Limit      int       // 0: the hub's default
}

// Flow is all connections and packets between two addresses to one port, in the direction in which they begin, as a
// node logged them: see the kind flowlog of documents.
type Flow struct {
	Sequence uint64     `json:"seq"`  // of its last change; it says nothing else, and begins anew with each start of the hub
	Node     string     `json:"node"` // that saw it: where it began, or else the other end
	From     netip.Addr `json:"from"`
	To       netip.Addr `json:"to"`
	Port     string     `json:"port"`                // such as tcp/5432, icmp or protocol 47
	Verdict  string     `json:"verdict"`             // open or refused
	Rule     string     `json:"rule,omitempty"`      // POLICY/RULE that opened it; empty: no policy was declared
	FromNode string     `json:"from_node,omitempty"` // whose own address From is now
	FromSite string     `json:"from_site,omitempty"` // where From is now
	ToNode   string     `json:"to_node,omitempty"`
	ToSite   string     `json:"to_site,omitempty"`
	Midway   bool       `json:"midway,omitempty"` // it was seen in its middle alone, and may have begun the other way round
	Count    uint64     `json:"count"`            // how often it began; of refused ones packets, at most 100 a second of a node
	First    time.Time  `json:"first"`
	Last     time.Time  `json:"last"`
}

// Verdicts of flows.
const (
	FlowOpen    = "open"
	FlowRefused = "refused"
)

// PolicySuggestion is a policy that opens what was seen.
type PolicySuggestion struct {
	Document PolicyDocument `json:"document"`
	YAML     string         `json:"yaml"`     // the document with comments, as 'causeway apply' takes it
	Flows    int            `json:"flows"`    // that it was made of
	LeftOut  []string       `json:"left_out"` // why which others count for nothing
}

// PingRequest asks node From to ping To: a node, a pod or an address.
type PingRequest struct {
	From    string   `json:"from"`
	To      string   `json:"to"`
	Count   int      `json:"count,omitempty"`   // 1 to 20, default 3
	Timeout Duration `json:"timeout,omitempty"` // of each, default 1s
}

// PingResult is what From saw.
type PingResult struct {
	From     string     `json:"from"`
	To       string     `json:"to"`
	Addr     netip.Addr `json:"addr"`
	Sent     int        `json:"sent"`
	Received int        `json:"received"`
	MinRTT   Duration   `json:"min_rtt"`
	AvgRTT   Duration   `json:"avg_rtt"`
	MaxRTT   Duration   `json:"max_rtt"`
	Path     string     `json:"path,omitempty"` // path From uses to To's node, where known
	Error    string     `json:"error,omitempty"`
}

// Duration is a time.Duration whose JSON form is Go's text, such as 1h0m0s.
type Duration = protocol.Duration
