package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
)

// ErrNoInterface says that the TUN device is not there (yet): the tunnel makes
// it.
var ErrNoInterface = errors.New("the tunnel's interface is missing")

// Apply makes the host match the plan, whole and idempotent: what is missing
// is added, what differs is changed, what is ours and not in the plan is
// removed. Nothing is touched that is right already. On a host without IPv6
// the plan's IPv6 part is left out. What cannot be applied is told (Failures), and the
// rest is applied all the same; the next Apply goes on.
func (h *Host) Apply(ctx context.Context, p Plan) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.last
	var found []Drift
	gone := false
	// Each kind is looked at right before it is put right, and each setting, and whether the link
	// is up, as it is set, so that nothing is undone in between unseen. nftables are listed once, by
	// applyNft. What cannot be listed fails there.
	look := func(k Kind) {
		if gone {
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
	told := func(d Drift) {
		if gone && (d.Kind == Link || p.ofOwn(sysctl{key: d.Subject})) {
			return // that it is down, or another device, was seen before
		}
		found, gone = append(found, d), gone || d.Kind == Link
	}
	known := len(h.undone)
	err := h.apply(ctx, p, look, told, func(Kind, string) bool { return true })
	if ctx.Err() != nil {
		h.undone = h.undone[:known]
		return err
	}
	h.undone = append(h.undone, h.othersDid(found)...)
	if !HasIPv6() {
		p = p.Without6()
	}
	h.good = map[Kind][]string{}
	for _, k := range lineOrder {
		h.good[k] = slices.DeleteFunc(p.lines(k), func(l string) bool { return h.failed[l] })
	}
	return err
}

// othersDid is what of these drifts from the last plan is none from what was put in
// place: the rest may never have been there. h.mu is held.
func (h *Host) othersDid(l []Drift) (out []Drift) {
	if h.good == nil {
		return nil
	}
	for _, d := range l {
		if d.Kind == Parts { // it is of those that were put in place alone
			out = append(out, d)
			continue
		}
		lines := h.good[d.Kind]
		d.Missing = slices.DeleteFunc(d.Missing, func(s string) bool { return !slices.Contains(lines, s) })
		d.Extra = less(d.Extra, lines)
		if d.some() && (d.Kind != Sysctls || len(d.Missing) > 0) { // else what was there in its place
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
// one; look is told of each kind before it is touched but for Sysctls, and told of settings
// that had another value, and of a link that went down meanwhile. h.mu is held.
//
// The order is walls before ways: settings and nftables, then the link comes up, then
// addresses, routes and rules. Where nftables fail and nothing is known to stand
// (ErrNoWalls), ways are made all the same: without them pods' packets would take the
// host's default route. Closed it is by the tunnel, which then must have no peers: see
// ErrNoWalls.
func (h *Host) apply(ctx context.Context, p Plan, look func(Kind), told func(Drift), want func(k Kind, subject string) bool) error {
	if err := checkPrivilege(); err != nil {
		return err
	}
	whole := p
	if !HasIPv6() {
		p = p.Without6()
	}
	x := &applying{h: h, p: p, before: h.last, look: look, told: told, want: want}
	defer func() { h.noteFailed(whole, x.f, want) }()
	link, err := p.Device()
	if err != nil {
		x.f.add(Link, "", err)
	} else if link == nil {
		x.f.add(Link, "", fmt.Errorf("interface %s: %w", p.Interface, ErrNoInterface))
	}
	rec, err := h.readRecord(ctx, p.Interface)
	if err != nil {
		x.f.add(Other, "", err)
		rec = &record{Version: recordVersion, Interface: p.Interface, Table: p.Table}
	}
	moved := h.moveIn(rec, link, p)
	x.f.add(Other, "", moved)
	x.link, x.rec = link, rec
	h.last = whole
	h.watched.Store(&whole.Config)
	x.sizes()
	if x.wants(Other) { // all is applied
		x.f.add(Other, "", h.takeBack(ctx, rec, p))
	}
	x.settings(false)
	if err := ctx.Err(); err != nil {
		return err
	}
	x.walls(ctx)
	if len(x.f.Of(Nftables)) == 0 { // or nothing would bound what is forwarded
		x.settings(true)
	}
	x.ways()
	if moved == nil && len(x.f.Of(Routes))+len(x.f.Of(Rules)) == 0 {
		x.f.add(Other, "", h.moveOut(rec, p))
	}
	if x.wants(Other) {
		_, err := h.openFirewalls(ctx, rec, p)
		x.f.add(Other, "", err)
		x.f.add(Other, "", h.applyHairpins(rec, p))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return x.f.err()
}

// applying is one run of Host.apply, whose steps share it.
type applying struct {
	h         *Host
	p, before Plan
	link      netlink.Link // nil: it is missing
	rec       *record
	f         Failures
	look      func(Kind)
	told      func(Drift)
	want      func(k Kind, subject string) bool
}

func (x *applying) wants(k Kind) bool { return x.want(k, string(k)) }

// sizes sets the numbers of the device. They come first of all: with an MTU that is too small the kernel has taken IPv6
// away from it.
func (x *applying) sizes() {
	if x.link == nil {
		return
	}
	x.look(Link)
	if p := x.p; x.wants(Link) {
		x.f.add(Link, linkMTULine(p.Interface, p.LinkMTU), setLink(x.link, "mtu", x.link.Attrs().MTU, p.LinkMTU, netlink.LinkSetMTU))
		x.f.add(Link, linkQueueLine(p.Interface, p.Queue), setLink(x.link, "txqueuelen", x.link.Attrs().TxQLen, p.Queue, netlink.LinkSetTxQLen))
	}
}

// settings sets those of the kernel: those that have it forward, or the others.
func (x *applying) settings(forward bool) {
	for _, s := range x.p.sysctls() {
		if forward != (s.value == forwardMark) || !x.want(Sysctls, s.key) || x.link == nil && x.p.ofOwn(s) {
			continue
		}
		was, err := x.h.setSysctl(x.rec, s, x.p.ofOwn(s))
		switch {
		case err == nil && was != s.value && (s.value != forwardMark || was != "1"): // or others had it forward: see Uses
			x.told(Drift{Kind: Sysctls, Subject: s.key, Missing: []string{s.line()}, Extra: []string{sysctl{s.key, was}.line()}})
		case err != nil && (x.p.ofOwn(s) || !errors.Is(err, fs.ErrNotExist)):
			x.f = append(x.f, x.p.unset(s, err)) // else it went with its interface
		}
	}
}

// walls sets our table, and those of parts.
func (x *applying) walls(ctx context.Context) {
	if x.wants(Nftables) {
		x.f.add(Nftables, "", x.h.applyNft(ctx, x.p, x.before))
	}
	for _, part := range x.p.Parts {
		if x.want(Parts, part.Table()) {
			x.f.add(Parts, part.Table(), x.h.applyPart(ctx, part, x.told))
		}
	}
	if x.wants(Other) {
		x.f.add(Parts, "", x.h.removeParts(x.p.Parts))
	}
}

// ways sets the device up, and addresses, routes and rules.
func (x *applying) ways() {
	if x.link != nil {
		if x.wants(Link) {
			up := x.link.Attrs().Flags&unix.IFF_UP != 0
			if !up {
				kernel.AddClsact(x.link) // where it cannot be, no trial is made
			}
			down, err := setUp(x.link)
			x.f.add(Link, linkLine(x.p.Interface), err)
			if up && down {
				x.told(Drift{Kind: Link, Subject: string(Link), Missing: []string{linkLine(x.p.Interface)}})
			}
		}
		x.look(Addresses)
		if x.wants(Addresses) {
			applyAddrs(x.link, x.p, &x.f)
		}
	}
	x.look(Routes)
	if x.wants(Routes) {
		applyRoutes(x.link, x.p, &x.f)
	}
	x.look(Rules)
	if x.wants(Rules) {
		applyRules(x.p, &x.f)
	}
}

// moveIn brings the record to this plan's interface, and removes the one before. A device that
// is called otherwise by now is the same one. Rules and routes stay until those of this plan
// stand (moveOut): packets of what is closed never see a moment without.
func (h *Host) moveIn(rec *record, link netlink.Link, p Plan) error {
	index := 0
	if link != nil {
		index = link.Attrs().Index
	}
	if same := rec.Index != 0 && rec.Index == index; rec.Interface != "" && rec.Interface != p.Interface && !same {
		if err := h.removeLink(rec, rec.Interface); err != nil {
			return err
		}
	}
	if rec.Interface == p.Interface && rec.Table != 0 && (rec.Index == index || index == 0) {
		return nil
	}
	was := *rec
	rec.Interface = p.Interface
	if rec.Table == 0 {
		rec.Table = p.Table
	}
	if index != 0 {
		rec.Index = index
	}
	if err := h.writeRecord(rec); err != nil {
		*rec = was // the next apply tries again
		return err
	}
	return nil
}

// moveOut takes back what is in the record's table where that is not this plan's, and records
// that one: Remove takes both back, whatever ends this in between.
func (h *Host) moveOut(rec *record, p Plan) error {
	if rec.Table == p.Table {
		return nil
	}
	if err := removeTable(rec.Table); err != nil {
		return err
	}
	was := *rec
	rec.Table = p.Table
	if err := h.writeRecord(rec); err != nil {
		*rec = was
		return err
	}
	return nil
}

// noteFailed remembers which lines of the kinds that were wanted could not be put in
// place, so that they are not taken for what others changed.
func (h *Host) noteFailed(p Plan, f Failures, want func(Kind, string) bool) {
	was := h.failed
	h.failed = map[string]bool{}
	for _, k := range lineOrder {
		for _, l := range p.lines(k) {
			subject := string(k)
			if k == Sysctls {
				subject, _, _ = strings.Cut(strings.TrimPrefix(l, "sysctl -w "), "=")
			}
			if was[l] && !want(k, subject) {
				h.failed[l] = true
			}
		}
		for _, x := range f.Of(k) {
			if x.Line != "" {
				h.failed[x.Line] = true
				continue
			}
			if k == Link { // that it is missing is a drift
				continue
			}
			for _, l := range p.lines(k) {
				h.failed[l] = true
			}
		}
	}
}

// applyAddrs makes the link's addresses those of the plan. The kernel's
// link-local one is no concern of ours. One that is not delivered to is set anew.
func applyAddrs(link netlink.Link, p Plan, f *Failures) {
	have, err := linkAddrs(link)
	var local map[netip.Addr]bool
	if err == nil {
		local, err = delivered(link, have)
	}
	if err != nil {
		f.add(Addresses, "", err)
		return
	}
	want := p.addrs()
	for _, x := range have {
		if slices.Contains(want, x) && local[x.Addr()] {
			continue
		}
		if err := netlink.AddrDel(link, &netlink.Addr{IPNet: netipx.PrefixIPNet(x.Prefix)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			f.add(Addresses, x.line(p.Interface), fmt.Errorf("delete address %s from %s: %w", x, p.Interface, err))
		}
	}
	for _, x := range want {
		if slices.Contains(have, x) && local[x.Addr()] {
			continue
		}
		na := &netlink.Addr{IPNet: netipx.PrefixIPNet(x.Prefix)}
		if x.Addr().Is6() {
			na.Flags = unix.IFA_F_NODAD
		}
		if x.host {
			na.Scope = unix.RT_SCOPE_HOST
		}
		if err := netlink.AddrAdd(link, na); err != nil && !errors.Is(err, unix.EEXIST) {
			f.add(Addresses, x.line(p.Interface), fmt.Errorf("add address %s to %s: %w", x, p.Interface, err))
		}
	}
}

func linkAddrs(link netlink.Link) ([]addr, error) {
	as, err := kernel.Retry(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
	}
	var out []addr
	for _, a := range as {
		if x, ok := kernel.PrefixOf(a.IPNet); ok && (x.Addr().Is4() || !x.Addr().IsLinkLocalUnicast()) {
			out = append(out, addr{x, x.Addr().Is4() && a.Scope == unix.RT_SCOPE_HOST})
		}
	}
	slices.SortFunc(out, func(a, b addr) int { return a.Addr().Compare(b.Addr()) })
	return out, nil
}
