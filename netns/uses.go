package netns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// Uses are the settings of the host that a plan needs beside those of its own interface,
// and where. Host.Uses finds them; the zero value needs none.
type Uses struct {
	// Forward4 are the interfaces toward Local that forward IPv4 for the tunnel alone.
	// What they would forward to or from anything else is dropped. An interface that
	// somebody else has forward is not among them.
	Forward4 []string
	// Forward6 says that this host forwards IPv6 for the tunnel alone: the kernel knows
	// that for the host as a whole. What is neither to nor from the tunnel is dropped.
	Forward6 bool
	// Bridges pass frames on; with br_netfilter these look like forwarded packets.
	Bridges []string
	// Bridged are all bridges: what they pass on is not held to the wall of closed ranges.
	Bridged []Bridge
	// Strict are the interfaces that check sources strictly: they are told to look the way
	// back of the underlay's packets up by their mark.
	Strict []string
	// Inside are interfaces behind which there is nobody but this host's own containers, from where its names may be asked
	// for; none where there is no address for that.
	Inside []string
	// Hairpin are ports of bridges that have to send back to who sent: see Reflector.
	Hairpin []string
}

// Equal reports whether two need the same.
func (u Uses) Equal(v Uses) bool {
	return u.Forward6 == v.Forward6 && slices.Equal(u.Forward4, v.Forward4) && slices.Equal(u.Bridges, v.Bridges) && slices.Equal(u.Bridged, v.Bridged) && slices.Equal(u.Strict, v.Strict) && slices.Equal(u.Inside, v.Inside) && slices.Equal(u.Hairpin, v.Hairpin)
}

// forwardMark is what we set forwarding to. For the kernel it is as good as 1; whoever else
// wants forwarding writes 1, and so is known to, before or after us. Settings of
// this value are ours to take back, record or not.
var forwardMark = strconv.Itoa(DefaultTable)

const (
	forward4 = "net.ipv4.ip_forward" // writing it sets all interfaces'
	forward6 = "net.ipv6.conf.all.forwarding"
)

// Uses finds what a plan for c needs. Nothing is changed.
func (h *Host) Uses(ctx context.Context, c Config) (Uses, error) {
	links, err := kernel.Retry(netlink.LinkList)
	if err != nil {
		return Uses{}, fmt.Errorf("list links: %w", err)
	}
	own := -1
	if l, err := c.Device(); err != nil {
		return Uses{}, err
	} else if l != nil {
		own = l.Attrs().Index
	}
	toward, err := towardLocal(c, own)
	if err != nil {
		return Uses{}, err
	}
	var old record // of an agent that had the whole host forward
	_ = h.file().Load(&old, func() error { return old.check() })
	ours := func(v, was string) bool {
		return v == "0" || v == forwardMark || v == "1" && old.hasSysctl(was) && (was != forward4 || !containersForward(ctx))
	}
	var u Uses
	for _, l := range links {
		a := l.Attrs()
		if a.Index == own || !plainName(a.Name) || a.Flags&unix.IFF_LOOPBACK != 0 {
			continue
		}
		if l.Type() == "bridge" {
			u.Bridges = append(u.Bridges, a.Name)
			u.Bridged = append(u.Bridged, Bridge{a.Name, a.HardwareAddr.String()})
		}
		if v, err := kernel.ReadSysctl(kernel.ConfKey("ipv4", a.Name, "forwarding")); err == nil && toward[a.Index] && ours(v, forward4) {
			u.Forward4 = append(u.Forward4, a.Name)
		}
		if a.MasterIndex == 0 && strictOn(a.Name) {
			u.Strict = append(u.Strict, a.Name)
		}
	}
	if v, err := kernel.ReadSysctl(forward6); err == nil && c.local(true) {
		u.Forward6 = ours(v, forward6)
	}
	if c.Names.IsValid() {
		if u.Inside, err = inside(links, own); err != nil {
			return Uses{}, err
		}
	}
	if u.Hairpin, err = hairpins(c, links, old.sinceBoot().Hairpin); err != nil {
		return Uses{}, err
	}
	slices.Sort(u.Bridges)
	slices.SortFunc(u.Bridged, func(a, b Bridge) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(u.Forward4)
	slices.Sort(u.Strict)
	if !u.bounds() {
		u.Bridges = nil
	}
	return u, nil
}

// bounds reports whether something is dropped.
func (u Uses) bounds() bool { return len(u.Forward4) > 0 || u.Forward6 }

// local reports whether something of a family is behind this host.
func (c Config) local(v6 bool) bool {
	return slices.ContainsFunc(c.Local, func(x netip.Prefix) bool { return x.Addr().Is6() == v6 })
}

// towardLocal are the indexes of the links that lead to IPv4 prefixes of c.Local: by routes
// inside of one, and by the narrowest that has it whole. Default routes lead to none.
func towardLocal(c Config, own int) (map[int]bool, error) {
	out := map[int]bool{}
	if !c.local(false) {
		return out, nil
	}
	rs, err := kernel.Retry(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, x := range c.Local {
		around := 0
		var wide []netlink.Route
		for _, r := range rs {
			p, ok := kernel.PrefixOf(r.Dst)
			switch {
			case !ok || p.Bits() < protocol.LeastPrefixBits || r.Table == c.Table || r.Table == unix.RT_TABLE_LOCAL || !p.Overlaps(x):
			case p.Bits() >= x.Bits():
				addLinks(out, r, own)
			case p.Bits() > around:
				around, wide = p.Bits(), []netlink.Route{r}
			case p.Bits() == around:
				wide = append(wide, r)
			}
		}
		for _, r := range wide {
			addLinks(out, r, own)
		}
	}
	return out, nil
}

func addLinks(out map[int]bool, r netlink.Route, own int) {
	index := []int{r.LinkIndex}
	for _, n := range r.MultiPath {
		index = append(index, n.LinkIndex)
	}
	for _, i := range index {
		if i > 0 && i != own {
			out[i] = true
		}
	}
}

// plainName reports whether nft takes a name of an interface as it stands.
func plainName(name string) bool { return !strings.ContainsAny(name, "\"\\*") }

// strictOn reports whether an interface checks the source of what comes by it strictly: the
// larger one of its own setting and that of all counts.
func strictOn(dev string) bool {
	most := "0"
	for _, d := range []string{"all", dev} {
		if v, err := kernel.ReadSysctl(kernel.ConfKey("ipv4", d, "rp_filter")); err == nil {
			most = max(most, v)
		}
	}
	return most == "1"
}

// nftBounds keep this host from forwarding for anybody but the tunnel, where nobody but us
// has it forward.
func (p Plan) nftBounds() []string {
	if !p.bounds() {
		return nil
	}
	t := " inet " + NftTable + " bound "
	out := []string{
		"chain" + t + "{ type filter hook forward priority -150; policy accept; }",
		fmt.Sprintf("rule%siifname %q accept", t, p.Interface),
		fmt.Sprintf("rule%soifname %q accept", t, p.Interface),
	}
	for _, b := range p.Bridges {
		out = append(out, fmt.Sprintf("rule%siifname %q oifname %q accept", t, b, b))
	}
	for _, dev := range p.Forward4 {
		out = append(out, fmt.Sprintf("rule%smeta nfproto ipv4 iifname %q counter drop", t, dev))
	}
	if p.Forward6 {
		out = append(out, "rule"+t+"meta nfproto ipv6 counter drop")
	}
	return out
}

// takeBack puts settings back as they were that p does not need, and forgets them. It
// comes before walls are taken away.
func (h *Host) takeBack(ctx context.Context, rec *record, p Plan) error {
	needs := map[string]bool{}
	for _, s := range p.sysctls() {
		needs[s.key] = true
	}
	for _, k := range kernel.PerInterface("ipv4", "forwarding") {
		if v, err := kernel.ReadSysctl(k); err == nil && v == forwardMark && !needs[k] {
			if err := kernel.WriteSysctl(k, "0"); err != nil {
				return err
			}
		}
	}
	if v, err := kernel.ReadSysctl(forward6); err == nil && v == forwardMark && !needs[forward6] {
		if err := h.setForward6(rec, "0"); err != nil {
			return err
		}
	}
	keep := func(key string) bool { return key == forward4 && containersForward(ctx) }
	known := len(rec.Sysctls)
	err := h.restoreSysctls(rec, func(key string) bool { return needs[key] }, keep)
	if len(rec.Sysctls) == known {
		return err
	}
	if err := h.writeRecord(rec); err != nil {
		return err
	}
	return err
}

// setForward6 has the host forward IPv6, or not, and leaves all that the kernel changes
// with it as it is: what each interface does as a host or router, and default routes by
// router advertisements, which only interfaces with accept_ra 2 keep.
func (h *Host) setForward6(rec *record, value string) error {
	was := map[string]string{}
	for _, k := range kernel.PerInterface("ipv6", "forwarding") {
		if v, err := kernel.ReadSysctl(k); err == nil && k != forward6 {
			was[k] = strings.Replace(v, forwardMark, "0", 1) // that of a call which did not end
		}
	}
	for _, s := range rec.Sysctls { // of an agent that left them changed
		if s.Beside == forward6 {
			was[s.Key] = s.Was
		}
	}
	rec.Sysctls = slices.DeleteFunc(rec.Sysctls, func(s savedSysctl) bool { return s.Beside == forward6 || s.Key == forward6 })
	for _, s := range routerAdvertisements() {
		if !rec.hasSysctl(s.Key) {
			rec.Sysctls = append(rec.Sysctls, s)
		}
	}
	if err := h.writeRecord(rec); err != nil {
		return err
	}
	isRA := func(key string) bool { return strings.HasSuffix(key, "accept_ra") }
	for _, s := range rec.Sysctls {
		if v, err := kernel.ReadSysctl(s.Key); isRA(s.Key) && err == nil && v == s.Was {
			if err := kernel.WriteSysctl(s.Key, s.Set); err != nil {
				return err
			}
		}
	}
	if err := kernel.WriteSysctl(forward6, value); err != nil {
		return err
	}
	for k, v := range was {
		if now, err := kernel.ReadSysctl(k); err == nil && now != v {
			if err := kernel.WriteSysctl(k, v); err != nil {
				return err
			}
		}
	}
	if err := h.restoreSysctls(rec, func(key string) bool { return !isRA(key) }, func(string) bool { return false }); err != nil {
		return err
	}
	return h.writeRecord(rec)
}
