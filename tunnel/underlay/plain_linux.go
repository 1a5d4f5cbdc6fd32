package underlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"causeway/protocol"
	"causeway/tunnel/underlay/probe"
)

// SetPlainPeer sets the address of a peer in plain mode; an invalid one takes
// the peer away.
func (u *Underlay) SetPlainPeer(n protocol.NodeNumber, a netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	m := map[protocol.NodeNumber]*remote{}
	for k, v := range *u.peers.Load() {
		m[k] = v
	}
	if a.IsValid() {
		r := &remote{number: n}
		r.route.Store(&probe.Route{Kind: protocol.PathDirect, Hop: probe.Hop{Addr: a}, Since: time.Now()})
		m[n] = r
	} else {
		delete(m, n)
	}
	u.peers.Store(&m)
}

// FollowPlainPeer makes what is sent to a peer in plain mode go where its last
// authentic message came from, and from where that came to. It costs nothing
// where that is known already.
func (u *Underlay) FollowPlainPeer(n protocol.NodeNumber, from Source) {
	r := (*u.peers.Load())[n]
	if r == nil || r.route.Load().Hop.Addr != from.Addr {
		u.SetPlainPeer(n, from.Addr)
		r = (*u.peers.Load())[n]
	}
	if r == nil || !from.Local.IsValid() {
		return
	}
	if l := r.local.Load(); l == nil || *l != from.Local {
		local := from.Local
		r.local.Store(&local)
	}
}

// PlainPeer is the address of a peer in plain mode; invalid: it has none.
func (u *Underlay) PlainPeer(n protocol.NodeNumber) netip.AddrPort {
	if r := (*u.peers.Load())[n]; r != nil {
		return r.route.Load().Hop.Addr
	}
	return netip.AddrPort{}
}

// Answer sends a datagram, in plain mode, to where one came from whose sender
// is not known.
func (u *Underlay) Answer(to Source, datagram []byte) error {
	if !u.cfg.Plain {
		return ErrUnknownPeer
	}
	return u.writePlain(to.Local, to.Addr, datagram, len(datagram))
}

// sendPlain sends from the address that the peer last sent to, as long as the
// host has it.
func (u *Underlay) sendPlain(r *remote, b []byte, segment int) error {
	to := r.route.Load().Hop.Addr
	local := r.local.Load()
	if local == nil {
		return u.writePlain(netip.Addr{}, to, b, segment)
	}
	err := u.writePlain(*local, to, b, segment)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
		r.local.CompareAndSwap(local, nil)
		err = u.writePlain(netip.Addr{}, to, b, segment)
	}
	return err
}

func (u *Underlay) writePlain(from netip.Addr, to netip.AddrPort, b []byte, segment int) error {
	s, err := u.socketFor(to)
	if err != nil {
		return err
	}
	if from.IsValid() && from.Is4() != to.Addr().Unmap().Is4() {
		from = netip.Addr{}
	}
	return s.WriteFrom(from, to, b, segment)
}

// watchRoutes lets the kernel choose the addresses to send from anew when
// routes change: the way that an address was right for may be gone.
func (u *Underlay) watchRoutes(ctx context.Context) error {
	updates, done := make(chan netlink.RouteUpdate, 64), make(chan struct{})
	if err := netlink.RouteSubscribeWithOptions(updates, done, netlink.RouteSubscribeOptions{ErrorCallback: func(error) {}}); err != nil {
		return fmt.Errorf("underlay: watch routes: %w", err)
	}
	defer func() {
		close(done)
		for range updates { // its goroutine may hang in a send
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-updates:
			if !ok { // messages were lost; addresses stay right until one fails
				<-ctx.Done()
				return nil
			}
		}
		for _, r := range *u.peers.Load() {
			r.local.Store(nil)
		}
	}
}
