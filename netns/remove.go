package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
)

// Remove takes everything back, as it was before the first Apply. It is
// idempotent, needs no running agent, and works after a crash at any point. Where the
// record does not read it takes back all that needs none; Left says what it did not. Of c it
// needs Interface and Table, and Overlay to know a device that was renamed.
func (h *Host) Remove(ctx context.Context, c Config) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := checkPrivilege(); err != nil {
		return err
	}
	rec, err := h.readRecord(ctx, c.Interface)
	if err != nil {
		return err
	}
	if err := h.closeFirewalls(ctx, rec); err != nil {
		return err
	}
	if err := h.applyHairpins(rec, Plan{}); err != nil {
		return err
	}
	if err := h.takeBack(ctx, rec, Plan{}); err != nil {
		return err
	}
	for _, x := range []struct {
		dev   string
		table int
	}{{c.Interface, c.Table}, {rec.Interface, rec.Table}} {
		if x.dev == "" {
			continue
		}
		if err := removeTable(x.table); err != nil {
			return err
		}
		if err := h.removeLink(rec, x.dev); err != nil {
			return err
		}
	}
	if err := removeRenamed(rec, c.Overlay); err != nil {
		return err
	}
	if err := errors.Join(removeNft(ctx), h.removeParts(nil)); err != nil {
		return err
	}
	h.watched.Store(nil)
	h.last, h.good, h.failed, h.walls, h.undone, h.left = Plan{}, nil, nil, nil, nil, nil
	if rec.Lost {
		h.left = leftSettings(rec)
	}
	return h.deleteRecord()
}

// Left are the settings that the last Remove left as they are, because the record of what
// they were before was lost.
func (h *Host) Left() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.left
}

// removeTable deletes our rules for a table, and our routes in it.
func removeTable(table int) error {
	for _, v6 := range kernel.Families() {
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
	return nil
}

// removeLink deletes a link, unless that is another one than the record's, which only has
// its name.
func (h *Host) removeLink(rec *record, dev string) error {
	link, err := kernel.LinkByName(dev)
	if err != nil || link == nil {
		return err
	}
	if other(link, rec) {
		h.log.Info().Str("iface", dev).Msg("left a link alone that only has the name of ours")
		return nil
	}
	if !isTUN(link) {
		return fmt.Errorf("interface %s is a %s, not the tunnel's TUN device: left alone", dev, link.Type())
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", dev, err)
	}
	return nil
}

// removeRenamed deletes the record's device where somebody renamed it since: a TUN device with
// the record's index that has one of our addresses.
func removeRenamed(rec *record, overlay []netip.Addr) error {
	if rec.Index <= 0 {
		return nil
	}
	link, err := kernel.Retry(func() (netlink.Link, error) { return netlink.LinkByIndex(rec.Index) })
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || err == nil && !isTUN(link) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find link %d: %w", rec.Index, err)
	}
	have, err := linkAddrs(link)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(have, func(x addr) bool { return slices.Contains(overlay, x.Addr()) }) {
		return nil
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// other reports whether link is not the record's: that is there under another name, or this
// is no TUN device.
func other(link netlink.Link, rec *record) bool {
	if rec.Index == 0 || link.Attrs().Index == rec.Index {
		return false
	}
	if !isTUN(link) {
		return true
	}
	l, err := netlink.LinkByIndex(rec.Index)
	return err == nil && isTUN(l)
}

func isTUN(l netlink.Link) bool { return l.Type() == "tuntap" || l.Type() == "tun" }
