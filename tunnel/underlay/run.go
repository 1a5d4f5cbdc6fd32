package underlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"causeway/protocol"
	"causeway/tunnel/underlay/probe"
	"causeway/tunnel/underlay/sock"
)

// Run opens the sockets and works until ctx ends. It owns every goroutine, and
// runs once.
func (u *Underlay) Run(ctx context.Context) error {
	c, err := u.open()
	if err != nil {
		return err
	}
	u.conns.Store(c)
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range []*sock.Conn{c.v4, c.v6} {
		if s != nil {
			g.Go(func() error { return u.read(s) })
		}
	}
	g.Go(func() error { return u.watchAddresses(ctx) })
	if u.cfg.Plain {
		g.Go(func() error { return u.watchRoutes(ctx) })
	} else {
		g.Go(func() error { u.tick(ctx); return nil })
		g.Go(func() error { u.runStreams(ctx); return nil })
	}
	g.Go(func() error {
		<-ctx.Done()
		u.conns.Store(nil)
		c.close()
		return nil
	})
	close(u.ready)
	return g.Wait()
}

func (c *conns) close() {
	for _, s := range []*sock.Conn{c.v4, c.v6} {
		if s != nil {
			s.Close()
		}
	}
}

// open opens one socket for IPv4 and one for IPv6, where the host has it, on
// one port.
func (u *Underlay) open() (*conns, error) {
	if u.cfg.ListenPort == 0 && u.cfg.LastPort != 0 {
		c, err := u.openPort(u.cfg.LastPort)
		if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EACCES) {
			return c, err
		}
		u.cfg.Log.Warn().Err(err).Msg("the UDP port of the last run is not free, another one is taken")
	}
	for try := 0; ; try++ {
		c, err := u.openPort(u.cfg.ListenPort)
		// A free port of one family may be taken in the other.
		if err != nil && u.cfg.ListenPort == 0 && errors.Is(err, unix.EADDRINUSE) && try < 16 {
			continue
		}
		return c, err
	}
}

func (u *Underlay) openPort(port uint16) (*conns, error) {
	o := sock.Options{Mark: u.cfg.Mark, NoOffload: u.cfg.NoOffload, Only6: true, Sticky: u.cfg.Plain}
	c := &conns{}
	var err error
	o.Addr = netip.AddrPortFrom(netip.IPv4Unspecified(), port)
	if c.v4, err = sock.Open(o); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("underlay: %w", err)
	}
	if c.v4 != nil {
		port = c.v4.LocalAddr().Port()
	}
	o.Addr = netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	c.v6, err = sock.Open(o)
	switch {
	case err == nil:
	case c.v4 != nil && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)):
		u.cfg.Log.Info().Err(err).Msg("underlay without ipv6")
	default:
		c.close()
		return nil, fmt.Errorf("underlay: %w", err)
	}
	return c, nil
}

// tick runs the state machine's clock.
func (u *Underlay) tick(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var busy []protocol.NodeNumber
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-u.wake:
		case n := <-u.traffic:
			busy = append(busy, n)
		}
		for more := true; more; {
			select {
			case n := <-u.traffic:
				busy = append(busy, n)
			default:
				more = false
			}
		}
		now, overrun := time.Now(), u.overrun()
		u.mu.Lock()
		if overrun {
			u.agent.Overrun(now)
		}
		for _, n := range busy {
			u.agent.Traffic(now, n)
		}
		if u.streamNeeded.Swap(false) {
			u.agent.NeedStreams(now)
		}
		next := u.agent.Tick(now, &u.out)
		u.judgeStreams(now)
		u.after(nil)
		if t := u.table.Tick(now); !t.IsZero() && t.Before(next) {
			next = t
		}
		timer.Reset(max(time.Until(next), time.Millisecond))
	}
}

// overrun reports whether a socket had no room for something that came, since it was
// called last. The runner calls it.
func (u *Underlay) overrun() (any bool) {
	c := u.conns.Load()
	if c == nil {
		return false
	}
	for _, s := range []*sock.Conn{c.v4, c.v6} {
		any = s != nil && s.Overrun() || any
	}
	return any
}

// after publishes what the state machine decided, unlocks u.mu, which is held,
// and does what is to be done without it. r is the calling reader, if it is one.
func (u *Underlay) after(r *reader) {
	out := u.out
	u.out = probe.Output{}
	hurry := u.publish(&out)
	u.mu.Unlock()
	for _, s := range out.Sends {
		if err := u.writeRaw(s.To, s.Data, len(s.Data)); errors.Is(err, unix.EMSGSIZE) {
			u.tooLarge(s.To, len(s.Data))
		} else if err != nil {
			u.cfg.Log.Trace().Stringer("addr", s.To).Err(err).Msg("probe not sent")
		}
	}
	if out.Again {
		u.poke()
	}
	u.drain(r)
	now := time.Now()
	for _, n := range hurry {
		u.table.Hurry(now, n)
	}
}

// tooLarge tells the state machine what our own interface refused.
func (u *Underlay) tooLarge(to netip.AddrPort, size int) {
	u.mu.Lock()
	u.agent.TooLarge(time.Now(), to, size, &u.out)
	u.after(nil)
}

// socketFor is the socket of an address's family.
func (u *Underlay) socketFor(to netip.AddrPort) (*sock.Conn, error) {
	c := u.conns.Load()
	if c == nil {
		return nil, ErrNotRunning
	}
	s := c.v6
	if to.Addr().Unmap().Is4() {
		s = c.v4
	}
	if s == nil {
		return nil, sock.ErrFamily
	}
	return s, nil
}

func (u *Underlay) writeRaw(to netip.AddrPort, b []byte, segment int) error {
	if protocol.IsStream(to) {
		return u.writeStream(to, b, segment)
	}
	s, err := u.socketFor(to)
	if err != nil {
		return err
	}
	return s.Write(to, b, segment)
}

// publish makes routes and sources visible to Send and the readers, and queues
// events. It returns the peers whose handshakes are worth another try. u.mu is held.
func (u *Underlay) publish(out *probe.Output) (hurry []protocol.NodeNumber) {
	peers := *u.peers.Load()
	for _, n := range out.Routes {
		r := peers[n]
		if r == nil {
			continue
		}
		route, old := u.agent.Route(n), r.route.Load()
		r.route.Store(&route)
		if len(route.Live) > len(old.Live) || route.Kind != protocol.PathNone && route.Hop != old.Hop {
			hurry = append(hurry, n)
		}
		if r.hub && (route.Kind == protocol.PathNone) != (old.Kind == protocol.PathNone) {
			u.events = append(u.events, event{hub: n, bound: route.Kind != protocol.PathNone})
		}
		if route.Kind != old.Kind || route.Hop.Addr != old.Hop.Addr {
			u.cfg.Log.Debug().Uint32("peer", uint32(n)).Str("path", string(route.Kind)).Stringer("addr", route.Hop.Addr).Dur("rtt", route.RTT).Msg("path chosen")
		}
	}
	if out.Changed {
		m, tallies := map[netip.AddrPort]source{}, u.agent.Arrivals()
		for a, n := range u.agent.Sources() {
			if r := peers[n]; r != nil {
				m[a] = source{r, tallies[a]}
			}
		}
		for a, n := range u.agent.HubAddrs() {
			if r := peers[n]; r != nil {
				m[a] = source{r, tallies[a]}
			}
		}
		u.sources.Store(&m)
	}
	for _, n := range out.Restarted {
		u.events = append(u.events, event{restarted: n})
	}
	for _, n := range out.Released {
		u.events = append(u.events, event{released: n})
	}
	return hurry
}

// drain works off the events in order. Only a reader can deliver; what is
// queued behind a delivery waits for the reader that queued it.
func (u *Underlay) drain(r *reader) {
	for {
		u.draining.Lock()
		u.mu.Lock()
		if len(u.events) == 0 || u.events[0].released != 0 && r == nil {
			u.mu.Unlock()
			u.draining.Unlock()
			return
		}
		e := u.events[0]
		u.events = u.events[1:]
		u.mu.Unlock()
		switch {
		case e.restarted != 0:
			u.cfg.Log.Info().Uint32("peer", uint32(e.restarted)).Msg("peer has restarted")
			u.table.Forget(e.restarted)
			if u.cfg.OnRestart != nil {
				u.cfg.OnRestart(e.restarted)
			}
		case e.released != 0:
			r.release(e.released)
		case e.blocked:
			if u.cfg.OnUDPBlocked != nil {
				u.cfg.OnUDPBlocked()
			}
		case e.hub != 0:
			if e.bound {
				u.cfg.Log.Info().Uint32("peer", uint32(e.hub)).Msg("hub has bound our address")
			} else {
				u.cfg.Log.Warn().Uint32("peer", uint32(e.hub)).Msg("hub does not answer")
			}
			if u.cfg.OnHubBound != nil {
				u.cfg.OnHubBound(e.hub, e.bound)
			}
		}
		u.draining.Unlock()
	}
}
