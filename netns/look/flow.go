package look

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns"
	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// Flow is a flow whose one end is at this host.
type Flow struct {
	Local, Remote netip.Addr
	Proto         string // protocol.FlowTCP and so on
	Port          uint16 // of the end that serves; 0: any
	Serves        bool   // that is Local
	// Underlay are the datagrams that carry it: this host's port, and where they go.
	UnderlayPort uint16
	Underlay     []netip.AddrPort
}

// Flow tells what the kernel does with packets of f in the plan p: it asks and
// changes nothing. What could not be read is named in the answer.
func (h *Host) Flow(ctx context.Context, p netns.Plan, f Flow) protocol.FlowEvidence {
	e := protocol.FlowEvidence{Interface: p.Interface}
	var errs []error
	link, err := kernel.LinkByName(p.Interface)
	errs = append(errs, err)
	if link != nil {
		e.There, e.Up = true, link.Attrs().Flags&unix.IFF_UP != 0
	}
	pod := toward(f.Local)
	out, in := f.packets(p, pod)
	e.Out, e.In = decide(out), decide(in)
	e.Rules, e.HasRule, err = earlierRules(f.Local.Is6(), p)
	errs = append(errs, err)
	e.Out.Stolen, err = thieves(p, out, p.Interface)
	errs = append(errs, err)
	if pod != "" {
		e.In.Stolen, err = thieves(p, in, pod)
		errs = append(errs, err)
	}
	found, err := h.host.Found(ctx, p.Config)
	errs = append(errs, err)
	now, standErr := h.host.Standing(ctx, p)
	errs = append(errs, standErr)
	there := make(map[string]bool, len(found))
	for _, l := range found {
		there[l] = true
	}
	for _, l := range now.Lines() {
		if err == nil && !there[l] {
			e.Missing = append(e.Missing, l)
		}
	}
	e.Missing = e.Missing[:min(len(e.Missing), protocol.MaxEvidenceLines)]
	for _, dev := range []string{p.Interface, pod} {
		if dev == "" || f.Local.Is6() {
			continue
		}
		for _, k := range []string{"forwarding", "rp_filter"} {
			key := kernel.ConfKey("ipv4", dev, k)
			if v, err := kernel.ReadSysctl(key); err == nil {
				e.Settings = append(e.Settings, key+"="+v)
			}
		}
	}
	e.Drops, err = drops(ctx, p, f, pod)
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		e.Error = protocol.OneLine(err.Error(), 300)
	}
	return e
}

// toward is the interface that leads to an address behind this host; empty for
// the host's own.
func toward(a netip.Addr) string {
	rs, err := netlink.RouteGetWithOptions(net.IP(a.AsSlice()), nil)
	if err != nil || len(rs) == 0 || rs[0].Type == unix.RTN_LOCAL {
		return ""
	}
	l, err := netlink.LinkByIndex(rs[0].LinkIndex)
	if err != nil {
		return ""
	}
	return l.Attrs().Name
}

// decide asks the kernel for the way of a packet.
func decide(k routed) protocol.RouteDecision {
	from, dst := k.iif, k.dst
	d := protocol.RouteDecision{From: from}
	if from != "" {
		key := kernel.ConfKey("ipv4", from, "forwarding")
		if dst.Is6() { // no interface's own counts there
			key = kernel.ConfKey("ipv6", "all", "forwarding")
		}
		v, _ := kernel.ReadSysctl(key)
		d.Forwarding = v != "" && v != "0"
		if dst.Is4() {
			for _, dev := range []string{"all", from} { // the kernel takes the larger one
				if v, err := kernel.ReadSysctl(kernel.ConfKey("ipv4", dev, "rp_filter")); err == nil && len(v) == 1 {
					d.RPFilter = max(d.RPFilter, int(v[0]-'0'))
				}
			}
		}
	}
	r, err := routeGet(k)
	var no unix.Errno
	switch {
	case errors.As(err, &no):
		d.Error = unix.ErrnoName(no)
		return d
	case err != nil:
		d.Error = protocol.OneLine(err.Error(), 100)
		return d
	}
	d.Table, d.MTU = r.table, r.mtu
	switch r.kind {
	case unix.RTN_LOCAL:
		d.To = "lo"
		return d
	case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT:
		d.Error = fmt.Sprintf("route of type %d", r.kind)
		return d
	}
	if l, err := netlink.LinkByIndex(r.link); err == nil {
		d.To = l.Attrs().Name
	}
	return d
}

// earlierRules are the rules of routing policy that come before the tunnel's own,
// but the kernel's for local addresses, and whether the tunnel's is there.
func earlierRules(v6 bool, p netns.Plan) (out []string, own bool, err error) {
	if own, err = p.HasRule(v6); err != nil {
		return nil, false, err
	}
	rules, err := policyRules(v6)
	if err != nil {
		return nil, false, err
	}
	for _, r := range rules {
		if r.pref < netns.RulePreference && r.table != unix.RT_TABLE_LOCAL && len(out) < protocol.MaxEvidenceLines {
			out = append(out, r.text())
		}
	}
	return out, own, nil
}

// Way tells of the underlay's way to an address: the MTU of the interface, and
// what the kernel has learned of the way by ICMP, 0 for nothing.
func (h *Host) Way(to netip.Addr, mark uint32) (link, learned int) {
	rs, err := netlink.RouteGetWithOptions(net.IP(to.AsSlice()), &netlink.RouteGetOptions{Mark: mark})
	if err != nil || len(rs) == 0 {
		return 0, 0
	}
	l, err := netlink.LinkByIndex(rs[0].LinkIndex)
	if err != nil {
		return 0, 0
	}
	return l.Attrs().MTU, rs[0].MTU
}
