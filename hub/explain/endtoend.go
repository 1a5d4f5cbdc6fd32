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
		case strings.HasPrefix(i.Subject, "causeway-"):
			f.Cause, f.Hop, what = "nft-flushed", HopFirewall, "the nftables table "+i.Subject
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

func ago(d time.Duration) string { return d.Round(time.Second).String() }
