package protocol

import (
	"net/netip"
	"time"
)

// Bounds of what an agent tells for 'causeway diag'.
const (
	// MaxPathCandidates bounds the ways to a peer in an answer.
	MaxPathCandidates = 32
	// maxTraceHubs bounds how many hubs an answer tells of.
	maxTraceHubs = 64
	// MaxTracePings is how many echo requests a trace may ask for, each.
	MaxTracePings = 10
)

// PathCandidate is one way to a peer, as the asked agent judges it.
type PathCandidate struct {
	Path     PathKind       `json:"path"`          // direct, relay or stream
	Addr     netip.AddrPort `json:"addr"`          // where datagrams go
	Hub      NodeNumber     `json:"hub,omitempty"` // of a relay or stream
	Chosen   bool           `json:"chosen"`
	State    string         `json:"state"` // see the PathState constants
	RTT      time.Duration  `json:"rtt_ns"`
	Loss     float64        `json:"loss"`
	Size     int            `json:"size"`     // the largest IP packet that arrives on the underlay; 0: not known, or none there is (stream)
	Answered time.Time      `json:"answered"` // a probe, the last time; zero: never
}

// States of a PathCandidate.
const (
	PathAnswers  = "answers"
	PathLossy    = "lossy"     // answers, and loses much
	PathNoData   = "no data"   // answers probes, and carries no data, or little
	PathUnsteady = "unsteady"  // answers, and failed a short time ago
	PathSilent   = "silent"    // answered once, and does not now
	PathNever    = "no answer" // never answered
	PathIdle     = "idle"      // not asked: there is no traffic
)

// PathView is how a node reaches a peer, and why so.
type PathView struct {
	PathStatus
	Size       int             `json:"size"` // the largest IP packet that arrives over the path on the underlay; 0: not known, or none there is (stream)
	Why        string          `json:"why"`
	Candidates []PathCandidate `json:"candidates"`
}

// TraceQuestion asks an agent what is between it and a peer.
type TraceQuestion struct {
	Peer  NodeNumber `json:"peer"`
	From  netip.Addr `json:"from,omitzero"`   // a pod or LAN host behind the asked node; none: the node itself
	To    netip.Addr `json:"to,omitzero"`     // one behind the peer; none: the peer itself
	Count int        `json:"count,omitempty"` // echo requests, each; 1 to MaxTracePings, default 3
}

// Pinged is what echo requests to an address saw.
type Pinged struct {
	Addr     netip.Addr    `json:"addr"`
	Sent     int           `json:"sent"`
	Received int           `json:"received"`
	MinRTT   time.Duration `json:"min_rtt_ns"`
	AvgRTT   time.Duration `json:"avg_rtt_ns"`
	MaxRTT   time.Duration `json:"max_rtt_ns"`
	Error    string        `json:"error,omitempty"`
}

// HostRoute is what the kernel says of where a packet goes.
type HostRoute struct {
	Interface string     `json:"interface,omitempty"`
	Source    netip.Addr `json:"source,omitzero"` // that the host takes for its own packets
	Gateway   netip.Addr `json:"gateway,omitzero"`
	Table     int        `json:"table,omitempty"`
	MTU       int        `json:"mtu"` // set on the route, or the interface's
	Error     string     `json:"error,omitempty"`
}

// TraceView is one end's view of what is between it and a peer.
type TraceView struct {
	Node     string       `json:"node"`
	Number   NodeNumber   `json:"number"`
	Overlay  netip.Addr   `json:"overlay,omitzero"`
	Peer     PathView     `json:"peer"`
	Hubs     []PathStatus `json:"hubs"`            // how the node reaches the hubs
	Route    HostRoute    `json:"route"`           // of what goes to the far end
	Local    *Pinged      `json:"local,omitempty"` // From, as the node reaches it
	PeerPing Pinged       `json:"peer_ping"`       // the peer's overlay address, through the tunnel
	EndPing  *Pinged      `json:"end_ping,omitempty"`
	Error    string       `json:"error,omitempty"`
}

// Clean makes what an agent tells fit for a person's terminal, and bounds it.
func (t *TraceView) Clean() {
	line := func(l ...*string) {
		for _, s := range l {
			*s = OneLine(*s, MaxFactText)
		}
	}
	line(&t.Node, &t.Route.Interface, &t.Route.Error, &t.Error, &t.PeerPing.Error, &t.Peer.Why, &t.Peer.Name)
	for _, p := range []*Pinged{t.Local, t.EndPing, &t.PeerPing} {
		if p != nil {
			line(&p.Error)
			p.Addr = p.Addr.WithZone("")
		}
	}
	kind := func(k *PathKind) { *k = PathKind(OneLine(string(*k), 16)) }
	kind(&t.Peer.Path)
	t.Overlay, t.Route.Source, t.Route.Gateway = t.Overlay.WithZone(""), t.Route.Source.WithZone(""), t.Route.Gateway.WithZone("")
	t.Peer.Addr = plainAddrPort(t.Peer.Addr)
	t.Hubs = t.Hubs[:min(len(t.Hubs), maxTraceHubs)]
	for i := range t.Hubs {
		kind(&t.Hubs[i].Path)
		line(&t.Hubs[i].Name)
		t.Hubs[i].Addr = plainAddrPort(t.Hubs[i].Addr)
	}
	t.Peer.Candidates = t.Peer.Candidates[:min(len(t.Peer.Candidates), MaxPathCandidates)]
	for i := range t.Peer.Candidates {
		c := &t.Peer.Candidates[i]
		kind(&c.Path)
		line(&c.State)
		c.Addr = plainAddrPort(c.Addr)
	}
}

// plainAddrPort is a without a zone, which may be any text.
func plainAddrPort(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().WithZone(""), a.Port())
}
