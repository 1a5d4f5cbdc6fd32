package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"causeway/hub/api"
	"causeway/protocol"
)

// host judges what the kernel of a node does with the flow's packets.
func (j *judge) host(s side) {
	w, o := s.e.Flow, s.other
	if w.Interface == "" || o.Node == nil || j.local() || j.failedAt(s.node(), HopAllowed) {
		return
	}
	if s.e.Stays != nil {
		if s.Node.Site != o.Node.Site {
			j.add(staysFault(s))
		}
		return
	}
	if f, ok := tunFault(s); ok {
		j.add(f)
		return
	}
	if strictly(w.In) && w.In.Forwarding { // it drops what comes, before the way back counts
		j.add(rpFilterFault(s, w.In, o.Addr, s.Addr))
	}
	for _, d := range []decision{
		{w.Out, "out", s.Addr, o.Addr, cmp.Or(w.Interface, "lo")},
		{w.In, "in", o.Addr, s.Addr, cmp.Or(w.Out.From, "lo")},
	} {
		if f, ok := d.fault(s); ok {
			j.add(f)
			return
		}
	}
	if lost := missing(s, "nft"); len(lost) > 0 {
		j.add(api.Fault{Cause: "nft-flushed", Hop: HopFirewall, Node: s.node(), Summary: fmt.Sprintf("the nftables rules of the agent of %s are gone: another program flushed them", s.node()),
			Evidence: []string{fmt.Sprintf("%d lines planned and not found, the first: %s", len(lost), lost[0])}, Mend: "find who runs 'nft flush ruleset' on " + s.node() + "; its agent puts them back each time"})
	}
	if off := missing(s, "sysctl"); len(off) > 0 && !j.has("forwarding-off") {
		cause := "sysctl-changed"
		if strings.Contains(off[0], ".rp_filter=") {
			cause = "rp-filter"
		}
		j.add(api.Fault{Cause: cause, Hop: HopHost, Node: s.node(), Summary: "a kernel setting of " + s.node() + " is not as the tunnel needs it",
			Evidence: off[:1], Mend: on(s.node(), off[0])})
	}
}

// missing are the planned lines that begin so, have all of holds in them, and are not there.
func missing(s side, start string, holds ...string) (out []string) {
	for _, l := range s.e.Flow.Missing {
		if strings.HasPrefix(l, start) && !slices.ContainsFunc(holds, func(h string) bool { return !strings.Contains(l, h) }) {
			out = append(out, l)
		}
	}
	return out
}

// tunFault says whether the tunnel's interface is there and up.
func tunFault(s side) (api.Fault, bool) {
	w := s.e.Flow
	f := api.Fault{Hop: HopHost, Node: s.node(), Blocks: true}
	switch {
	case !w.There:
		f.Cause, f.Summary, f.Mend = "tun-deleted", fmt.Sprintf("interface %s of %s is gone", w.Interface, s.node()), on(s.node(), "systemctl restart causeway-agent")
	case !w.Up:
		f.Cause, f.Summary, f.Mend = "tun-down", fmt.Sprintf("interface %s of %s is down", w.Interface, s.node()), on(s.node(), "ip link set "+w.Interface+" up")
	default:
		return f, false
	}
	return f, true
}

// strictly reports whether rp_filter refused a packet: EINVAL since Linux 6.14.
func strictly(d protocol.RouteDecision) bool {
	return d.Error == "EXDEV" || d.Error == "EINVAL" && d.RPFilter > 0
}

func rpFilterFault(s side, d protocol.RouteDecision, src, dst netip.Addr) api.Fault {
	return api.Fault{Cause: "rp-filter", Hop: HopHost, Node: s.node(), Blocks: true,
		Summary:  fmt.Sprintf("rp_filter of %s drops packets from %s: the way back leaves by another interface", s.node(), src),
		Evidence: []string{fmt.Sprintf("ip route get %s from %s iif %s: %s", dst, src, d.From, d.Error), fmt.Sprintf("net.ipv4.conf.%s.rp_filter=%d (with that of all)", d.From, d.RPFilter)},
		Mend:     on(s.node(), fmt.Sprintf("sysctl -w net.ipv4.conf.%s.rp_filter=2", d.From))} // the larger one of this and that of all counts
}

// decision is where a node's kernel sends packets of the flow, and where it should.
type decision struct {
	protocol.RouteDecision
	way      string // out or in
	src, dst netip.Addr
	want     string // interface
}

// fault says what is wrong with it, if something is.
func (d decision) fault(s side) (api.Fault, bool) {
	w, on := s.e.Flow, on(s.node(), "")
	f := api.Fault{Hop: HopHost, Node: s.node(), Blocks: true}
	asked := fmt.Sprintf("ip route get %s from %s", d.dst, d.src)
	if d.From != "" {
		asked += " iif " + d.From
	}
	f.Evidence = []string{asked + ": " + cmp.Or(d.Error, "dev "+d.To)}
	forwards := d.From != "" && d.To != "lo" && d.want != "lo"
	switch {
	case forwards && !d.Forwarding:
		key := "net.ipv4.conf." + d.From + ".forwarding"
		if d.dst.Is6() { // no interface's own counts there
			key = "net.ipv6.conf.all.forwarding"
		}
		family := strings.Split(key, ".")[1]
		f.Mend = on + first(missing(s, "sysctl", "net."+family+".", "forward"), "sysctl -w "+key+"=1")
		f.Cause, f.Summary = "forwarding-off", s.node()+" does not forward packets that come in by "+d.From
		f.Evidence = append(f.Evidence, key+"=0")
	case strictly(d.RouteDecision):
		return rpFilterFault(s, d.RouteDecision, d.src, d.dst), true
	case d.Error == "" && d.To == d.want:
		return f, false
	case d.way == "out" && !w.HasRule:
		lost := missing(s, "ip"+v4or6(d.dst)+" rule")
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
	return f, true
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
