package api

import (
	"net/netip"
)

// ExplainRequest asks why From cannot reach To, or whether it can: each is a node's name, a
// pod's name (or NODE/POD) or an address; To may be a service by name or address too. Without a port, reachability alone is asked for.
type ExplainRequest struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Proto string `json:"proto,omitempty"` // tcp, udp or icmp; default: tcp with a port, icmp without
	Port  uint16 `json:"port,omitempty"`
}

// Verdicts of an Explanation.
const (
	VerdictHealthy  = "healthy"  // nothing was found
	VerdictDegraded = "degraded" // it works, not as it should
	VerdictBroken   = "broken"   // it does not work
)

// Explanation is the verdict on a flow. Faults are in the order of their weight: the first
// is the verdict, those after it are other faults that the evidence shows.
type Explanation struct {
	From    ExplainEnd     `json:"from"`
	To      ExplainEnd     `json:"to"`
	Proto   string         `json:"proto"`
	Port    uint16         `json:"port,omitempty"`
	Service *ServiceChoice `json:"service,omitempty"` // To was asked for by it; absent: by no service
	Verdict string         `json:"verdict"`
	Faults  []Fault        `json:"faults"`
	Hops    []ExplainHop   `json:"hops"`
	Took    Duration       `json:"took"`
}

// ServiceChoice is the backend to which the client's node leads most of a service's connections, or would if it could.
type ServiceChoice struct {
	Service string     `json:"service"`
	VIP     netip.Addr `json:"vip,omitzero"` // absent: it is headless
	Port    uint16     `json:"port"`
	Addr    netip.Addr `json:"addr"`
	Target  uint16     `json:"target"`
	Site    string     `json:"site"`
	Node    string     `json:"node,omitempty"`
	Slots   int        `json:"slots"` // that lead there; 0: it takes no connections
	Of      int        `json:"of"`
}

// ExplainEnd is an end of a flow as the hub understood it.
type ExplainEnd struct {
	Name string     `json:"name"` // as it was asked for
	Kind string     `json:"kind"` // node, pod or address
	Addr netip.Addr `json:"addr,omitzero"`
	Node string     `json:"node,omitempty"`
	Site string     `json:"site,omitempty"`
}

// Fault is something that is wrong. Cause is one word for programs; docs/DIAG.md lists them.
type Fault struct {
	Cause    string   `json:"cause"`
	Hop      string   `json:"hop"`
	Node     string   `json:"node,omitempty"` // where it is wrong; empty: the hub, or the network
	Blocks   bool     `json:"blocks"`         // nothing passes
	Summary  string   `json:"summary"`
	Evidence []string `json:"evidence"`
	Mend     string   `json:"mend,omitempty"` // the command, or what to do
}

// States of an ExplainHop.
const (
	HopOK       = "ok"
	HopFailed   = "failed"
	HopDegraded = "degraded"
	HopUnknown  = "unknown" // could not be looked at
)

// ExplainHop is one thing that has to be right for the flow to pass.
type ExplainHop struct {
	Name  string `json:"name"`
	State string `json:"state"`
	Note  string `json:"note,omitempty"`
}
