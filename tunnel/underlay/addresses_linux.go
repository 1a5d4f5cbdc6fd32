package underlay

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addressPoll finds what a lost netlink message did not tell.
const addressPoll = 30 * time.Second

// watchAddresses keeps Candidates true to the host's addresses.
func (u *Underlay) watchAddresses(ctx context.Context) error {
	updates, done := make(chan netlink.AddrUpdate, 64), make(chan struct{})
	if err := netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{ErrorCallback: func(error) {}}); err != nil {
		u.cfg.Log.Warn().Err(err).Msg("cannot watch the host's addresses; looking every 30 seconds")
		updates = nil
	} else {
		watched := updates
		defer func() {
			close(done)
			for range watched { // its goroutine may hang in a send
			}
		}()
	}
	for {
		u.updateCandidates()
		poll := time.NewTimer(addressPoll)
		select {
		case <-ctx.Done():
			poll.Stop()
			return nil
		case _, ok := <-updates:
			if !ok {
				updates = nil
			}
		case <-poll.C:
		}
		poll.Stop()
		// Addresses come in bunches: take what is there as one change.
		for more := updates != nil; more; {
			select {
			case _, more = <-updates:
			default:
				more = false
			}
		}
	}
}

func (u *Underlay) updateCandidates() {
	l, err := u.ownAddresses()
	if err != nil {
		u.cfg.Log.Warn().Err(err).Msg("cannot list the host's addresses")
		return
	}
	if slices.Equal(l, *u.candidates.Load()) {
		return
	}
	u.candidates.Store(&l)
	if u.cfg.OnCandidates != nil {
		u.cfg.OnCandidates()
	}
}

func (u *Underlay) ownAddresses() ([]netip.AddrPort, error) {
	c := u.conns.Load()
	if c == nil {
		return nil, nil
	}
	port := u.Port()
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, l := range links {
		if a := l.Attrs(); a.Flags&unix.IFF_UP != 0 {
			names[a.Index] = a.Name
		}
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var out []netip.AddrPort
	for _, x := range addrs {
		a, ok := netip.AddrFromSlice(x.IP)
		a = a.Unmap()
		name, up := names[x.LinkIndex]
		const unfit = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED | unix.IFA_F_TEMPORARY
		if !ok || !up || !a.IsGlobalUnicast() || a.Is6() && (c.v6 == nil || x.Flags&unfit != 0) || a.Is4() && c.v4 == nil {
			continue
		}
		if u.cfg.Excluded != nil && u.cfg.Excluded(name, a) {
			continue
		}
		out = append(out, netip.AddrPortFrom(a, port))
	}
	slices.SortFunc(out, func(x, y netip.AddrPort) int {
		return cmp.Or(x.Addr().Compare(y.Addr()), cmp.Compare(x.Port(), y.Port()))
	})
	return slices.Compact(out), nil
}
