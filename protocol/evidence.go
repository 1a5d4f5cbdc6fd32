package protocol

import (
	"net/netip"
	"time"
)

// EvidenceRequest asks an agent what it sees of a flow of which one end is at its
// node. Both ends' agents are asked; the hub judges.
type EvidenceRequest struct {
	Local  netip.Addr `json:"local"`  // the end at this node: a pod's address, or the node's own
	Remote netip.Addr `json:"remote"` // the other end
	Peer   NodeNumber `json:"peer"`   // node of the other end; 0 or this node: it is here too
	Proto  string     `json:"proto"`  // tcp, udp or icmp
	Port   uint16     `json:"port,omitempty"`
	// Serves says that Local is where the flow goes to, so that Port is its own.
	Serves bool `json:"serves,omitempty"`
}

// Bounds of Evidence. Agents keep to them, hubs cut what is beyond.
const (
	MaxEvidence      = 256 << 10 // bytes of its JSON form
	MaxEvidenceLines = 64        // of each list
)

// Protocols of a flow.
const (
	FlowTCP  = "tcp"
	FlowUDP  = "udp"
	FlowICMP = "icmp"
)

// Evidence is what an agent sees of a flow.
type Evidence struct {
	Version    int           `json:"v"`
	Time       time.Time     `json:"time"` // by the node's clock, when the answer was sent
	Conditions []Condition   `json:"conditions"`
	Netmap     NetmapVersion `json:"netmap"`
	Expired    bool          `json:"expired,omitempty"` // no hub stood by the netmap for its max age
	Refused    []RefusedPart `json:"refused,omitempty"` // of the netmap, about the peer
	Errors     []string      `json:"errors,omitempty"`  // of applying it
	// Peer is whether the netmap as it was taken has the peer, and Allowed the prefix of
	// it that holds Remote; not valid: none does.
	Peer    bool         `json:"peer"`
	Allowed netip.Prefix `json:"allowed,omitzero"`
	// Stays is what of the host's own has Remote though a range of the peer's has it too, so that
	// nothing for it enters the tunnel. Name is what accept: would have to name exactly to lead it
	// there, where that is in question, and Takes what the host would lose by it.
	Stays  *Own         `json:"stays,omitempty"`
	Name   netip.Prefix `json:"name,omitzero"`
	Takes  []Own        `json:"takes,omitempty"`
	Path   *PathStatus  `json:"path,omitempty"` // the chosen one to the peer
	Ways   []Way        `json:"ways,omitempty"` // all that are tried
	Probes []TunnelPing `json:"probes,omitempty"`
	Flow   FlowEvidence `json:"flow"`
	Pod    *PodEvidence `json:"pod,omitempty"` // nil: Local is the node's own address
	Names  []HubName    `json:"names,omitempty"`
	Disk   *DiskSpace   `json:"disk,omitempty"`
	// Drops is what the node's engine dropped while it was looked: the flow's packets, or others.
	Drops Drops `json:"drops,omitempty"`
	// Underlay is what the host says of the way to the peer, or to the hub.
	Underlay UnderlayEvidence `json:"underlay"`
	// Connect is a TCP connection from this node through the tunnel to Remote and Port; nil: it was not tried.
	Connect *Connect `json:"connect,omitempty"`
	// Reach are echo requests from this node's address beside Local through the tunnel to
	// Remote; nil: none were sent, as Remote is the peer's own address.
	Reach *TunnelPing `json:"reach,omitempty"`
}

// Way is one way to a peer or hub that probes try. Ages are -1 for never.
type Way struct {
	Kind       PathKind       `json:"kind"`
	Addr       netip.AddrPort `json:"addr,omitzero"` // of a direct one
	Chosen     bool           `json:"chosen,omitempty"`
	Unanswered int            `json:"unanswered"`    // questions since the last answer
	Answered   time.Duration  `json:"answered_age"`  // since an answer to our question
	Heard      time.Duration  `json:"heard_age"`     // since a question of the peer
	Asked      time.Duration  `json:"asked_age"`     // since our last question
	RTT        time.Duration  `json:"rtt,omitempty"` // of the last answers
	// Gaps is how often questions of the last ten seconds were lost between answered ones:
	// a change of path makes one, loss makes many.
	Gaps int `json:"gaps,omitempty"`
	// NoInterface is what the last answer said: the peer's tunnel has no interface.
	NoInterface bool `json:"no_interface,omitempty"`
	// Suspect is why the way is left alone although probes are answered over it.
	Suspect string `json:"suspect,omitempty"`
}

// freshWay is how old an answer may be that still proves a way.
const freshWay = 4 * time.Second

// Fresh reports whether the peer answered over the way of late.
func (w Way) Fresh() bool { return w.Answered >= 0 && w.Answered < freshWay }

// TunnelPing are echo requests from this node to the peer through the tunnel.
type TunnelPing struct {
	Size     int    `json:"size"` // of the packet inside the tunnel, in bytes
	Sent     int    `json:"sent"`
	Received int    `json:"received"`
	Error    string `json:"error,omitempty"`
}

// FlowEvidence is what the host's kernel does with the flow's packets.
type FlowEvidence struct {
	Interface string        `json:"interface"` // the tunnel's
	There     bool          `json:"there"`     // it is
	Up        bool          `json:"up"`
	Out       RouteDecision `json:"out"`                // from Local to Remote
	In        RouteDecision `json:"in"`                 // from Remote to Local, out of the tunnel
	Rules     []string      `json:"rules,omitempty"`    // of routing policy that come before the tunnel's
	HasRule   bool          `json:"has_rule"`           // the tunnel's own rule is there
	Missing   []string      `json:"missing,omitempty"`  // planned and not found
	Drops     []Drop        `json:"drops,omitempty"`    // rules of others that drop packets of the flow
	Settings  []string      `json:"settings,omitempty"` // sysctls that matter, key=value
	Error     string        `json:"error,omitempty"`    // what could not be read
}

// RouteDecision is what the kernel answers for a packet.
type RouteDecision struct {
	From  string `json:"from,omitempty"` // interface that the packet comes in by; empty: a local program sends it
	To    string `json:"to,omitempty"`   // interface that it leaves by; lo: it is for this host
	Table int    `json:"table,omitempty"`
	MTU   int    `json:"mtu,omitempty"`
	Error string `json:"error,omitempty"` // the kernel's refusal, by its name: EXDEV, EHOSTUNREACH, ENETUNREACH…
	// Forwarding and RPFilter are those of the interface that the packet comes in by.
	Forwarding bool `json:"forwarding"`
	RPFilter   int  `json:"rp_filter"`
	// Stolen are the rules before the tunnel's that lead the packet elsewhere, in their order.
	Stolen []PolicyRule `json:"stolen,omitempty"`
}

// PolicyRule is a rule of routing policy.
type PolicyRule struct {
	Pref     int          `json:"pref"`
	Dst      netip.Prefix `json:"dst,omitzero"` // not valid: any
	Inverted bool         `json:"inverted,omitempty"`
	Text     string       `json:"text"` // as 'ip rule del' takes it
	// Own are the routes of its table, when that is none of the kernel's: who leads them past the
	// rule cuts the host from them.
	Own []netip.Prefix `json:"own,omitempty"`
}

// Drop is a rule of a firewall that drops packets of the flow.
type Drop struct {
	Way     string `json:"way"`  // out or in of the flow, or underlay-out, underlay-in
	Hook    string `json:"hook"` // forward, input, …
	Chain   string `json:"chain"`
	Rule    string `json:"rule"`
	Handle  int    `json:"handle,omitempty"` // 0: the chain's policy
	Certain bool   `json:"certain"`          // every condition of the rule was understood
	Port    uint16 `json:"port,omitempty"`   // of this host, of the underlay's datagrams
	Owner   string `json:"owner,omitempty"`  // the program that writes the rules of this table anew: OwnerUfw; empty: not known
}

// AccessTable is the nftables table of an agent, with its family: it begins the name of every
// chain of its access list in a Drop.
const AccessTable = "inet causeway "

// Chains of that table that a verdict tells apart.
const (
	ShieldsChain   = "shields"          // drops what is sent to the host itself
	InterfaceChain = "access-interface" // drops sources that come by an interface that is not theirs
)

// PodEvidence is a pod as its host sees it.
type PodEvidence struct {
	Interface string      `json:"interface"`       // the host's, that leads to it
	Neighbour string      `json:"neighbour"`       // the kernel's word: reachable, failed, …
	Beside    netip.Addr  `json:"beside,omitzero"` // the host's address there
	MAC       string      `json:"mac,omitempty"`
	MACs      []string    `json:"macs,omitempty"`    // all that answered for the address
	Near      *TunnelPing `json:"near,omitempty"`    // echo from the host's address beside the pod
	Far       *TunnelPing `json:"far,omitempty"`     // echo from the host's overlay address, which needs the pod's default route
	Spaces    []PodSpace  `json:"spaces,omitempty"`  // network namespaces on this host that have the address
	Connect   *Connect    `json:"connect,omitempty"` // to Port, from the host
}

// PodSpace is a network namespace of processes on the host.
type PodSpace struct {
	PID       int      `json:"pid"`
	Command   string   `json:"command"`
	HasRoute  bool     `json:"has_route"`           // a route to Remote
	Listeners []string `json:"listeners,omitempty"` // address:port of the flow's protocol
	// Gateway is where that route leads; not valid: to a neighbour, or not known.
	Gateway netip.Addr `json:"gateway,omitzero"`
}

// Connect is a TCP connection that was tried.
type Connect struct {
	From   netip.Addr    `json:"from,omitzero"`
	Result string        `json:"result"` // ok, refused, timeout or the error
	After  time.Duration `json:"after_ns"`
}

// Results of Connect.
const (
	ConnectOK      = "ok"
	ConnectRefused = "refused"
	ConnectTimeout = "timeout"
)

// HubName is an entry of the hub list that is a name, as DNS has it now.
type HubName struct {
	Name  string       `json:"name"`
	Addrs []netip.Addr `json:"addrs,omitempty"`
	Used  []netip.Addr `json:"used,omitempty"` // addresses at which a hub answers
	Error string       `json:"error,omitempty"`
}

// DiskSpace is the file system of the agent's state.
type DiskSpace struct {
	Path  string `json:"path"`
	Free  uint64 `json:"free_bytes"`
	Total uint64 `json:"total_bytes"`
}

// UnderlayEvidence is what the host says of the underlay's way to the peer and hub.
type UnderlayEvidence struct {
	UDPBlocked bool  `json:"udp_blocked,omitempty"` // hubs are reached over streams alone
	Hub        []Way `json:"hub,omitempty"`
	// LinkMTU is that of the interface to the peer's underlay address, PathMTU what the kernel
	// learned by ICMP of the way there; 0: nothing.
	LinkMTU int `json:"link_mtu,omitempty"`
	PathMTU int `json:"path_mtu,omitempty"`
	// Peer is whether the peer's host answers, and its port: for a peer that is silent.
	PeerHost *TunnelPing `json:"peer_host,omitempty"`
	PeerPort string      `json:"peer_port,omitempty"` // closed: its host says that nothing listens there
}
