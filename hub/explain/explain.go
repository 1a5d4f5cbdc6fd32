// Package explain judges why one end of a flow does not reach the other: Decide walks
// the hops that a packet depends on and names the first that fails, from evidence that
// was gathered before. It asks nobody and has no clock.
//
//	verdict := explain.Decide(facts)
package explain

import (
	"net/netip"
	"slices"
	"time"

	"causeway/hub/api"
	"causeway/hub/policy"
	"causeway/protocol"
)

// Thresholds.
const (
	silentAfter = 6 * time.Second // an agent says something every 5
	oldWay      = 12 * time.Second
	wrongClock  = time.Minute
	lossyPath   = 0.05
	lossyGaps   = 3       // times that it lost something
	littleRoom  = 8 << 20 // bytes
	fullMTU     = 1380    // inside the tunnel, where the way has 1500
	tunnelBytes = 80      // of the largest headers outside
	sanePings   = 2       // answers that prove more than luck
	// oneWaySilence is some of the questions that a direct way is asked with.
	oneWaySilence = 1200 * time.Millisecond
)

// Hops in the order in which they are judged.
const (
	HopName     = "name"
	HopService  = "service" // what the client's node makes of a service
	HopPolicy   = "policy"
	HopAgent    = "agent"
	HopRoute    = "route"
	HopApproval = "approval"
	HopAllowed  = "allowed-ips"
	HopHost     = "host routing"
	HopPath     = "path"
	HopNAT      = "nat"
	HopMTU      = "mtu"
	HopFirewall = "host firewall"
	HopPod      = "pod address"
	HopListener = "listener"
	HopHealth   = "health" // of what the flow needs later, not now
)

// Hops are all hops in their order.
var Hops = []string{HopName, HopService, HopPolicy, HopAgent, HopRoute, HopApproval, HopAllowed, HopHost, HopPath, HopNAT, HopMTU, HopFirewall, HopPod, HopListener, HopHealth}

// Kinds of an End.
const (
	KindNode    = "node"
	KindPod     = "pod"
	KindAddress = "address"
	KindUnknown = "unknown"
	KindService = "service" // without a backend
)

// End is what is known of one end.
type End struct {
	Asked     string
	Kind      string
	Addr      netip.Addr
	Segment   string      // of Node, where several segments have Addr
	Node      *api.Node   // that has Addr; nil: none
	Routes    []api.Route // of all nodes, that hold Addr, the longest first
	Conflict  string      // why the first of them cannot be approved
	Taken     *api.Route  // of another site's, that holds the address of a pod at Node; nil: none does
	Connected bool
	Goodbye   bool          // the agent ended its last session itself
	Silent    time.Duration // since its last word; negative: none since the hub's start
	Bound     []netip.AddrPort
	Incidents []api.Incident     // of Node, that last or were told of within the last minute
	Evidence  *protocol.Evidence // nil: its agent did not answer
	At        time.Time          // when Evidence came, by the hub's clock
	Error     string             // why not
}

// Facts are all that Decide judges by.
type Facts struct {
	Now        time.Time // when the evidence came, by the hub's clock
	From, To   End
	Proto      string
	Port       uint16
	Closed     *policy.Verdict      // by policies; nil: they do not close it
	Service    *Service             // that was asked for; nil: none. To is the backend that was chosen
	Chosen     *api.ServiceChoice   // nil: there is no backend
	AskedPort  uint16               // of the service
	Conditions []protocol.Condition // of the hub
}

// Decide is the verdict.
func Decide(f Facts) api.Explanation {
	j := &judge{Facts: f, unknown: map[string]string{}}
	for _, e := range []*protocol.Evidence{f.From.Evidence, f.To.Evidence} {
		plainEvidence(e)
	}
	j.names()
	if j.To.Kind == KindService {
		j.service()
	}
	if !j.blocked() {
		j.policy()
		j.agents()
		j.routes()
	}
	if f.From.Node != nil && f.To.Node != nil && !j.failed(HopPolicy, HopRoute, HopApproval) {
		for _, s := range j.sides() {
			if s.e == nil {
				continue
			}
			j.allowed(s)
			j.host(s)
			j.firewall(s)
			j.pod(s)
		}
		if !j.local() && f.From.Evidence != nil && f.To.Evidence != nil {
			j.path()
			j.mtu()
			j.endToEnd()
		}
	}
	j.service()
	for _, s := range j.sides() {
		j.incidents(s)
		if s.e != nil {
			j.health(s)
		}
	}
	j.hub()
	return j.explanation()
}

// side is one end with its evidence, and the other.
type side struct {
	End
	e     *protocol.Evidence
	other *End
	to    bool // it is where the flow goes to
}

func (s side) node() string { return s.Node.Name }

func (j *judge) sides() []side {
	var out []side
	for i, x := range []*End{&j.From, &j.To} {
		if x.Node != nil {
			out = append(out, side{*x, x.Evidence, []*End{&j.To, &j.From}[i], i == 1})
		}
	}
	return out
}

// local reports whether both ends are at one node.
func (j *judge) local() bool {
	return j.From.Node != nil && j.To.Node != nil && j.From.Node.Number == j.To.Node.Number
}

// judge gathers faults.
type judge struct {
	Facts
	faults  []api.Fault
	unknown map[string]string // hops that could not be looked at, and why
}

func (j *judge) add(f api.Fault) {
	for _, o := range j.faults {
		if o.Cause == f.Cause && o.Node == f.Node {
			return
		}
	}
	if f.Evidence == nil {
		f.Evidence = []string{}
	}
	j.faults = append(j.faults, f)
}

// block is add for a fault that may be there already as one that does not block.
func (j *judge) block(f api.Fault) {
	j.faults = slices.DeleteFunc(j.faults, func(o api.Fault) bool { return o.Cause == f.Cause && o.Node == f.Node && !o.Blocks })
	j.add(f)
}

func (j *judge) blocked() bool {
	return slices.ContainsFunc(j.faults, func(f api.Fault) bool { return f.Blocks })
}

// failed reports whether a fault at one of the hops blocks.
func (j *judge) failed(hops ...string) bool {
	return slices.ContainsFunc(j.faults, func(f api.Fault) bool { return f.Blocks && slices.Contains(hops, f.Hop) })
}

// failedAt is failed for one node.
func (j *judge) failedAt(node string, hops ...string) bool {
	return slices.ContainsFunc(j.faults, func(f api.Fault) bool { return f.Blocks && f.Node == node && slices.Contains(hops, f.Hop) })
}

func (j *judge) has(cause string) bool {
	return slices.ContainsFunc(j.faults, func(f api.Fault) bool { return f.Cause == cause })
}

// explanation orders what was found: what blocks first, then by hop.
func (j *judge) explanation() api.Explanation {
	out := api.Explanation{Service: j.Chosen, Proto: j.Proto, Port: j.Port, Verdict: api.VerdictHealthy, From: shown(j.From), To: shown(j.To), Faults: []api.Fault{}, Hops: []api.ExplainHop{}}
	slices.SortStableFunc(j.faults, func(a, b api.Fault) int {
		if a.Blocks != b.Blocks {
			if a.Blocks {
				return -1
			}
			return 1
		}
		return weight(a.Hop) - weight(b.Hop)
	})
	out.Faults = append(out.Faults, j.faults...)
	if len(j.faults) > 0 {
		out.Verdict = api.VerdictDegraded
		if j.faults[0].Blocks {
			out.Verdict = api.VerdictBroken
		}
	}
	after := false // a hop that blocks came before
	for _, h := range Hops {
		if h == HopService && j.Service == nil {
			continue
		}
		hop := api.ExplainHop{Name: h, State: api.HopOK}
		switch {
		case j.failed(h):
			hop.State, after = api.HopFailed, true
		case slices.ContainsFunc(j.faults, func(f api.Fault) bool { return f.Hop == h }):
			hop.State = api.HopDegraded
		case j.unknown[h] != "":
			hop.State, hop.Note = api.HopUnknown, j.unknown[h]
		case after && h != HopHealth && !j.looked(h):
			hop.State = api.HopUnknown
		}
		if hop.State == api.HopOK {
			hop.Note = j.note(h)
		}
		out.Hops = append(out.Hops, hop)
	}
	return out
}

// weight orders hops by what is to be mended first: that a service has nobody may follow from all that its backends depend on.
func weight(hop string) int {
	if hop == HopService {
		hop = HopHealth
	}
	return slices.Index(Hops, hop)
}

// looked reports whether there is evidence of a hop at all.
func (j *judge) looked(h string) bool {
	switch h {
	case HopName, HopService, HopPolicy, HopAgent, HopRoute, HopApproval:
		return true
	}
	return j.From.Evidence != nil && j.To.Evidence != nil && !j.failed(HopPolicy, HopRoute, HopApproval, HopAllowed)
}

// note says what was found right.
func (j *judge) note(h string) string {
	a := j.From.Evidence
	switch h {
	case HopName:
		if j.To.Node != nil && j.From.Node != nil {
			return place(j.From) + " to " + place(j.To)
		}
	case HopService:
		return j.serviceNote()
	case HopPath:
		if j.local() {
			return "both are at one node"
		}
		if a != nil && a.Path != nil && a.Path.Path != protocol.PathNone {
			return string(a.Path.Path) + ", " + a.Path.RTT.Round(10*time.Microsecond).String()
		}
	case HopMTU:
		if a != nil && a.Path != nil && a.Path.MTU > 0 {
			return bytes(a.Path.MTU)
		}
	case HopListener:
		if j.Port == 0 {
			return "no port was asked for"
		}
	}
	return ""
}

func shown(e End) api.ExplainEnd {
	out := api.ExplainEnd{Name: e.Asked, Kind: e.Kind, Addr: e.Addr}
	if e.Node != nil {
		out.Node, out.Site = e.Node.Name, e.Node.Site
	}
	return out
}

// written is an address as commands take it.
func written(e End) string {
	if e.Segment != "" {
		return e.Segment + "/" + e.Addr.String()
	}
	return e.Addr.String()
}

func place(e End) string {
	if e.Kind == KindNode {
		return e.Node.Name
	}
	return written(e) + " at " + e.Node.Name
}
