package protocol

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Flows over NATS: what a node that logs them saw, published where only its own session may, into a stream of their own
// (FlowStream) in which each node has its share:
//
//	causeway.v1.flow.<site>.<number>   FlowReport
const (
	SubjectFlowsAll = "causeway.v1.flow.>"
	FlowStream      = "CAUSEWAY_FLOWS"
	flowPrefix      = "causeway.v1.flow."
)

// Bounds of reports. Agents keep to them, hubs drop what does not.
const (
	MaxFlowReport = 32 << 10 // bytes of a payload
	MaxFlows      = 100      // of one report
	MaxRefused    = 16       // of facts
)

// ItemFlowLog is the kind of items that have a node log flows.
const ItemFlowLog = "flowlog"

// FlowLog is the body of such an item, and what operators declare: which nodes log. Without any of the
// three all nodes do.
type FlowLog struct {
	Sites  []string          `json:"sites,omitempty"`  // nodes of these sites
	Nodes  []string          `json:"nodes,omitempty"`  // these nodes
	Labels map[string]string `json:"labels,omitempty"` // nodes that have all of these labels
}

// FlowReport is what a node saw of flows through its tunnel since it told of them last.
type FlowReport struct {
	Version int       `json:"v"`
	Time    time.Time `json:"time"`
	Flows   []Flow    `json:"flows"`
	LeftOut uint64    `json:"left_out,omitempty"` // flows that were too many to log
}

// Flow is all connections and packets between two addresses to one port, in the direction in which they
// begin. Ports from which they begin are not told apart.
type Flow struct {
	From netip.Addr `json:"from"`
	To   netip.Addr `json:"to"`
	// Proto is the number of the IP protocol, Port that of TCP, UDP and the like; 0: it has none.
	Proto   uint8     `json:"proto"`
	Port    uint16    `json:"port,omitempty"`
	Rule    string    `json:"rule,omitempty"`    // POLICY/RULE that opened it; empty: no policy was declared
	Refused bool      `json:"refused,omitempty"` // the node refused it
	Here    bool      `json:"here,omitempty"`    // it began at the node, or behind it
	Midway  bool      `json:"midway,omitempty"`  // it was seen in its middle alone: it may have begun the other way round
	Count   uint64    `json:"count"`             // how often it began; of refused ones packets, or some of them
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
}

// PortText is such as tcp/443, icmp or protocol 47.
func (f Flow) PortText() string { return PortText(f.Proto, f.Port) }

// PortText words a protocol number and a port.
func PortText(proto uint8, port uint16) string {
	switch proto {
	case 1, 58:
		return "icmp"
	case 6:
		return fmt.Sprintf("tcp/%d", port)
	case 17:
		return fmt.Sprintf("udp/%d", port)
	}
	return fmt.Sprintf("protocol %d", proto)
}

// FlowSubject is where node n of site publishes its reports.
func FlowSubject(site string, n NodeNumber) string {
	return fmt.Sprintf("%s%s.%d", flowPrefix, site, n)
}

// ParseFlowSubject reads what FlowSubject writes, and nothing else. Every byte is a stranger's.
func ParseFlowSubject(subject string) (site string, n NodeNumber, err error) {
	rest, ok := strings.CutPrefix(subject, flowPrefix)
	site, number, some := strings.Cut(rest, ".")
	v, err := strconv.ParseUint(number, 10, 24)
	if !ok || !some || !ValidName(site) || err != nil || !NodeNumber(v).Valid() || strconv.FormatUint(v, 10) != number {
		return "", 0, errors.New("it is no subject of a node's flows")
	}
	return site, NodeNumber(v), nil
}

// Clean checks a report that came from elsewhere, and makes its text fit for a terminal.
func (r *FlowReport) Clean() error {
	if r.Version < 1 || r.Version > Version+1 {
		return errors.New("flows without a version that is known")
	}
	if r.Time.Year() < 1970 || r.Time.Year() > 9999 {
		return errors.New("flows at no time")
	}
	if len(r.Flows) > MaxFlows {
		return fmt.Errorf("more than %d flows", MaxFlows)
	}
	for i := range r.Flows {
		f := &r.Flows[i]
		switch {
		case !plainAddr(f.From) || !plainAddr(f.To) || f.From.Is4() != f.To.Is4():
			return errors.New("a flow without two addresses of one family")
		case f.Count == 0 || f.Count > 1<<48:
			return errors.New("a flow that never was")
		case f.First.Year() < 1970 || f.First.Year() > 9999 || f.Last.Year() > 9999 || f.Last.Before(f.First):
			return errors.New("a flow at no time")
		case f.Rule != "" && !validRule(f.Rule):
			return errors.New("a flow by what names no rule")
		}
	}
	return nil
}

func plainAddr(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && a.Zone() == "" }

func validRule(s string) bool {
	policy, rule, ok := strings.Cut(s, "/")
	return ok && ValidName(policy) && ValidName(rule)
}

// RefusedFlow is what a node refuses again and again: at least RefusedOften packets in RefusedWindow, over RefusedSpan or
// longer. How often it is says only the order of magnitude, lest facts never stand still.
type RefusedFlow struct {
	From  netip.Addr `json:"from"`
	To    netip.Addr `json:"to"`
	Proto uint8      `json:"proto"`
	Port  uint16     `json:"port,omitempty"`
	Count uint64     `json:"count"` // at least
	Since time.Time  `json:"since"`
}

// From when on something is refused again and again.
const (
	RefusedOften  = 20
	RefusedWindow = 10 * time.Minute
	RefusedSpan   = time.Minute
)

// Valid reports whether it makes sense, wherever it came from.
func (r RefusedFlow) Valid() bool {
	return plainAddr(r.From) && plainAddr(r.To) && r.From.Is4() == r.To.Is4() && r.Since.Year() >= 1970 && r.Since.Year() <= 9999
}
