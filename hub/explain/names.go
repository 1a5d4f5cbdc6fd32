package explain

import (
	"fmt"
	"slices"

	"causeway/hub/api"
	"causeway/protocol"
)

func (j *judge) names() {
	for _, e := range []End{j.From, j.To} {
		switch {
		case e.Kind == KindUnknown:
			j.add(api.Fault{Cause: "unknown-name", Hop: HopName, Blocks: true, Summary: fmt.Sprintf("nothing is called %s: no node, and no pod in the inventory", e.Asked),
				Mend: "causeway node list; causeway inventory list"})
		case e.Kind == KindService: // which service judges
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
	if v := j.Closed; v != nil && !j.local() {
		what := j.Proto
		if j.Port != 0 {
			what = fmt.Sprintf("%s/%d", j.Proto, j.Port)
		}
		j.add(api.Fault{Cause: "policy-closed", Hop: HopPolicy, Blocks: true, Summary: fmt.Sprintf("no rule of a policy opens %s from %s to %s", what, j.From.Asked, j.To.Asked),
			Evidence: []string{v.String()}, Mend: fmt.Sprintf("causeway policy test %s %s %s; if it shall be open, add a rule to a policy's document and apply that", written(j.From), written(j.To), what)})
	}
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
