// Package debug serves what an agent knows of itself as HTTP: whole on a unix
// socket of the host, read only on streams that the hub opens. The CLI reads
// the same answers. No answer holds a secret.
//
// docs/DEBUG.md lists the endpoints. Each use is noted (GET /v1/uses, and the
// log); what costs the node, or shows more than its state, the hub gets only
// where the node's config allows it.
package debug

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"causeway/agent/items"
	"causeway/netns/policy"
	"causeway/protocol"
)

// Config is where answers come from.
type Config struct {
	Status func() Status
	Peers  func() []Peer
	Paths  func() []protocol.PathStatus
	Netmap func() Netmap
	Routes func(context.Context) Routes
	Ping   func(context.Context, PingRequest) PingResult
	Trace  func(context.Context, protocol.TraceQuestion) protocol.TraceView
	// Evidence tells of a flow; its error says why the node does not look.
	Evidence func(context.Context, protocol.EvidenceRequest) (protocol.Evidence, error)
	// MeasureOffer opens a receiver for one measurement, MeasureRun sends to one.
	MeasureOffer func(context.Context, protocol.MeasureOffer) protocol.MeasurePlace
	MeasureRun   func(context.Context, protocol.MeasureRun) protocol.Measured
	// Prove counts packets of a trial of policies until the context ends, and says when it does; ProveSend sends those that
	// the one which goes on has, ProveSeen says what it counted.
	Prove     func(ctx context.Context, w protocol.ProveWatch, ready func()) error
	ProveSend func(context.Context, protocol.ProveNow) (protocol.ProveSents, error)
	ProveSeen func(context.Context, protocol.ProveNow) (protocol.ProveSeens, error)
	// Capture begins to record packets.
	Capture func(CaptureQuery) (Recording, error)
	Leave   func(context.Context) LeaveResult
	// RotateKey makes a new WireGuard key and waits a little until a hub took it.
	RotateKey func(ctx context.Context, overlap time.Duration) RotateResult
	Repair    func(context.Context) RepairResult
	// Release lets closed ranges go; its error says what is not closed.
	Release   func(context.Context, netip.Prefix) (ReleaseResult, error)
	Hubs      func() Hubs
	SetHubs   func(context.Context, protocol.SignedHubList) HubsResult
	Incidents func() []protocol.Incident // newest first
	Flows     func(context.Context, FlowQuery) ([]Flow, error)
	// Connections tells what crosses the tunnel: so many flows at most.
	Connections func(ctx context.Context, most int) (protocol.Connections, error)
	// Policy is what is in force of who may talk to whom; an address that is valid is looked up.
	Policy func(netip.Addr) Policy
	// Services are all services as this node sees them; of one that is named, or of protocol.ServicesCounted, the connections are
	// counted too.
	Services func(ctx context.Context, name string) (protocol.ServicesView, error)
	Logs     *Logs     // nil: the log cannot be followed
	Allow    []string  // what the hub may ask for besides looking: see Allowable
	Deny     []string  // what the hub may not, of what it may otherwise: see Deniable
	Used     func(Use) // hears of every request; may be nil
	Metrics  prometheus.Gatherer
}

// RepairResult is what a repair that a person asked for found. Each is a subject, such as
// routes or net.ipv4.ip_forward.
type RepairResult struct {
	Mended  []string `json:"mended"`
	Stopped []string `json:"stopped"` // still given up
	Error   string   `json:"error,omitempty"`
}

// ReleaseResult is which closed ranges were let go.
type ReleaseResult struct {
	Released []HeldRange `json:"released"`
	Error    string      `json:"error,omitempty"` // they are, and the host's routes could not be changed yet
}

// HeldRange is a range that was routed into the tunnel and that no peer has now:
// packets to it are answered as unreachable.
type HeldRange struct {
	Prefix netip.Prefix `json:"prefix"`
	Since  time.Time    `json:"since"`
}

// Apart is an address that stays outside the tunnel though a range has it.
type Apart struct {
	Addr netip.Addr `json:"addr"`
	What string     `json:"what"` // the host relies on it as
	// Advice says how it would come in, and what that takes from the host.
	Advice string `json:"advice,omitempty"`
}

// Stay is something of the host's own that stays local inside a range of the tunnel's.
type Stay struct {
	protocol.Own
	Range netip.Prefix `json:"range"`
	Peer  string       `json:"peer,omitempty"` // whose range it is; empty: it is closed
}

// Hubs is the hub list that the agent holds. Confirmed is when it was last shown to be the
// newest; zero: never yet.
type Hubs struct {
	Serial    uint64                 `json:"serial"`
	NotBefore time.Time              `json:"not_before"`
	NotAfter  time.Time              `json:"not_after"`
	Confirmed time.Time              `json:"confirmed"`
	Hubs      []protocol.Hub         `json:"hubs"`
	Signed    protocol.SignedHubList `json:"signed"`
}

// HubsResult is what became of a hub list that the agent was given.
type HubsResult struct {
	Taken bool   `json:"taken"` // false without Error: it is the one that the agent holds
	Error string `json:"error,omitempty"`
	Hubs  Hubs   `json:"hubs"` // that it holds now
}

// RotateResult is how a rotation stands. Key is the new public key.
type RotateResult struct {
	Epoch uint32 `json:"key_epoch"`
	Key   string `json:"wireguard_key"`
	Taken bool   `json:"taken"` // a hub has it, and peers learn it
	Error string `json:"error,omitempty"`
}

// Health is the list of conditions. OK: all of them hold.
type Health struct {
	OK         bool                 `json:"ok"`
	Conditions []protocol.Condition `json:"conditions"`
}

// Status is the agent on one screen.
type Status struct {
	// StateDir and Cluster (its pin) say which agent this is; empty: it is older than they are.
	StateDir string `json:"state_dir,omitempty"`
	Cluster  string `json:"cluster,omitempty"`

	Name       string                 `json:"name"`
	Site       string                 `json:"site"`
	Number     protocol.NodeNumber    `json:"number"`
	Overlay    []netip.Addr           `json:"overlay"`
	Version    string                 `json:"version"`
	Engine     string                 `json:"engine"`
	BootID     protocol.BootID        `json:"boot_id"`
	Started    time.Time              `json:"started"`
	Interface  string                 `json:"interface"`
	Hub        protocol.NodeNumber    `json:"hub"` // of the control session; 0: none
	HubVersion string                 `json:"hub_version,omitempty"`
	Netmap     protocol.NetmapVersion `json:"netmap"`
	Peers      int                    `json:"peers"`
	Routes     []netip.Prefix         `json:"routes"` // announced
	Held       []HeldRange            `json:"held"`   // closed
	Apart      []Apart                `json:"apart"`  // outside the tunnel
	Local      []netip.Prefix         `json:"local"`  // networks of the host's own inside ranges of the tunnel
	Stays      []Stay                 `json:"stays"`  // the same with what they are
	Taken      []string               `json:"taken"`  // of the host's own: what accept: led into the tunnel by its name
	Shields    Shields                `json:"shields"`
	Items      []items.Held           `json:"items"` // what operators declared that concerns this node
	Candidates []netip.AddrPort       `json:"candidates"`
	OK         bool                   `json:"ok"`
	Conditions []protocol.Condition   `json:"conditions"`
	Joined     *Joined                `json:"joined,omitempty"` // nil: not known
	Drops      protocol.Drops         `json:"drops"`            // what the engine dropped since the agent's start
	Lacks      string                 `json:"lacks,omitempty"`  // what the join reached the hub with, and the service was not given
}

// Joined is how the join reached the hub.
type Joined struct {
	Time      time.Time      `json:"time"`
	Hub       string         `json:"hub"`  // by which name or address, host:port
	Addr      netip.AddrPort `json:"addr"` // of the hub, or of the proxy
	Local     netip.Addr     `json:"local"`
	Interface string         `json:"interface,omitempty"`
	Proxy     string         `json:"proxy,omitempty"` // without its password
	From      string         `json:"from,omitempty"`  // where the proxy was named
	CA        string         `json:"ca,omitempty"`
}

// String is for people.
func (j Joined) String() string {
	family := "IPv6"
	if j.Addr.Addr().Is4() {
		family = "IPv4"
	}
	s := fmt.Sprintf("%s at %s by %s", j.Time.Format(time.RFC3339), j.Hub, family)
	if j.Interface != "" {
		s += " over " + j.Interface
	}
	if j.Proxy != "" {
		s += fmt.Sprintf(", through the proxy %s (%s)", j.Proxy, j.From)
	} else if j.Addr.IsValid() {
		s += ", where it was " + j.Addr.Addr().String()
	}
	return s
}

// Shields are what of the host itself other nodes reach.
type Shields struct {
	Up    bool     `json:"up"`
	Allow []string `json:"allow"` // ports, such as tcp/22
}

// String is for people.
func (s Shields) String() string {
	switch {
	case !s.Up:
		return "down: other nodes reach all that listens on this host"
	case len(s.Allow) == 0:
		return "up"
	}
	return "up, but for " + strings.Join(s.Allow, ", ")
}

// Peer is another node as this one takes it.
type Peer struct {
	Number     protocol.NodeNumber `json:"number"`
	Name       string              `json:"name"`
	Site       string              `json:"site"`
	Overlay    []netip.Addr        `json:"overlay"`
	Routes     []netip.Prefix      `json:"routes"`
	Candidates []netip.AddrPort    `json:"candidates"`
	Direct     bool                `json:"direct"`
	Key        string              `json:"wireguard_key"`
	KeyEpoch   uint32              `json:"key_epoch"`
	Path       protocol.PathKind   `json:"path"`
}

// Netmap is the netmap as it was sent, and what was made of it.
type Netmap struct {
	Held      bool                   `json:"held"`
	Confirmed time.Time              `json:"confirmed"` // when a hub last stood by it
	Expires   time.Time              `json:"expires"`   // zero: never
	Expired   bool                   `json:"expired"`
	Refused   []protocol.RefusedPart `json:"refused"`
	Errors    []string               `json:"errors"`
	Netmap    protocol.Netmap        `json:"netmap"`
}

// Routes is the host's network as planned and as found, one command a line.
type Routes struct {
	Announced []protocol.AnnouncedRoute `json:"announced"`
	Planned   []string                  `json:"planned"`
	Found     []string                  `json:"found"`
	Missing   []string                  `json:"missing"` // planned and not found
	Extra     []string                  `json:"extra"`   // found and not planned
	Refused   []protocol.RefusedPart    `json:"refused"`
	Error     string                    `json:"error,omitempty"`
}

// Policy is what is in force at the node of who may talk to whom. Counters begin at 0 when a rule, or the whole table,
// is made anew.
type Policy struct {
	InForce   bool                   `json:"in_force"` // false: nothing is declared, and all is open
	Rules     []RuleCount            `json:"rules"`    // by name
	Refused   policy.Count           `json:"refused"`  // and answered
	Dropped   policy.Count           `json:"dropped"`  // without an answer
	Untracked policy.Count           `json:"untracked"`
	Invalid   policy.Count           `json:"invalid"`
	Flows     []protocol.RefusedFlow `json:"refused_flows"`   // of the last 10 minutes, the most refused first, at most 64
	Classes   []ClassOf              `json:"classes"`         // of the address that was asked for
	Logging   bool                   `json:"logging"`         // a flow log is declared
	Deaf      string                 `json:"deaf,omitempty"`  // why refused flows are not known
	Error     string                 `json:"error,omitempty"` // why counters are not
}

// RuleCount is a rule, POLICY/RULE, and what passed by it.
type RuleCount struct {
	Rule string `json:"rule"`
	policy.Count
}

// ClassOf is the class of an address, by the longest prefix.
type ClassOf struct {
	Where  string       `json:"where"` // here or at a peer
	Prefix netip.Prefix `json:"prefix"`
	Class  uint32       `json:"class"`
}

// PingRequest asks the agent to ping an address or a node of its netmap.
type PingRequest struct {
	To      string   `json:"to"`
	Count   int      `json:"count,omitempty"`   // 1 to 20, default 3
	Timeout Duration `json:"timeout,omitempty"` // of each, up to 10s, default 1s
}

// PingResult has the JSON form of the admin API's result of the same name.
type PingResult struct {
	From     string     `json:"from"`
	To       string     `json:"to"`
	Addr     netip.Addr `json:"addr"`
	Sent     int        `json:"sent"`
	Received int        `json:"received"`
	MinRTT   Duration   `json:"min_rtt"`
	AvgRTT   Duration   `json:"avg_rtt"`
	MaxRTT   Duration   `json:"max_rtt"`
	Path     string     `json:"path,omitempty"`
	Error    string     `json:"error,omitempty"`
}

// LeaveResult says whether a hub confirmed the leave. The agent ends either way.
type LeaveResult struct {
	Told  bool   `json:"told"`
	Error string `json:"error,omitempty"`
}

// Duration is a time.Duration whose JSON form is Go's text, such as 1.5s.
type Duration = protocol.Duration
