package explain

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"causeway/hub/api"
	"causeway/protocol"
)

// Service is what is known of a service that a flow goes to. The flow is judged to a backend: that which the client's node chooses, or
// would if it could.
type Service struct {
	Name    string
	Segment string
	VIP     netip.Addr
	Port    uint16 // of the service; 0: it has no such port
	Target  uint16 // at backends
	Ports   string // that it has
	Told    bool   // the client's node is told of it
	TooOld  bool   // that node's agent knows of no services
	View    *protocol.ServiceView
	Error   string // why there is none
}

// Choice is the backend that most of the slots of a family lead to; without any, one to which connections would go if it were reached
// and ready. ok: there is a backend at all.
func (s *Service) Choice(v6 bool) (x protocol.ServiceEndpointView, ok bool) {
	if s.View == nil {
		return x, false
	}
	rank := func(e protocol.ServiceEndpointView) int {
		switch {
		case e.Slots > 0:
			return 1000 + e.Slots
		case e.Use:
			return 3
		case e.Ready != protocol.NotReady.String():
			return 2
		}
		return 1
	}
	for _, e := range s.View.Endpoints {
		if e.Addr.Is6() == v6 && (!ok || rank(e) > rank(x)) {
			x, ok = e, true
		}
	}
	return x, ok
}

// ParseServices reads what an agent answered of a service, in plain text.
func ParseServices(b []byte) (*protocol.ServiceView, error) {
	var v protocol.ServicesView
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("read services: %w", err)
	}
	if len(v.Services) != 1 || len(v.Services[0].Endpoints) > protocol.MaxServiceEndpoints {
		return nil, fmt.Errorf("its answer has %d services", len(v.Services))
	}
	s := &v.Services[0]
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		e.Addr = e.Addr.Unmap().WithZone("")
		for _, t := range []*string{&e.Site, &e.Name, &e.Node, &e.Reach, &e.Ready, &e.Cause, &e.Why} {
			*t = protocol.OneLine(*t, maxText)
		}
	}
	return s, nil
}

// service judges what the client's node makes of the service.
func (j *judge) service() {
	s := j.Service
	if s == nil || j.From.Node == nil {
		return
	}
	client := j.From.Node.Name
	f := api.Fault{Hop: HopService, Node: client, Blocks: true}
	x, some := api.ServiceChoice{}, false
	if j.Chosen != nil {
		x, some = *j.Chosen, true
	}
	switch {
	case s.Port == 0:
		f.Cause, f.Node, f.Summary, f.Mend = "service-no-port", "", fmt.Sprintf("service %s has no %s port %d: connections to it are refused", s.Name, j.Proto, j.AskedPort), "ask for one that it has: "+s.Ports
	case s.TooOld:
		f.Cause, f.Summary, f.Mend = "service-agent-too-old", "the agent of "+client+" knows of no services: what it sends to their addresses leads nowhere", "causeway upgrade agents --node "+client
	case !s.Told:
		f.Cause, f.Summary = "service-not-told", fmt.Sprintf("node %s is told of no service %s: it is for nodes of segment %s", client, s.Name, s.Segment)
		f.Mend = "causeway service show " + s.Name + "; the service's segment, or whose node " + client + " is, is the operators' to say"
	case s.View == nil:
		j.unknown[HopService] = "what " + client + " makes of the service: " + s.Error
		return
	case len(s.View.Endpoints) == 0:
		f.Cause, f.Node, f.Summary, f.Mend = "service-empty", "", "service "+s.Name+" has no backend: connections are refused", "causeway service show "+s.Name
	case some && x.Slots > 0:
		j.serviceTable(client)
		return
	default:
		f.Cause, f.Summary = "service-unreached", fmt.Sprintf("%s reaches no backend of service %s that is ready, and refuses connections", client, s.Name)
		if !slices.ContainsFunc(s.View.Endpoints, func(e protocol.ServiceEndpointView) bool { return e.Ready != protocol.NotReady.String() }) {
			f.Cause, f.Node, f.Summary = "service-not-ready", "", "no backend of service "+s.Name+" is ready, as the nodes beside them say: connections are refused"
		}
		f.Mend = "causeway service explain " + s.Name + " " + client
		for _, e := range s.View.Endpoints[:min(len(s.View.Endpoints), 5)] {
			f.Evidence = append(f.Evidence, endpointText(e, client))
		}
	}
	j.add(f)
}

// serviceTable judges what is on the host for services.
func (j *judge) serviceTable(client string) {
	e := j.From.Evidence
	if e == nil {
		return
	}
	for _, c := range e.Conditions {
		if c.Name == "services" && !c.OK {
			j.add(api.Fault{Cause: "service-table", Hop: HopService, Node: client, Blocks: true, Summary: "what leads services' addresses to backends is not as it should be on " + client, Evidence: []string{c.Cause},
				Mend: "on " + client + ": nft list table inet causeway-service; causeway-agent incidents says who changed it"})
		}
	}
}

// endpointText says what a client's node sees of a backend, who said so and how long ago.
func endpointText(e protocol.ServiceEndpointView, client string) string {
	who := e.Node
	if e.Reach == protocol.ReachLocal {
		who = client
	}
	if who == "" {
		return fmt.Sprintf("%s at %s: %s", e.Addr, e.Site, e.Why)
	}
	text := fmt.Sprintf("%s at %s: node %s is %s and says: %s", e.Addr, e.Site, who, e.Reach, e.Ready)
	if e.Cause != "" {
		text += " (" + e.Cause + ")"
	}
	if e.Answered > 0 {
		text += fmt.Sprintf("; it answered %s ago", e.Answered.Round(time.Millisecond))
	}
	return text
}

// serviceNote says how a service's address is translated.
func (j *judge) serviceNote() string {
	s := j.Service
	if s == nil || j.Chosen == nil {
		return ""
	}
	at := s.VIP.String()
	if !s.VIP.IsValid() {
		at = "headless"
	}
	text := fmt.Sprintf("%s port %d to %s port %d at %s", at, s.Port, j.Chosen.Addr, s.Target, j.Chosen.Site)
	if j.Chosen.Of > 0 {
		text += fmt.Sprintf(", as %d of %d slots", j.Chosen.Slots, j.Chosen.Of)
	}
	return text
}

// PortsOf words the ports of a service.
func PortsOf(l []protocol.ServicePort) string {
	var out []string
	for _, p := range l {
		out = append(out, fmt.Sprintf("%s/%d", p.Protocol, p.Port))
	}
	return strings.Join(out, ", ")
}
