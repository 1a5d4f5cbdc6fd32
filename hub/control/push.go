package control

import (
	"context"
	"errors"
	"time"

	"causeway/hub/netmap"
	"causeway/protocol"
)

// netmapOf is one node's netmap, as the view that it is made from: views are
// shared between sessions, and a netmap for each would be peers times peers.
type netmapOf struct {
	view    *netmap.View
	version protocol.NetmapVersion
}

// netmap makes the full netmap of node n.
func (o netmapOf) netmap(n protocol.NodeNumber) (protocol.Netmap, bool) {
	if o.view == nil {
		return protocol.Netmap{}, false
	}
	m, ok := o.view.For(n)
	m.NetmapVersion = o.version
	return m, ok
}

// push keeps the agent's netmap up to date until ctx ends. One netmap is under
// way at a time, and there is no second one before the first was answered: what
// changes meanwhile goes into the next one. The first is a full one, since what
// an agent holds of an earlier session is not known here; once one is
// acknowledged, changes to it follow.
func (ses *session) push(ctx context.Context, have protocol.NetmapVersion) error {
	var held, sent netmapOf // acknowledged; last sent
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ses.awake:
		case a := <-ses.acks: // said later, of a netmap that was taken long ago
			if a.Full {
				held, sent = netmapOf{}, netmapOf{}
				ses.wake()
			}
			continue
		}
		view := ses.s.currentView()
		if view == nil {
			continue
		}
		full, ok := view.For(ses.node)
		if !ok {
			continue
		}
		if last, ok := sent.netmap(ses.node); ok && netmap.Same(last, full) {
			if sent == held {
				held.view = view // it says the same, and the older one may go
				sent = held
				ses.s.holds(ses, view)
			}
			continue
		}
		full.NetmapVersion = view.Next(have)
		have = full.NetmapVersion
		msg := full
		if base, ok := held.netmap(ses.node); ok {
			msg = netmap.Delta(base, full)
		}
		if err := ses.send(protocol.KindNetmap, msg); err != nil {
			return err
		}
		sent = netmapOf{view, have}
		again, err := ses.awaitAck(ctx, have)
		switch {
		case err != nil:
			return err
		case !again:
			held = sent
			ses.s.holds(ses, view)
		case msg.Base != nil:
			held, sent = netmapOf{}, netmapOf{}
			ses.wake()
		default: // a full one needs no base; the next change is another
			held = netmapOf{}
		}
	}
}

var errNoAck = errors.New("the node does not acknowledge its netmap")

// awaitAck waits for the answer to the netmap of version v: taken, or to be sent
// again in full. A node that is slow is waited for, with a warning; one that
// gives no answer at all gets a new session.
func (ses *session) awaitAck(ctx context.Context, v protocol.NetmapVersion) (again bool, err error) {
	slow, end := time.NewTimer(ackTimeout), time.NewTimer(ackLimit)
	defer slow.Stop()
	defer end.Stop()
	for {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-slow.C:
			ses.log.Warn().Stringer("netmap", v).Msg("netmap not acknowledged")
		case <-end.C:
			return false, errNoAck
		case a := <-ses.acks:
			if a.Full {
				return true, nil
			}
			if a.NetmapVersion == v {
				return false, nil
			}
		}
	}
}
