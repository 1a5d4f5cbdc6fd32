package control

import (
	"context"
	"time"

	"causeway/hub/netmap"
	"causeway/protocol"
)

// push keeps the agent's netmap up to date until ctx ends. One netmap is under
// way at a time: what changes meanwhile goes into the next one. The first is a
// full one, since what an agent holds of an earlier session is not known here;
// once one is acknowledged, changes to it follow.
func (ses *session) push(ctx context.Context, have protocol.NetmapVersion) error {
	var held, sent *protocol.Netmap // acknowledged; last sent
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ses.awake:
		case a := <-ses.acks: // said later, of a netmap that was taken long ago
			if a.Full {
				held, sent = nil, nil
				ses.wake()
			}
			continue
		}
		view := ses.s.currentView()
		if view == nil {
			continue
		}
		full, ok := view.For(ses.node)
		if !ok || sent != nil && netmap.Same(*sent, full) {
			continue
		}
		full.NetmapVersion = view.Next(have)
		have = full.NetmapVersion
		msg := full
		if held != nil {
			msg = netmap.Delta(*held, full)
		}
		if err := ses.send(protocol.KindNetmap, msg); err != nil {
			return err
		}
		sent = &full
		taken, again := ses.awaitAck(ctx, full.NetmapVersion)
		switch {
		case taken:
			held = sent
			ses.s.holds(ses, full)
		case again && msg.Base != nil: // a full one needs no base
			held, sent = nil, nil
			ses.wake()
		default: // silent: it may or may not hold it
			held = nil
		}
	}
}

// awaitAck waits for the answer to the netmap of version v: taken, or to be sent
// again in full.
func (ses *session) awaitAck(ctx context.Context, v protocol.NetmapVersion) (taken, again bool) {
	t := time.NewTimer(ackTimeout)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return false, false
		case <-t.C:
			ses.log.Warn().Stringer("netmap", v).Msg("netmap not acknowledged")
			return false, false
		case a := <-ses.acks:
			if a.Full {
				return false, true
			}
			if a.NetmapVersion == v {
				return true, false
			}
		}
	}
}
