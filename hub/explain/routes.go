package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"causeway/hub/api"
	"causeway/protocol"
)

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
		if r.Kind != "" {
			continue // no peer's
		}
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
		f.Mend = fmt.Sprintf("find out who changed the key of %s; if it was you, join it again under a new number: %s", o.Node.Name, api.TokenAnew(*o.Node))
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
