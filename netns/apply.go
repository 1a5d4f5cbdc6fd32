package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"
)

// ErrNoInterface says that the TUN device is not there (yet): the tunnel makes
// it.
var ErrNoInterface = errors.New("the tunnel's interface is missing")

// Apply makes the host match the plan, whole and idempotent: what is missing
// is added, what differs is changed, what is ours and not in the plan is
// removed. Nothing is touched that is right already. On a host without IPv6
// the plan's IPv6 part is left out. After an error the next Apply goes on.
func (h *Host) Apply(ctx context.Context, p Plan) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.last
	var found []Drift
	gone := false
	// Each kind is looked at right before it is put right, so that nothing is undone in
	// between unseen. nftables are listed once, by applyNft. What cannot be listed fails there.
	look := func(k Kind) {
		if gone && k != Sysctls {
			return
		}
		l, _ := h.drift(ctx, before, []Kind{k})
		for _, d := range l {
			if d.Kind != Link || !gone {
				found = append(found, d)
			}
			gone = gone || d.Kind == Link
		}
	}
	if err := h.apply(ctx, p, look, func(Kind, string) bool { return true }); err != nil {
		return err
	}
	h.undone = append(h.undone, h.othersDid(found)...)
	h.good = p
	return nil
}

// othersDid is what of these drifts from the last plan is none from the last one that
// was applied whole: the rest may never have been there. h.mu is held.
func (h *Host) othersDid(l []Drift) (out []Drift) {
	if h.good.Interface == "" {
		return nil
	}
	for _, d := range l {
		lines := h.good.lines(d.Kind)
		d.Missing = slices.DeleteFunc(d.Missing, func(s string) bool { return !slices.Contains(lines, s) })
		d.Extra = less(d.Extra, lines)
		if d.some() {
			out = append(out, d)
		}
	}
	return out
}

// PutRight returns what Apply found changed by others and put right, since the last call.
func (h *Host) PutRight() []Drift {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.undone
	h.undone = nil
	return l
}

// apply is Apply for the kinds that want names, of which Sysctls are asked for one by
// one; look is told of each kind before it is touched. h.mu is held.
func (h *Host) apply(ctx context.Context, p Plan, look func(Kind), want func(k Kind, subject string) bool) error {
	whole, before := p, h.last
	wants := func(k Kind) bool { return want(k, string(k)) }
	if err := CheckHost(); err != nil {
		return err
	}
	if !HasIPv6() {
		p = p.without6()
	}
	link, err := linkByName(p.Interface)
	if err != nil {
		return err
	}
	if link == nil {
		return fmt.Errorf("interface %s: %w", p.Interface, ErrNoInterface)
	}
	rec, err := h.readRecord()
	if err != nil {
		return err
	}
	if rec == nil {
		rec = &record{Version: recordVersion}
	}
	if rec.Interface != "" && (rec.Interface != p.Interface || rec.Table != p.Table) {
		if err := h.removeObjects(rec.Interface, rec.Table, rec.Interface != p.Interface); err != nil {
			return err
		}
		rec.Interface = ""
	}
	if rec.Interface == "" {
		rec.Interface, rec.Table = p.Interface, p.Table
		if err := h.writeRecord(rec); err != nil {
			return err
		}
	}
	h.last = whole
	h.watched.Store(&whole.Config)
	look(Sysctls)
	for _, s := range p.sysctls() {
		if !want(Sysctls, s.key) {
			continue
		}
		if err := h.setSysctl(rec, s, strings.Contains(s.key, ".conf."+p.Interface+".")); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if wants(Nftables) {
		if err := h.applyNft(ctx, p, before); err != nil {
			return err
		}
	}
	look(Link)
	if wants(Link) && link.Attrs().Flags&unix.IFF_UP == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set link %s up: %w", p.Interface, err)
		}
	}
	look(Addresses)
	if wants(Addresses) {
		if err := applyAddrs(link, p); err != nil {
			return err
		}
	}
	look(Routes)
	if wants(Routes) {
		if err := applyRoutes(link, p); err != nil {
			return err
		}
	}
	look(Rules)
	if wants(Rules) {
		if err := applyRules(p); err != nil {
			return err
		}
	}
	if !wants(Other) {
		return nil
	}
	return h.openFirewalls(ctx, rec, p.Interface)
}

// Remove takes everything back, as it was before the first Apply. It is
// idempotent, needs no running agent, and works after a crash at any point. Where the
// record does not read it takes back all that needs none, and fails with ErrRecord.
func (h *Host) Remove(ctx context.Context, c Config) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := checkPrivilege(); err != nil {
		return err
	}
	rec, recErr := h.readRecord()
	if rec == nil {
		rec = &record{Version: recordVersion}
	}
	if err := h.closeFirewalls(ctx, rec); err != nil {
		return err
	}
	if err := h.removeObjects(c.Interface, c.Table, true); err != nil {
		return err
	}
	if rec.Interface != "" && (rec.Interface != c.Interface || rec.Table != c.Table) {
		if err := h.removeObjects(rec.Interface, rec.Table, true); err != nil {
			return err
		}
	}
	if err := removeNft(ctx); err != nil {
		return err
	}
	needed := func(key string) bool { return key == "net.ipv4.ip_forward" && containersForward(ctx) }
	if err := h.restoreSysctls(rec, needed); err != nil {
		return err
	}
	h.watched.Store(nil)
	h.last, h.good, h.undone = Plan{}, Plan{}, nil
	if recErr != nil {
		return fmt.Errorf("%w: %w", ErrRecord, recErr)
	}
	return h.deleteRecord()
}

// removeObjects deletes rules, routes and, if asked, the link.
func (h *Host) removeObjects(dev string, table int, deleteLink bool) error {
	for _, v6 := range families() {
		rules, err := ourRules(v6, table)
		if err != nil {
			return err
		}
		for i := range rules {
			if err := netlink.RuleDel(&rules[i]); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("delete rule %s: %w", rules[i], err)
			}
		}
		routes, err := ourRoutes(v6, table)
		if err != nil {
			return err
		}
		for i := range routes {
			if err := netlink.RouteDel(&routes[i]); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("delete route %s: %w", routes[i].Dst, err)
			}
		}
	}
	if !deleteLink {
		return nil
	}
	link, err := linkByName(dev)
	if err != nil || link == nil {
		return err
	}
	if link.Type() != "tuntap" && link.Type() != "tun" {
		return fmt.Errorf("interface %s is a %s, not the tunnel's TUN device: left alone", dev, link.Type())
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", dev, err)
	}
	return nil
}

// linkByName returns nil without an error if there is no such link.
func linkByName(name string) (netlink.Link, error) {
	l, err := retry(func() (netlink.Link, error) { return netlink.LinkByName(name) })
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	return l, nil
}

// families are the address families of the host.
func families() []bool {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return []bool{false}
	}
	return []bool{false, true}
}

// retry repeats a netlink dump that the kernel interrupted because its table
// changed meanwhile.
func retry[T any](f func() (T, error)) (v T, err error) {
	for range 10 {
		if v, err = f(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return v, err
}

func nlFamily(v6 bool) int {
	if v6 {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// applyAddrs makes the link's addresses those of the plan. The kernel's
// link-local one is no concern of ours.
func applyAddrs(link netlink.Link, p Plan) error {
	have, err := linkAddrs(link)
	if err != nil {
		return err
	}
	for _, x := range have {
		if x.IsSingleIP() && slices.Contains(p.Overlay, x.Addr()) {
			continue
		}
		if err := netlink.AddrDel(link, &netlink.Addr{IPNet: netipx.PrefixIPNet(x)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("delete address %s from %s: %w", x, p.Interface, err)
		}
	}
	for _, a := range p.Overlay {
		x := netip.PrefixFrom(a, a.BitLen())
		if slices.Contains(have, x) {
			continue
		}
		na := &netlink.Addr{IPNet: netipx.PrefixIPNet(x)}
		if a.Is6() {
			na.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, na); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %s to %s: %w", x, p.Interface, err)
		}
	}
	return nil
}

func linkAddrs(link netlink.Link) ([]netip.Prefix, error) {
	as, err := retry(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
	}
	var out []netip.Prefix
	for _, a := range as {
		if x, ok := prefixOf(a.IPNet); ok && !x.Addr().IsLinkLocalUnicast() {
			out = append(out, x)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return out, nil
}
