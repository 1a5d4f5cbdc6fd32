package hublink

import (
	"context"
	"fmt"
	"strings"

	"causeway/agent/desired"
	"causeway/agent/onhost"
	"causeway/protocol"
)

// TakeNetmap is the control channel's: it applies what may be applied, stores
// the netmap and says what was refused.
func (l *Link) TakeNetmap(ctx context.Context, n protocol.Netmap) (ack protocol.NetmapAck) {
	var t desired.Taken
	var refusal *protocol.NetmapAck
	l.host.ApplyWith(ctx, func() bool {
		t, refusal = l.want.Take(n)
		return refusal == nil
	}, func(out onhost.Outcome) {
		ack = out.Ack
		ack.Refused, ack.Lost = append(ack.Refused, t.Refused...), t.Lost
		if err := l.want.Save(); err != nil {
			ack.Errors = append(ack.Errors, err.Error())
		}
		l.noteAcked(out.Number, ack)
	})
	if refusal != nil {
		return *refusal
	}
	l.log.Info().Stringer("netmap", t.Netmap.NetmapVersion).Int("peers", len(t.Netmap.Peers)).Int("refused", len(ack.Refused)).Int("errors", len(ack.Errors)).Msg("netmap applied")
	for _, r := range ack.Refused {
		l.log.Warn().Uint32("peer", uint32(r.Peer)).Str("prefix", r.Prefix).Str("item", strings.TrimSpace(r.Kind+" "+r.Name)).Str("reason", r.Reason).Msg("refused a part of the netmap")
	}
	if t.Announces {
		l.cfg.Announces()
	}
	l.lookAtKeysSoon()
	return ack
}

// FollowApplied tells the hub what became of an apply that it did not ask for, if the outcome is
// another.
func (l *Link) FollowApplied(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case out := <-l.host.Applied():
			if l.want.Have() == (protocol.NetmapVersion{}) || !l.noteAcked(out.Number, out.Ack) {
				continue
			}
			if err := l.control.Ack(out.Ack); err != nil {
				l.log.Debug().Err(err).Msg("changed acknowledgement was not sent")
			}
		}
	}
}

// noteAcked remembers what the hub is told of the apply of this number; it reports whether
// that is new.
func (l *Link) noteAcked(apply uint64, ack protocol.NetmapAck) bool {
	text := fmt.Sprint(ack.Refused, ack.Errors)
	l.mu.Lock()
	defer l.mu.Unlock()
	if apply < l.ackedApply {
		return false
	}
	l.ackedApply = apply
	changed := text != l.acked
	l.acked = text
	return changed
}

// setRevoked withdraws all peers, across restarts too, until a hub welcomes
// this node again.
func (l *Link) setRevoked(ctx context.Context) {
	if !l.want.Revoke() {
		return
	}
	l.log.Error().Msg("this node was revoked: no peer is reached any more; join again with a new token, or run 'causeway-agent leave'")
	l.want.SaveOrTell()
	l.host.Reapply(ctx)
}
