package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"causeway/agent/debug"
	"causeway/agent/measure"
	"causeway/protocol"
)

// measureTurn is how long a measurement waits for the one before it to end.
const measureTurn = 2 * time.Second

// turn takes the one place for a measurement.
func (a *answers) turn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, measureTurn)
	defer cancel()
	select {
	case a.measuring <- struct{}{}:
		return nil
	case <-ctx.Done():
		return errors.New("another measurement is going on at this node; try again later")
	}
}

// measureOffer opens a receiver for a peer, which ends by itself.
func (a *answers) measureOffer(ctx context.Context, o protocol.MeasureOffer) protocol.MeasurePlace {
	fail := func(err error) protocol.MeasurePlace { return protocol.MeasurePlace{Error: err.Error()} }
	from, ok := a.overlayOf(o.Peer, netip.Addr{})
	if !ok {
		return fail(fmt.Errorf("node number %d is not in this node's netmap", o.Peer))
	}
	if err := a.turn(ctx); err != nil {
		return fail(err)
	}
	r, err := measure.Offer(o, a.ownOverlay(from), from)
	if err != nil {
		<-a.measuring
		return fail(err)
	}
	go func() {
		defer func() { <-a.measuring }()
		if err := r.Run(a.life); err != nil {
			a.log.Info().Err(err).Msg("measurement ended")
		}
	}()
	return r.Place()
}

// measureRun sends to a receiver at a peer's overlay address, and nowhere else.
func (a *answers) measureRun(ctx context.Context, q protocol.MeasureRun) protocol.Measured {
	fail := func(err error) protocol.Measured { return protocol.Measured{Error: err.Error()} }
	dst := q.Place.TCP.Addr()
	if to, ok := a.overlayOf(q.Peer, dst); !ok || to != dst || q.Place.UDP.Addr() != dst {
		return fail(fmt.Errorf("%s is not the overlay address of node number %d in this node's netmap", dst, q.Peer))
	}
	if err := a.turn(ctx); err != nil {
		return fail(err)
	}
	defer func() { <-a.measuring }()
	// Traffic first: over which path it goes is decided then.
	debug.Echo(ctx, a.ownOverlay(dst), dst, 1, traceWait)
	a.settle(ctx, q.Peer)
	m, err := measure.Run(ctx, q, a.ownOverlay(dst))
	if err != nil {
		m.Error = err.Error()
	}
	m.Route = debug.RouteTo(netip.Addr{}, dst).MTU
	if l, err := netlink.LinkByName(a.host.DeviceName()); err == nil {
		m.Device = l.Attrs().MTU
	}
	return m
}
