package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"causeway/hub/api"
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

func bytes(n int) string { return fmt.Sprintf("%d bytes", n) }

func (j *judge) names() {
	for _, e := range []End{j.From, j.To} {
		switch {
		case e.Kind == KindUnknown:
			j.add(api.Fault{Cause: "unknown-name", Hop: HopName, Blocks: true, Summary: fmt.Sprintf("nothing is called %s: no node, and no pod in the inventory", e.Asked),
				Mend: "causeway node list; causeway inventory list"})
		case e.Node == nil:
			j.add(api.Fault{Cause: "no-route", Hop: HopRoute, Blocks: true, Summary: fmt.Sprintf("no node announces a route that holds %s", e.Addr),
				Mend: "add it to routes: in the config of the node that it is behind, then approve it"})
		case e.Taken != nil:
			j.add(api.Fault{Cause: "stays-local", Hop: HopRoute, Node: e.Node.Name, Blocks: true,
				Summary:  fmt.Sprintf("%s of %s has address %s, which other nodes send into %s of %s: its network is %s's own", e.Asked, e.Node.Name, e.Addr, e.Taken.Prefix, e.Taken.Node, e.Node.Name),
				Evidence: []string{fmt.Sprintf("route %s of %s is %s", e.Taken.Prefix, e.Taken.Node, e.Taken.State)},
				Mend:     fmt.Sprintf("give the network of %s at %s another range, then add that to routes: of %s and approve it", e.Asked, e.Node.Name, e.Node.Name)})
		}
	}
}

func (j *judge) policy() {
	for _, s := range j.sides() {
		f := api.Fault{Hop: HopPolicy, Node: s.node(), Blocks: true, Evidence: s.Node.Reasons}
		switch s.Node.State {
		case api.NodeRevoked:
			f.Cause, f.Summary, f.Mend = "node-revoked", "node "+s.node()+" was revoked", "join it again with a new token: causeway token create --site "+s.Node.Site
		case api.NodeLeft:
			f.Cause, f.Summary, f.Mend = "node-left", "node "+s.node()+" left the cluster", "join it again with a new token: causeway token create --site "+s.Node.Site
		case api.NodeQuarantined:
			f.Cause, f.Summary, f.Mend = "node-quarantined", "node "+s.node()+" is in quarantine and may talk to nobody", "causeway node release "+s.node()
		case api.NodeJoined:
			f.Cause, f.Summary, f.Mend = "agent-never-seen", "node "+s.node()+" joined, and its agent was never seen", "on "+s.node()+": systemctl enable --now causeway-agent; causeway-agent doctor"
			f.Hop = HopAgent
		default:
			continue
		}
		j.add(f)
	}
}

func (j *judge) agents() {
	for _, s := range j.sides() {
		if s.e != nil || j.failedAt(s.node(), HopPolicy, HopAgent) {
			continue
		}
		f := api.Fault{Hop: HopAgent, Node: s.node(), Blocks: true}
		switch {
		case s.Connected && s.Silent >= 0 && s.Silent < silentAfter:
			j.unknown[HopAgent] = "agent of " + s.node() + ": " + s.Error
			continue
		case s.Connected:
			f.Evidence = append(f.Evidence, fmt.Sprintf("its control session is open, and it has said nothing for %s", ago(s.Silent)))
		case s.Goodbye:
			f.Cause, f.Summary = "agent-stopped", "the agent of "+s.node()+" was stopped"
			f.Evidence = append(f.Evidence, fmt.Sprintf("it ended its control session itself, %s ago", ago(s.Silent)))
			f.Mend = "on " + s.node() + ": systemctl start causeway-agent"
			j.add(f)
			continue
		case s.Silent < 0:
			f.Evidence = append(f.Evidence, "it was not heard of since the hub's start")
		default:
			f.Evidence = append(f.Evidence, fmt.Sprintf("it went silent %s ago without ending its control session", ago(s.Silent)))
		}
		j.silent(s, f)
	}
}

// silent tells a frozen agent from a killed one and from a host that is away, by what
// the other end sees of the host.
func (j *judge) silent(s side, f api.Fault) {
	f.Cause, f.Summary = "agent-silent", "node "+s.node()+" went silent: its host or its network is down, or the agent hangs"
	f.Mend = "on " + s.node() + ": systemctl status causeway-agent; journalctl -u causeway-agent"
	o := s.other.Evidence
	if o != nil && !j.local() {
		switch u := o.Underlay; {
		case alive(o):
			f.Cause, f.Summary = "control-lost", "the agent of "+s.node()+" lives, but its control session does not pass the tunnel"
			f.Evidence = append(f.Evidence, s.other.Node.Name+" gets answers from it")
			f.Mend = "on " + s.node() + ": ip link show cw0; causeway-agent health"
			if slices.ContainsFunc(o.Ways, func(w protocol.Way) bool { return w.NoInterface && w.Fresh() }) {
				f.Hop, f.Cause, f.Summary = HopHost, "tun-deleted", fmt.Sprintf("the tunnel's interface of %s is gone or down", s.node())
				f.Evidence = append(f.Evidence, "its agent says so in answers to probes")
				f.Mend = "on " + s.node() + ": causeway-agent repair; causeway-agent incidents"
			}
		case u.PeerPort == "closed":
			f.Cause, f.Summary = "agent-killed", "the agent of "+s.node()+" does not run; it did not end in order"
			f.Evidence = append(f.Evidence, "its host says that nothing listens at the agent's port")
			f.Mend = "on " + s.node() + ": systemctl restart causeway-agent; journalctl -u causeway-agent"
		case u.PeerHost != nil && u.PeerHost.Received > 0:
			f.Cause, f.Summary = "agent-frozen", "the agent of "+s.node()+" is frozen: its host answers and its port is open, but it does nothing"
			f.Evidence = append(f.Evidence, fmt.Sprintf("its host answered %d of %d pings from %s", u.PeerHost.Received, u.PeerHost.Sent, s.other.Node.Name))
			f.Mend = "on " + s.node() + ": systemctl restart causeway-agent"
		case u.PeerHost != nil:
			f.Evidence = append(f.Evidence, fmt.Sprintf("its host answered none of %d pings from %s", u.PeerHost.Sent, s.other.Node.Name))
		}
	}
	j.add(f)
}

func ago(d time.Duration) string { return d.Round(time.Second).String() }

func (j *judge) routes() {
	for _, s := range j.sides() {
		if slices.Contains(s.Node.Overlay, s.Addr) || len(s.Routes) == 0 {
			continue
		}
		if slices.ContainsFunc(s.Routes, func(r api.Route) bool { return r.State == protocol.RouteApproved && (r.Owner || r.Why == "") }) {
			continue
		}
		r := s.Routes[0]
		f := api.Fault{Hop: HopApproval, Node: r.Node, Blocks: true, Evidence: []string{fmt.Sprintf("route %s of %s is %s", r.Prefix, r.Node, r.State)}}
		switch {
		case r.State == protocol.RoutePending && s.Conflict != "":
			f.Cause, f.Summary = "route-overlaps", fmt.Sprintf("route %s of %s cannot be approved: %s", r.Prefix, r.Node, s.Conflict)
			f.Mend = fmt.Sprintf("give one of the two sites another range, then: causeway route approve %s %s", r.Node, r.Prefix)
		case r.State == protocol.RoutePending:
			f.Cause, f.Summary = "route-not-approved", fmt.Sprintf("route %s of %s waits for an admin's approval", r.Prefix, r.Node)
			if r.Why != "" {
				f.Evidence = append(f.Evidence, r.Why)
			}
			f.Mend = fmt.Sprintf("causeway route approve %s %s", r.Node, r.Prefix)
		case r.State == protocol.RouteRejected && r.By == "rule":
			f.Cause, f.Summary = "route-forbidden", fmt.Sprintf("route %s of %s can never be approved: %s", r.Prefix, r.Node, r.Why)
			f.Mend = "announce another range in routes: of the node's config"
		case r.State == protocol.RouteRejected:
			f.Cause, f.Summary = "route-rejected", fmt.Sprintf("route %s of %s was rejected by %s", r.Prefix, r.Node, r.By)
			f.Mend = fmt.Sprintf("ask %s why; if it shall be carried after all: causeway route approve %s %s", r.By, r.Node, r.Prefix)
		case strings.Contains(r.Why, "carries it"):
			continue // another node of the group does
		default:
			f.Hop, f.Cause, f.Summary = HopRoute, "route-not-carried", fmt.Sprintf("route %s of %s is approved and not carried: %s", r.Prefix, r.Node, r.Why)
			f.Mend = "add it to routes: in the config of " + r.Node
		}
		j.add(f)
	}
}

// allowed judges what a node took of the netmap about the other.
func (j *judge) allowed(s side) {
	e, o := s.e, s.other
	if o.Node == nil || j.local() {
		return
	}
	f := api.Fault{Hop: HopAllowed, Node: s.node(), Blocks: true}
	var about *protocol.RefusedPart
	for i, r := range e.Refused {
		p, err := netip.ParsePrefix(r.Prefix)
		if r.Peer == o.Node.Number && (r.Prefix == "" || err == nil && p.Contains(o.Addr)) || r.Peer == 0 && r.Prefix == "" {
			about = &e.Refused[i]
		}
	}
	switch {
	case e.Expired:
		f.Cause, f.Summary = "netmap-expired", s.node()+" was out of touch with every hub for longer than its site's max age, and talks to nobody"
		f.Mend = "let it reach a hub: causeway-agent doctor, on " + s.node() + ", says what is in the way"
	case !e.Peer && about != nil && about.Peer == 0:
		f.Cause, f.Summary = "netmap-refused", fmt.Sprintf("%s refuses the hub's netmap: %s", s.node(), about.Reason)
	case !e.Peer && about != nil:
		f.Cause, f.Summary = "key-refused", fmt.Sprintf("%s refuses %s: %s", s.node(), o.Node.Name, about.Reason)
		f.Mend = fmt.Sprintf("find out who changed the key of %s; if it was you, join it again under a new number: causeway token create --replace %s", o.Node.Name, o.Node.Name)
	case !e.Peer && e.Netmap.Version == 0:
		f.Cause, f.Summary = "netmap-missing", s.node()+" has no netmap yet"
	case !e.Peer && o.Node.Netmap.Version == 0:
		return // the other one is the reason
	case !e.Peer:
		f.Cause, f.Summary = "peer-missing", fmt.Sprintf("%s does not know %s: its netmap %s is older", s.node(), o.Node.Name, e.Netmap)
		f.Mend = "causeway node show " + s.node()
	case e.Allowed.IsValid():
		return
	case about != nil && strings.Contains(about.Reason, "overlaps"):
		f.Cause, f.Summary = "route-overlaps", fmt.Sprintf("%s refuses route %s of %s: %s", s.node(), about.Prefix, o.Node.Name, about.Reason)
		f.Mend = acceptMend(s)
	case about != nil:
		f.Cause, f.Summary = "route-refused", fmt.Sprintf("%s refuses route %s of %s: %s", s.node(), about.Prefix, o.Node.Name, about.Reason)
		f.Mend = acceptMend(s)
		if !e.Name.IsValid() {
			f.Mend = fmt.Sprintf("name %s in accept: of %s, if its host has nothing of its own there ('ip route')", about.Prefix, s.node())
		}
	default:
		f.Cause, f.Summary = "allowed-ips", fmt.Sprintf("the netmap of %s gives no route of %s that holds %s", s.node(), o.Node.Name, o.Addr)
		f.Mend = "causeway node show " + s.node()
	}
	if about != nil {
		f.Evidence = append(f.Evidence, strings.TrimSpace(fmt.Sprintf("refused of netmap %s: %s %s", e.Netmap, about.Prefix, about.Reason)))
	}
	j.add(f)
}

// host judges what the kernel of a node does with the flow's packets.
func (j *judge) host(s side) {
	w := s.e.Flow
	o := s.other
	if w.Interface == "" || o.Node == nil || j.local() || j.failedAt(s.node(), HopAllowed) {
		return
	}
	on := on(s.node(), "")
	f := api.Fault{Hop: HopHost, Node: s.node(), Blocks: true}
	if s.e.Stays != nil {
		if s.Node.Site != o.Node.Site {
			j.add(staysFault(s))
		}
		return
	}
	missing := func(start string, holds ...string) []string {
		var out []string
		for _, l := range w.Missing {
			if strings.HasPrefix(l, start) && !slices.ContainsFunc(holds, func(h string) bool { return !strings.Contains(l, h) }) {
				out = append(out, l)
			}
		}
		return out
	}
	switch {
	case !w.There:
		f.Cause, f.Summary, f.Mend = "tun-deleted", fmt.Sprintf("interface %s of %s is gone", w.Interface, s.node()), on+"systemctl restart causeway-agent"
		j.add(f)
		return
	case !w.Up:
		f.Cause, f.Summary, f.Mend = "tun-down", fmt.Sprintf("interface %s of %s is down", w.Interface, s.node()), on+"ip link set "+w.Interface+" up"
		j.add(f)
		return
	}
	strict := func(d protocol.RouteDecision) bool {
		return d.Error == "EXDEV" || d.Error == "EINVAL" && d.RPFilter > 0
	} // the latter since Linux 6.14
	rpFilter := func(d protocol.RouteDecision, src, dst netip.Addr) {
		f := f
		f.Cause, f.Summary = "rp-filter", fmt.Sprintf("rp_filter of %s drops packets from %s: the way back leaves by another interface", s.node(), src)
		f.Evidence = []string{fmt.Sprintf("ip route get %s from %s iif %s: %s", dst, src, d.From, d.Error), fmt.Sprintf("net.ipv4.conf.%s.rp_filter=%d (with that of all)", d.From, d.RPFilter)}
		f.Mend = on + fmt.Sprintf("sysctl -w net.ipv4.conf.%s.rp_filter=2", d.From) // the larger one of this and that of all counts
		j.add(f)
	}
	if strict(w.In) && w.In.Forwarding { // it drops what comes, before the way back counts
		rpFilter(w.In, s.other.Addr, s.Addr)
	}
	for _, d := range []struct {
		protocol.RouteDecision
		way      string
		src, dst netip.Addr
		want     string
	}{
		{w.Out, "out", s.Addr, s.other.Addr, w.Interface},
		{w.In, "in", s.other.Addr, s.Addr, w.Out.From},
	} {
		f := f
		if d.want == "" {
			d.want = "lo"
		}
		asked := fmt.Sprintf("ip route get %s from %s", d.dst, d.src)
		if d.From != "" {
			asked += " iif " + d.From
		}
		answer := "dev " + d.To
		if d.Error != "" {
			answer = d.Error
		}
		f.Evidence = []string{fmt.Sprintf("%s: %s", asked, answer)}
		forwards := d.From != "" && d.To != "lo" && d.want != "lo"
		switch {
		case forwards && !d.Forwarding:
			key := "net.ipv4.conf." + d.From + ".forwarding"
			if d.dst.Is6() { // no interface's own counts there
				key = "net.ipv6.conf.all.forwarding"
			}
			family := strings.Split(key, ".")[1]
			f.Mend = on + first(missing("sysctl", "net."+family+".", "forward"), "sysctl -w "+key+"=1")
			f.Cause, f.Summary = "forwarding-off", s.node()+" does not forward packets that come in by "+d.From
			f.Evidence = append(f.Evidence, key+"=0")
		case strict(d.RouteDecision):
			rpFilter(d.RouteDecision, d.src, d.dst)
			return
		case d.Error == "" && d.To == d.want:
			continue
		case d.way == "out" && !w.HasRule:
			lost := missing("ip" + v4or6(d.dst) + " rule")
			f.Cause, f.Summary, f.Mend = "rule-missing", s.node()+" lacks the routing rule that leads into the tunnel", on+first(lost, "systemctl restart causeway-agent")
			f.Evidence = append(f.Evidence, lost...)
		case len(d.Stolen) > 0:
			to, iif := rangeOf(s.other), ""
			if d.way == "in" {
				to, iif = s.own(), w.Interface
			}
			f.Cause, f.Summary = "rule-steals", fmt.Sprintf("a routing rule of %s takes packets for %s before the tunnel's", s.node(), d.dst)
			for _, r := range d.Stolen[:min(len(d.Stolen), 3)] {
				f.Evidence = append(f.Evidence, "ip rule "+r.Text)
			}
			f.Mend = ruleMend(s, iif, to, d.Stolen)
		case d.way == "out" && len(lostRoutes(w.Missing, d.dst)) > 0:
			lost := lostRoutes(w.Missing, d.dst)
			f.Cause, f.Summary = "route-missing", fmt.Sprintf("%s lacks the kernel route for %s", s.node(), d.dst)
			f.Evidence, f.Mend = append(f.Evidence, lost[0]), on+lost[0]
		case d.way == "out" && len(w.Rules) > 0: // an older agent does not say which
			f.Cause, f.Summary = "rule-steals", fmt.Sprintf("a routing rule of %s takes packets for %s before the tunnel's", s.node(), d.dst)
			for _, r := range w.Rules[:min(len(w.Rules), 3)] {
				f.Evidence = append(f.Evidence, "one of: ip rule "+r)
			}
			var before protocol.PolicyRule
			fmt.Sscanf(w.Rules[0], "pref %d ", &before.Pref)
			f.Mend = ruleMend(s, "", rangeOf(s.other), []protocol.PolicyRule{before})
		case d.way == "out":
			f.Cause, f.Summary = "route-elsewhere", fmt.Sprintf("%s sends packets for %s not into the tunnel", s.node(), d.dst)
			f.Mend = on + "ip route show table all"
		default:
			f.Cause, f.Summary = "no-local-route", fmt.Sprintf("%s has no way to %s", s.node(), d.dst)
			f.Mend = on + "ip route get " + d.dst.String()
		}
		j.add(f)
		return
	}
	if lost := missing("nft"); len(lost) > 0 {
		j.add(api.Fault{Cause: "nft-flushed", Hop: HopFirewall, Node: s.node(), Summary: fmt.Sprintf("the nftables rules of the agent of %s are gone: another program flushed them", s.node()),
			Evidence: []string{fmt.Sprintf("%d lines planned and not found, the first: %s", len(lost), lost[0])}, Mend: "find who runs 'nft flush ruleset' on " + s.node() + "; its agent puts them back each time"})
	}
	if off := missing("sysctl"); len(off) > 0 && !j.has("forwarding-off") {
		cause := "sysctl-changed"
		if strings.Contains(off[0], ".rp_filter=") {
			cause = "rp-filter"
		}
		j.add(api.Fault{Cause: cause, Hop: HopHost, Node: s.node(), Summary: "a kernel setting of " + s.node() + " is not as the tunnel needs it",
			Evidence: off[:1], Mend: on + off[0]})
	}
}

// v4or6 is the family of an address as the plan's lines have it.
func v4or6(a netip.Addr) string {
	if a.Is6() {
		return " -6"
	}
	return " -4"
}

// lostRoutes are the planned routes that hold an address and are not there, the longest first.
func lostRoutes(lines []string, a netip.Addr) (out []string) {
	bits := map[string]int{}
	for _, l := range lines {
		f := strings.Fields(l)
		if len(f) < 5 || f[2] != "route" || f[3] != "add" {
			continue
		}
		if p, err := netip.ParsePrefix(f[4]); err == nil && p.Contains(a) {
			bits[l] = p.Bits()
			out = append(out, l)
		}
	}
	slices.SortStableFunc(out, func(a, b string) int { return bits[b] - bits[a] })
	return out
}

func first(l []string, otherwise string) string {
	if len(l) > 0 {
		return l[0]
	}
	return otherwise
}

// firewall judges rules that drop the flow itself.
func (j *judge) firewall(s side) {
	j.forged(s)
	var certain []protocol.Drop
	for _, d := range s.e.Flow.Drops {
		if d.Certain && !strings.HasPrefix(d.Way, "underlay") {
			certain = append(certain, d)
		}
	}
	if len(certain) > 0 {
		j.add(j.dropFault(s, HopFirewall, certain...))
	}
}

// dropFault is what the first of some drops means; where other tools' rules make it, each of
// them has to let the flow pass.
func (j *judge) dropFault(s side, hop string, drops ...protocol.Drop) api.Fault {
	d := drops[0]
	if f, ok := j.accessFault(s, d, hop); ok {
		return f
	}
	f := api.Fault{Cause: "host-firewall", Hop: hop, Node: s.node(), Blocks: true, Summary: fmt.Sprintf("a firewall of %s drops the flow's packets at %s", s.node(), d.Hook)}
	drops = slices.DeleteFunc(slices.Clone(drops), func(d protocol.Drop) bool { return strings.HasPrefix(d.Chain, protocol.AccessTable) })
	for _, d := range drops {
		if text := fmt.Sprintf("nftables chain %s: %s", d.Chain, d.Rule); !slices.Contains(f.Evidence, text) {
			f.Evidence = append(f.Evidence, text)
		}
	}
	f.Mend = j.dropMend(s, drops)
	if strings.HasPrefix(d.Chain, protocol.FirewalldTable+" ") && d.Hook == "forward" { // its rules are written anew at each reload
		f.Mend = on(s.node(), protocol.FirewalldMend(s.e.Flow.Interface, s.e.Flow.Out.From))
	}
	if d.Owner == protocol.OwnerUfw && d.Hook == "forward" {
		f.Summary = fmt.Sprintf("ufw on %s drops the flow's packets at %s", s.node(), d.Hook)
		f.Mend = on(s.node(), protocol.UfwMend(s.e.Flow.Interface, s.e.Flow.Out.From))
	}
	switch docker := protocol.DockerTable + " "; {
	case strings.HasPrefix(d.Chain, "ip "+docker), strings.HasPrefix(d.Chain, "ip6 "+docker): // written anew with each container
		f.Summary = fmt.Sprintf("Docker on %s drops the flow's packets at %s", s.node(), d.Hook)
		f.Mend = fmt.Sprintf("on %s: %s", s.node(), protocol.DockerMend())
	case d.Chain == "ip raw PREROUTING" && d.Way == "in":
		f.Mend = fmt.Sprintf("on %s: iptables -t raw -I PREROUTING -i %s -d %s -j ACCEPT", s.node(), s.e.Flow.Interface, s.Addr)
	}
	return f
}

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

// alive reports whether some way to the other end is proven.
func alive(e *protocol.Evidence) bool {
	return slices.ContainsFunc(e.Ways, protocol.Way.Fresh)
}

// path judges the ways between the nodes.
func (j *judge) path() {
	if j.failed(HopAgent, HopAllowed) {
		return
	}
	for _, s := range j.sides() {
		e := s.e
		if e.Underlay.UDPBlocked {
			f := api.Fault{Cause: "udp-blocked", Hop: HopPath, Node: s.node(), Summary: "UDP does not pass between " + s.node() + " and the hub; everything goes over TCP, slower",
				Evidence: []string{"the hub answers over a stream (TCP) and not over UDP"}, Mend: "let UDP to the hub's port pass the firewall of site " + s.Node.Site}
			for _, d := range e.Flow.Drops {
				if d.Certain && strings.HasPrefix(d.Way, "underlay") {
					own := j.dropFault(s, HopPath, d)
					f.Evidence, f.Mend = append(f.Evidence, own.Evidence...), own.Mend
					break
				}
			}
			j.add(f)
		}
		j.noData(s, "the hub", e.Underlay.Hub, "let all of UDP to the hub's port pass the firewall of site "+s.Node.Site)
		j.noData(s, s.other.Node.Name, e.Ways, "let all of UDP pass between the two hosts, whatever its size and first bytes")
	}
	a, b := j.sides()[0], j.sides()[1]
	if !alive(a.e) && !alive(b.e) && !j.failed(HopHost) {
		j.add(api.Fault{Cause: "no-path", Hop: HopPath, Blocks: true, Summary: fmt.Sprintf("no path between %s and %s: nothing is answered, directly or through the hub", a.node(), b.node()),
			Evidence: slices.Concat([]string{ways(a), ways(b)}, counted(a), counted(b)), Mend: "causeway diag path " + a.node() + " " + b.node()})
		return
	}
	j.oneWay(a, b)
	j.oneWay(b, a)
	for _, s := range []side{a, b} {
		gaps := 0
		for _, w := range s.e.Ways {
			if w.Chosen {
				gaps = w.Gaps
			}
		}
		if p := s.e.Path; p != nil && p.Loss >= lossyPath && gaps >= lossyGaps {
			j.add(api.Fault{Cause: "path-loss", Hop: HopPath, Node: s.node(), Summary: fmt.Sprintf("the %s path from %s loses %.0f %% of its probes", p.Path, s.node(), 100*p.Loss),
				Evidence: []string{fmt.Sprintf("%s path by %s", p.Path, p.Addr)}})
		}
		j.nat(s)
	}
}

// noData names ways of s that answer probes and do not carry what is sent.
func (j *judge) noData(s side, to string, ways []protocol.Way, mend string) {
	for _, w := range ways {
		if w.Suspect == "" {
			continue
		}
		at := ""
		if w.Addr.IsValid() {
			at = " by " + w.Addr.String()
		}
		j.add(api.Fault{Cause: "path-no-data", Hop: HopPath, Node: s.node(), Summary: fmt.Sprintf("the %s path from %s to %s%s carries no data, or little, so that another one is taken", w.Kind, s.node(), to, at),
			Evidence: []string{w.Suspect}, Mend: mend})
		return
	}
}

func ways(s side) string {
	var out []string
	for _, w := range s.e.Ways {
		text := string(w.Kind)
		if w.Addr.IsValid() {
			text += " " + w.Addr.String()
		}
		if w.Answered < 0 {
			text += " never answered"
		} else {
			text += " answered " + ago(w.Answered) + " ago"
		}
		out = append(out, text)
	}
	if out == nil {
		out = []string{"none is tried"}
	}
	return "ways from " + s.node() + ": " + strings.Join(out, ", ")
}

// oneWay finds a direct way on which questions of a reach b while b's datagrams do
// not reach a.
func (j *judge) oneWay(a, b side) {
	direct := func(w protocol.Way) bool { return w.Kind == protocol.PathDirect }
	last := func(s side, age func(protocol.Way) time.Duration) (at time.Time) { // by the hub's clock; zero: never
		for _, w := range s.e.Ways {
			if d := age(w); direct(w) && d >= 0 && d < oldWay && s.At.Add(-d).After(at) {
				at = s.At.Add(-d)
			}
		}
		return at
	}
	heard := func(w protocol.Way) time.Duration { return w.Heard }
	answered := func(w protocol.Way) time.Duration { return w.Answered }
	// The other directions were silent for a while when the last question came.
	since := last(b, heard).Add(-oneWaySilence)
	if last(b, heard).IsZero() || last(a, heard).After(since) || last(a, answered).After(since) || last(b, answered).After(since) {
		return
	}
	silent := func(w protocol.Way) bool { return direct(w) && w.Unanswered >= 3 }
	i := slices.IndexFunc(a.e.Ways, func(w protocol.Way) bool { return silent(w) && w.Answered >= 0 }) // the one that was used
	if i < 0 {
		i = slices.IndexFunc(a.e.Ways, silent)
	}
	if i < 0 {
		return
	}
	f := api.Fault{Cause: "one-way-drop", Hop: HopPath, Node: a.node(), Summary: fmt.Sprintf("datagrams from %s to %s are lost on the direct way, those the other way arrive; the relay carries the flow", b.node(), a.node()),
		Evidence: []string{fmt.Sprintf("%s hears questions of %s, whose own %d questions to %s were not answered", b.node(), a.node(), a.e.Ways[i].Unanswered, a.e.Ways[i].Addr)},
		Mend:     fmt.Sprintf("let UDP from %s to %s pass the firewall of site %s", b.node(), a.node(), a.Node.Site)}
	for _, s := range []side{a, b} {
		for _, d := range s.e.Flow.Drops {
			if d.Certain && strings.HasPrefix(d.Way, "underlay") {
				own := j.dropFault(s, HopPath, d)
				f.Evidence, f.Mend = append(f.Evidence, own.Evidence...), own.Mend
			}
		}
	}
	j.add(f)
}

// nat judges by the addresses that are bound at the hub: a mapping that was lost is
// still among them for a minute.
func (j *judge) nat(s side) {
	for i, x := range s.Bound {
		for _, y := range s.Bound[i+1:] {
			if x.Addr() == y.Addr() && x.Port() != y.Port() {
				j.add(api.Fault{Cause: "nat-mapping-lost", Hop: HopNAT, Node: s.node(), Summary: fmt.Sprintf("the NAT in front of %s gave it a new port within the last minute: it lost its mapping", s.node()),
					Evidence: []string{fmt.Sprintf("the hub saw it at %s, and now at %s", y, x)}, Mend: "nothing to do once; if it comes again: raise the UDP timeout of the NAT of site " + s.Node.Site + " above 30 s"})
				return
			}
		}
	}
}

// mtu judges what sizes pass.
func (j *judge) mtu() {
	if j.failed(HopAgent, HopAllowed, HopPath, HopHost) {
		return
	}
	for _, s := range j.sides() {
		e := s.e
		f := api.Fault{Hop: HopMTU, Node: s.node(), Mend: fmt.Sprintf("raise the MTU on the way between %s and %s to 1500, and let ICMP 'fragmentation needed' pass", s.node(), s.other.Node.Name)}
		lost := len(e.Probes) > 1 && e.Probes[0].Received >= sanePings && e.Probes[1].Sent > 0 && e.Probes[1].Received == 0 && e.Probes[1].Error == ""
		small := e.Path != nil && e.Path.Path != protocol.PathNone && e.Path.MTU > 0 && e.Path.MTU < fullMTU && (e.Underlay.LinkMTU == 0 || e.Path.MTU < e.Underlay.LinkMTU-tunnelBytes-16)
		switch {
		case !lost && !small:
			continue
		case lost:
			f.Blocks = true
			f.Evidence = append(f.Evidence, fmt.Sprintf("%d of %d small pings were answered, none of %d with %d bytes", e.Probes[0].Received, e.Probes[0].Sent, e.Probes[1].Sent, e.Probes[1].Size))
		}
		if small {
			f.Evidence = append(f.Evidence, fmt.Sprintf("the %s path carries %d bytes inside the tunnel, the interface has %d", e.Path.Path, e.Path.MTU, e.Underlay.LinkMTU))
		}
		if e.Underlay.PathMTU > 0 && e.Underlay.PathMTU < e.Underlay.LinkMTU {
			f.Cause, f.Summary = "mtu-small", fmt.Sprintf("the way from %s carries datagrams of %d bytes, as a router says by ICMP", s.node(), e.Underlay.PathMTU)
			f.Evidence = append(f.Evidence, fmt.Sprintf("the kernel learned an MTU of %d", e.Underlay.PathMTU))
			f.Mend = fmt.Sprintf("nothing has to be done: the tunnel uses less; for more speed raise the MTU between %s and %s", s.node(), s.other.Node.Name)
		} else {
			f.Cause, f.Summary = "mtu-hole", fmt.Sprintf("large datagrams from %s are lost on the way, and nobody says so: an MTU black hole", s.node())
		}
		if !f.Blocks {
			f.Summary += "; the tunnel sends smaller ones"
		}
		j.add(f)
		return
	}
}

// endToEnd judges a connection that fails though nothing was found.
func (j *judge) endToEnd() {
	a, b := j.sides()[0], j.sides()[1]
	if j.blocked() {
		return
	}
	c := a.e.Connect
	pinged := func(s side) bool { return len(s.e.Probes) > 0 && s.e.Probes[0].Received > 0 }
	near := b.e.Pod != nil && b.e.Pod.Near != nil && b.e.Pod.Near.Received > 0
	switch {
	case c != nil && c.Result != protocol.ConnectOK:
	case c == nil && j.Port == 0 && len(a.e.Probes) > 0 && len(b.e.Probes) > 0 && !pinged(a) && !pinged(b):
	case c == nil && j.Port == 0 && near && a.e.Reach != nil && a.e.Reach.Sent > 0 && a.e.Reach.Received == 0:
	default:
		return
	}
	f := api.Fault{Cause: "lost-on-the-way", Hop: HopFirewall, Blocks: true, Summary: fmt.Sprintf("packets get lost between %s and %s, and no rule that was understood drops them", a.node(), b.node()),
		Mend: fmt.Sprintf("causeway diag capture %s 'host %s'", b.node(), b.Addr)}
	switch {
	case c != nil && c.Result == protocol.ConnectTimeout:
		f.Evidence = append(f.Evidence, fmt.Sprintf("a connection from %s through the tunnel was not answered for %s", c.From, c.After.Round(time.Second)))
	case c != nil:
		f.Evidence = append(f.Evidence, fmt.Sprintf("a connection from %s through the tunnel: %s, and not by who serves it", c.From, c.Result))
	}
	for _, s := range []side{a, b} {
		for _, d := range s.e.Flow.Drops {
			if !strings.HasPrefix(d.Way, "underlay") {
				own := j.dropFault(s, HopFirewall, d)
				if own.Cause != "host-firewall" && (misledAt(a) || misledAt(b)) {
					continue // what an access list counted may be long ago
				}
				if own.Cause == "host-firewall" {
					own.Summary = fmt.Sprintf("a firewall of %s drops packets at %s, as it seems those of the flow", s.node(), d.Hook)
				}
				own.Evidence = slices.Concat(own.Evidence, f.Evidence, counted(a), counted(b))
				j.block(own)
				return
			}
		}
		for _, p := range s.e.Probes[:min(len(s.e.Probes), 1)] {
			f.Evidence = append(f.Evidence, fmt.Sprintf("%d of %d pings from %s through the tunnel were answered", p.Received, p.Sent, s.node()))
		}
		dropped(s, &f)
		for _, c := range s.e.Conditions {
			if c.Name == "firewall" && !c.OK {
				f.Cause, f.Node, f.Summary = "host-firewall", s.node(), c.Cause
			}
		}
	}
	j.add(f)
}

// incidents names what other programs changed at a node of late. Its agent put it back, or
// gave up; what still fails is named before, by its own evidence.
func (j *judge) incidents(s side) {
	for _, i := range s.Incidents {
		f := api.Fault{Node: s.node(), Hop: HopHost, Mend: "causeway incidents show " + i.ID}
		what := ""
		switch {
		case i.Subject == "link":
			f.Cause, what = "tun-deleted", "the tunnel's interface"
		case i.Subject == "addresses":
			f.Cause, what = "address-missing", "the overlay address"
		case i.Subject == "routes":
			f.Cause, what = "route-missing", "a route into the tunnel"
		case i.Subject == "rules":
			f.Cause, what = "rule-missing", "the routing rule that leads into the tunnel"
		case i.Subject == "nftables":
			f.Cause, f.Hop, what = "nft-flushed", HopFirewall, "the agent's nftables rules"
		case strings.HasSuffix(i.Subject, "forward"), strings.HasSuffix(i.Subject, "forwarding"):
			f.Cause, what = "forwarding-off", i.Subject
		case strings.HasSuffix(i.Subject, "rp_filter"):
			f.Cause, what = "rp-filter", i.Subject
		case strings.HasPrefix(i.Subject, "net."):
			f.Cause, what = "sysctl-changed", i.Subject
		default: // of the hub's session, which is judged by itself
			continue
		}
		f.Summary = fmt.Sprintf("another program changed or took away %s of %s", what, s.node())
		f.Evidence = append(f.Evidence, "incident "+i.ID+": "+i.Reason, i.Action)
		if i.Felt != "" {
			f.Evidence = append(f.Evidence, i.Felt)
		}
		j.add(f)
	}
}

// health judges what the flow will need though it passes now.
func (j *judge) health(s side) {
	e := s.e
	f := api.Fault{Hop: HopHealth, Node: s.node()}
	if d := e.Time.Sub(j.Now); d.Abs() > wrongClock {
		f := f
		f.Cause, f.Summary = "clock-wrong", fmt.Sprintf("the clock of %s differs from the hub's by %s", s.node(), d.Round(time.Second))
		f.Evidence, f.Mend = []string{"there it is " + e.Time.UTC().Format(time.RFC3339)}, "on "+s.node()+": timedatectl set-ntp true"
		j.add(f)
	}
	if d := e.Disk; d != nil && d.Free < littleRoom && d.Total > 0 {
		f := f
		f.Cause, f.Summary = "disk-full", fmt.Sprintf("the disk of %s is full: its agent can keep neither netmap nor keys", s.node())
		f.Evidence, f.Mend = []string{fmt.Sprintf("%d KiB of %d KiB are free at %s", d.Free>>10, d.Total>>10, d.Path)}, fmt.Sprintf("make room at %s of %s", d.Path, s.node())
		j.add(f)
	}
	for _, n := range e.Names {
		in := func(a netip.Addr) bool { return slices.Contains(n.Addrs, a) }
		if n.Error == "" && (len(n.Used) == 0 || slices.ContainsFunc(n.Used, in)) {
			continue
		}
		f := f
		f.Cause, f.Summary = "hub-dns", fmt.Sprintf("DNS at %s gives wrong addresses for the hub's name %s: after a restart its agent finds no hub", s.node(), n.Name)
		f.Evidence, f.Mend = []string{fmt.Sprintf("%s is %v, the hub answers at %v", n.Name, n.Addrs, n.Used)}, "correct the record of "+n.Name
		if n.Error != "" {
			f.Summary = fmt.Sprintf("DNS at %s does not know the hub's name %s: after a restart its agent finds no hub", s.node(), n.Name)
			f.Evidence = []string{n.Error}
		}
		j.add(f)
	}
	if slices.ContainsFunc(j.faults, func(o api.Fault) bool { return o.Node == s.node() }) {
		return // which explains conditions
	}
	failing := func(name string) bool {
		return slices.ContainsFunc(e.Conditions, func(c protocol.Condition) bool { return c.Name == name && !c.OK })
	}
	for _, c := range e.Conditions {
		// That of paths may be about another peer; the ways to this one were judged.
		if !c.OK && c.Name != protocol.ConditionPaths && (c.Name != "nats" || !j.hubNATS()) && !slices.ContainsFunc(c.DependsOn, failing) {
			f := f
			f.Cause, f.Summary = "condition-"+c.Name, fmt.Sprintf("%s of %s is not well: %s", c.Name, s.node(), c.Cause)
			f.Mend = "causeway node show " + s.node()
			j.add(f)
		}
	}
}

// hubNATS reports whether the hub's own NATS is away.
func (j *judge) hubNATS() bool {
	return slices.ContainsFunc(j.Conditions, func(c protocol.Condition) bool { return c.Name == "nats" && !c.OK })
}

// hub judges the hub's own conditions.
func (j *judge) hub() {
	for _, c := range j.Conditions {
		if c.OK {
			continue
		}
		f := api.Fault{Cause: "hub-" + c.Name, Hop: HopHealth, Summary: "the hub is not well: " + c.Name, Evidence: []string{c.Cause}, Mend: "causeway status"}
		if c.Name == "nats" {
			f.Cause, f.Summary = "nats-away", "the hub's NATS is away: what passes goes on, changes and inventory wait"
			f.Mend = "start the NATS servers of --nats-url"
		}
		j.add(f)
	}
}
