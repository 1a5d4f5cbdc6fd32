package session

import (
	"bytes"
	"context"
	"errors"
	"net"
	"time"

	"causeway/hub/plan"
	"causeway/protocol"
)

// push keeps the agent's netmap up to date until ctx ends. One netmap is under
// way at a time, and there is no second one before the first was answered: what
// changes meanwhile goes into the next one. The first is a full one, unless the
// agent says that it holds just these peers, as after a restart of this hub; once
// one is acknowledged, changes to it follow.
//
// Sessions hold what all netmaps are made from, which they share: a netmap for each would be peers times
// peers.
func (ses *session) push(ctx context.Context, h protocol.Hello) error {
	var held, sent *plan.Netmaps // whose netmap was acknowledged; and was sent last
	version, first := h.Have, true
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ses.known.Awake():
		case a := <-ses.acks: // said later, of a netmap that was taken long ago
			if a.Full {
				held, sent = nil, nil
				ses.known.Wake()
			}
			continue
		}
		view := ses.s.fleet.Netmaps()
		if view == nil || !view.Has(ses.node) || ses.s.cfg.Store.SetBack() != nil {
			continue
		}
		next := view.Next(version)
		var u plan.Update
		sum := view.Sum(ses.node)
		switch {
		case first && h.Have.Epoch == view.Version.Epoch && bytes.Equal(h.HaveSum, sum[:]):
			u = view.Confirm(ses.node, version, next)
		case sent != nil:
			change, changed := view.Change(sent, ses.node, version, next)
			if !changed {
				if sent == held {
					held, sent = view, view // it says the same, and the older one may go
					ses.s.fleet.Holds(ses.known, view)
				}
				continue
			}
			if u = change; held == nil {
				u = view.Full(ses.node, next)
			}
		default:
			u = view.Full(ses.node, next)
		}
		first = false
		if err := ses.sendNetmap(u); err != nil {
			return err
		}
		sent, version = view, next
		again, err := ses.awaitAck(ctx, next)
		switch {
		case err != nil:
			return err
		case !again:
			held = sent
			ses.s.fleet.Holds(ses.known, view)
		case u.Netmap.Base != nil:
			held, sent = nil, nil
			ses.known.Wake()
		default: // a full one needs no base; the next change is another
			held = nil
		}
	}
}

// sendNetmap writes a netmap piece by piece, each of which has its time: many
// agents may be sent large ones at once, over links of any speed.
func (ses *session) sendNetmap(u plan.Update) error {
	parts, err := u.Parts()
	if err != nil {
		return err
	}
	return ses.write(protocol.KindNetmap, func(c net.Conn) error {
		return protocol.WriteMessageParts(timedWriter{c}, protocol.KindNetmap, parts, protocol.MaxToAgent)
	})
}

// timedWriter gives each Write its time.
type timedWriter struct{ net.Conn }

func (w timedWriter) Write(b []byte) (int, error) {
	w.SetWriteDeadline(time.Now().Add(writeTimeout))
	return w.Conn.Write(b)
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
