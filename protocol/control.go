package protocol

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"
)

// The control channel is TCP inside the WireGuard session with the hub, from
// the agent's overlay address to the hub's, with yamux on it. The agent dials
// ControlPort; 'control', 'nats' and 'debug' streams share that connection.
// Answers that may be long take connections of their own to BulkPort (bulk.go).
const (
	ControlPort = 4710
	BulkPort    = 4711

	// OverlayPortFirst to OverlayPortLast are Causeway's own at all overlay addresses, for
	// TCP and UDP: on their hosts only agents reach them. PackagePort and those of
	// measurements are among them.
	OverlayPortFirst = 4710
	OverlayPortLast  = 4719
)

// StreamKind names what a yamux stream carries.
type StreamKind string

// Stream kinds.
const (
	StreamControl StreamKind = "control" // opened by the agent: Message frames both ways
	StreamNATS    StreamKind = "nats"    // opened by the agent: NATS client protocol to the hub's server
	StreamDebug   StreamKind = "debug"   // opened by the hub: HTTP/1.1 to the agent's debug endpoints
)

// StreamHeader is the first frame on every stream (ReadFrame, MaxStreamHeader).
type StreamHeader struct {
	Version int        `json:"v"`
	Kind    StreamKind `json:"kind"`
}

// MessageKind names the body of a Message.
type MessageKind string

// Kinds from agent to hub.
const (
	KindHello      MessageKind = "hello"
	KindStatus     MessageKind = "status"
	KindNetmapAck  MessageKind = "netmap_ack"
	KindLeave      MessageKind = "leave"
	KindHubListAsk MessageKind = "hub_list_ask" // HubListAsk
)

// Kinds from hub to agent.
const (
	KindWelcome MessageKind = "welcome"
	KindNetmap  MessageKind = "netmap"
	KindLeft    MessageKind = "left"
	KindHubList MessageKind = "hub_list" // HubListAnswer
	KindMark    MessageKind = "mark"     // StateMark, to agents with FeatureMark
	KindBeat    MessageKind = "beat"     // Beat, to agents that ask for it
	KindError   MessageKind = "error"    // either way
)

// Message is one frame of a control stream.
type Message struct {
	Version int             `json:"v"`
	Kind    MessageKind     `json:"kind"`
	Body    json.RawMessage `json:"body,omitempty"`
}

// NewMessage wraps body.
func NewMessage(kind MessageKind, body any) (Message, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return Message{}, fmt.Errorf("encode %s: %w", kind, err)
	}
	return Message{Version, kind, b}, nil
}

// Decode reads the body into v.
func (m Message) Decode(v any) error {
	if err := json.Unmarshal(m.Body, v); err != nil {
		return fmt.Errorf("decode %s: %w", m.Kind, err)
	}
	return nil
}

// Error is the body of KindError. Unknown kinds are answered with
// ErrorUnknownKind; the stream goes on.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Codes of Error.
const (
	ErrorUnknownKind = "unknown_kind"
	ErrorRevoked     = "revoked" // the node's certificate of existence is gone; the agent stops redialling fast
	ErrorBadMessage  = "bad_message"
	ErrorUnproven    = "unproven" // the session did not prove the node's identity
)

// Hello is the agent's first message on a control stream.
type Hello struct {
	AgentVersion string              `json:"agent_version"`
	BootID       BootID              `json:"boot_id"`
	Statement    SignedNodeStatement `json:"statement"`
	Routes       []netip.Prefix      `json:"routes"` // announced: routes: of the agent's config
	Accept       []netip.Prefix      `json:"accept"` // what it lets the hub route into the tunnel
	Labels       map[string]string   `json:"labels,omitempty"`
	Have         NetmapVersion       `json:"have"`               // netmap that it holds; zero for none
	HaveSum      []byte              `json:"have_sum,omitempty"` // PeersSum of that: if it is still true, they are not sent again
	Features     []string            `json:"features,omitempty"`
	Engine       string              `json:"engine"`
	Gone         []SignedGoneList    `json:"gone,omitempty"` // what the agent holds, MaxGoneLists at most
	// Vouch says that the agent answers a Challenge; see there. An agent of the version
	// before has none.
	Vouch []byte `json:"vouch,omitempty"`
	// Mark is the newest that the agent holds; nil: none.
	Mark *StateMark `json:"mark,omitempty"`
}

// Welcome is the hub's first message.
type Welcome struct {
	HubVersion string     `json:"hub_version"`
	Hub        NodeNumber `json:"hub"`
	Number     NodeNumber `json:"number"`
	Name       string     `json:"name"`
	Site       string     `json:"site"`
	Time       time.Time  `json:"time"`
}

// Status is what an agent reports every StatusInterval and when it changes.
type Status struct {
	Candidates []netip.AddrPort `json:"candidates"` // its own underlay addresses
	Paths      []PathStatus     `json:"paths"`
	Conditions []Condition      `json:"conditions"`
	Upgrade    *UpgradeStatus   `json:"upgrade,omitempty"` // the last one; nil: none yet
	// Services are backends of services beside it that it asks whether they are ready.
	Services []ServiceReadiness `json:"services,omitempty"`
	// Fences are services of which it keeps what Fenced says: what comes to backends there is blocked, and what was open from here has
	// ended, in its kernel.
	Fences []ServiceFence `json:"fences,omitempty"`
	// Beat, unless it is 0, is what the hub answers with, by KindBeat: then the agent knows that a hub heard it since it sent this.
	Beat uint64 `json:"beat,omitempty"`
}

// Beat is the body of KindBeat.
type Beat struct {
	Beat uint64 `json:"beat"` // of the status that it answers
}

// StatusInterval is how often an agent sends Status when nothing changes.
const StatusInterval = 5 * time.Second

// PathKind is one way to carry WireGuard datagrams to a peer.
type PathKind string

// Path kinds. PathNone: there is no working path, or the peer is idle and none was needed yet.
const (
	PathNone   PathKind = "none"
	PathDirect PathKind = "direct"
	PathRelay  PathKind = "relay"
	PathStream PathKind = "stream"
)

// PathStatus is the chosen path to one peer.
type PathStatus struct {
	Peer    NodeNumber     `json:"peer"`
	Name    string         `json:"name,omitempty"`
	Path    PathKind       `json:"path"`
	Idle    bool           `json:"idle,omitempty"` // no traffic for a while: not probed, so Path is what the next packet takes
	Addr    netip.AddrPort `json:"addr"`           // where datagrams go: the peer, or the hub for a relay
	RTT     time.Duration  `json:"rtt_ns"`
	Loss    float64        `json:"loss"` // of the last probes there and back, 0 to 1
	MTU     int            `json:"mtu"`  // of packets inside the tunnel; 0: not known yet
	Since   time.Time      `json:"since"`
	RxBytes uint64         `json:"rx_bytes"`
	TxBytes uint64         `json:"tx_bytes"`
}

// ConditionPaths is the condition of an agent that does not hold while a path that answers probes is
// left alone. Another one carries, so that it makes no node degraded.
const ConditionPaths = "paths"

// SuspectPath is a path whose probes are answered and that is not used all the same.
type SuspectPath struct {
	Peer    NodeNumber     `json:"peer"` // or hub
	Name    string         `json:"name,omitempty"`
	Path    PathKind       `json:"path"` // to a hub: direct
	Addr    netip.AddrPort `json:"addr"`
	Why     string         `json:"why"`
	Since   time.Time      `json:"since"`
	Until   time.Time      `json:"until"`   // it is tried again then
	Instead PathKind       `json:"instead"` // what carries now
}

// Shown is the path for a person: PathIdle, or the kind.
func (s PathStatus) Shown() PathKind {
	if s.Idle && s.Path != PathNone {
		return PathIdle
	}
	return s.Path
}

// Condition is one named health condition of an agent or hub.
type Condition struct {
	Name      string    `json:"name"` // for example tunnel, hub, control, nats, routes, firewall
	OK        bool      `json:"ok"`
	Since     time.Time `json:"since"`
	Cause     string    `json:"cause,omitempty"`      // why it is not ok, for a person
	Note      string    `json:"note,omitempty"`       // what a person may want to know though it is ok
	DependsOn []string  `json:"depends_on,omitempty"` // conditions that explain this one
}
