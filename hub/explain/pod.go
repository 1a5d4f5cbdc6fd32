package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"causeway/hub/api"
	"causeway/protocol"
)

// pod judges the flow's end behind a node.
func (j *judge) pod(s side) {
	p := s.e.Pod
	if p == nil {
		if s.to {
			j.nodeListener(s)
		}
		return
	}
	f := api.Fault{Hop: HopPod, Node: s.node(), Blocks: true}
	word := "pod " + s.Addr.String()
	switch {
	case len(p.MACs) > 1 || len(p.Spaces) > 1:
		f.Cause, f.Summary = "duplicate-address", fmt.Sprintf("address %s is there twice behind %s", s.Addr, s.node())
		if len(p.MACs) > 1 {
			f.Evidence = append(f.Evidence, "ARP is answered by "+strings.Join(p.MACs, " and "))
		}
		for _, x := range p.Spaces {
			f.Evidence = append(f.Evidence, fmt.Sprintf("process %d (%s) has it", x.PID, x.Command))
		}
		f.Mend = "stop one of the two, or give it another address"
		j.add(f)
		return
	case len(p.MACs) == 0 && p.Neighbour != "reachable" && p.Neighbour != "":
		f.Cause, f.Summary = "pod-no-address", fmt.Sprintf("nobody has address %s at %s: the pod does not run, or lost its address", s.Addr, s.node())
		f.Evidence = append(f.Evidence, fmt.Sprintf("ARP on %s: %s", p.Interface, p.Neighbour))
		f.Mend = fmt.Sprintf("restart the pod at %s: nothing there has address %s", s.node(), s.Addr)
		j.add(f)
		return
	case len(p.Spaces) == 1 && !p.Spaces[0].HasRoute:
		f.Cause, f.Summary = "pod-no-route", word+" has no route to "+s.other.Addr.String()+": it cannot answer"
		f.Evidence = append(f.Evidence, fmt.Sprintf("/proc/%d/net/route has none", p.Spaces[0].PID))
		f.Mend = "give it a route to " + rangeOf(s.other).String() + " by " + gateway(s, p)
		if p.Beside.IsValid() {
			f.Mend = on(s.node(), fmt.Sprintf("nsenter -n -t %d ip%s route add %s via %s", p.Spaces[0].PID, ip6(s.Addr), rangeOf(s.other), p.Beside))
		}
		j.add(f)
		return
	case j.noReturn(s, p):
		j.add(j.noReturnFault(s, p))
		return
	}
	if s.to && j.Port != 0 {
		j.listener(s, p)
	}
}

// listener judges who listens in a pod.
func (j *judge) listener(s side, p *protocol.PodEvidence) {
	at := fmt.Sprintf("%s port %d of %s", j.Proto, j.Port, s.Addr)
	f := api.Fault{Cause: "no-listener", Hop: HopListener, Node: s.node(), Blocks: true, Summary: "nothing listens at " + at, Mend: "start the service in the pod, or ask for the port that it has"}
	var here, loopback, elsewhere []string
	for _, x := range p.Spaces {
		for _, l := range x.Listeners {
			ap, err := netip.ParseAddrPort(l)
			switch {
			case err != nil:
			case ap.Port() == j.Port && ap.Addr().IsLoopback():
				loopback = append(loopback, l)
			case ap.Port() == j.Port && (ap.Addr().IsUnspecified() || ap.Addr().Unmap() == s.Addr):
				here = append(here, l)
			case !ap.Addr().IsLoopback():
				elsewhere = append(elsewhere, l)
			}
		}
	}
	refused := p.Connect != nil && p.Connect.Result == protocol.ConnectRefused
	switch {
	case len(here) > 0, j.Proto == protocol.FlowTCP && p.Connect != nil && p.Connect.Result == protocol.ConnectOK:
		if p.Connect != nil && p.Connect.Result == protocol.ConnectTimeout {
			j.add(api.Fault{Cause: "pod-firewall", Hop: HopListener, Node: s.node(), Blocks: true, Summary: "something in the pod drops connections to " + at,
				Evidence: []string{"it listens at " + here[0], "a connection from its own node was not answered"}, Mend: "look at the pod's own nftables"})
		}
		return
	case refused:
		f.Evidence = append(f.Evidence, "a connection from its own node was refused")
	case j.Proto == protocol.FlowTCP && p.Connect != nil:
		f.Evidence = append(f.Evidence, "a connection from its own node: "+p.Connect.Result)
		if len(p.Spaces) == 0 {
			f.Cause, f.Summary = "pod-silent", fmt.Sprintf("%s does not answer on port %d, not even its own node", s.Addr, j.Port)
			f.Mend = "look at the pod and its own firewall"
		}
	case len(p.Spaces) == 0:
		j.unknown[HopListener] = "no process of the pod is visible to the agent"
		return
	}
	switch {
	case len(loopback) > 0:
		f.Cause, f.Summary = "listener-loopback", fmt.Sprintf("the service listens at %s alone, where nobody outside the pod reaches it", loopback[0])
		f.Mend = fmt.Sprintf("let it listen at 0.0.0.0:%d", j.Port)
	case len(elsewhere) > 0:
		f.Cause, f.Summary = "wrong-port", fmt.Sprintf("nothing listens at %s; the pod listens at %s", at, strings.Join(elsewhere[:min(len(elsewhere), 4)], ", "))
		f.Mend = "ask for the port that it has"
	}
	j.add(f)
}

// nodeListener judges a port of a node itself, by the other end's connection.
func (j *judge) nodeListener(s side) {
	rejects := func(d protocol.Drop) bool {
		return !strings.HasPrefix(d.Way, "underlay") && strings.Contains(d.Rule, "reject")
	}
	if j.failedAt(s.node(), HopFirewall) || slices.ContainsFunc(s.e.Flow.Drops, rejects) {
		return // which looks the same from afar
	}
	if o := s.other.Evidence; o != nil && o.Connect != nil && o.Connect.Result == protocol.ConnectRefused {
		j.add(api.Fault{Cause: "no-listener", Hop: HopListener, Node: s.node(), Blocks: true, Summary: fmt.Sprintf("nothing listens at %s port %d of node %s", j.Proto, j.Port, s.node()),
			Evidence: []string{"a connection through the tunnel was refused"}, Mend: "start the service"})
	}
}
