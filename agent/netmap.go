package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"causeway/agent/desired"
	"causeway/agent/health"
	"causeway/agent/onhost"
	"causeway/protocol"
)

const (
	// tick is how often age and what could not be applied are looked at unasked.
	tick = 10 * time.Second
	// pinsTick is how soon an operator who gave pins back sees that they are known.
	pinsTick = 4 * time.Second
	// clockTick is how often the clocks are looked at.
	clockTick = time.Second
)

// takeNetmap is the control channel's: it applies what may be applied, stores
// the netmap and says what was refused.
func (a *Agent) takeNetmap(ctx context.Context, n protocol.Netmap) (ack protocol.NetmapAck) {
	var t desired.Taken
	var refusal *protocol.NetmapAck
	a.host.ApplyWith(ctx, func() bool {
		t, refusal = a.want.Take(n)
		return refusal == nil
	}, func(out onhost.Outcome) {
		ack = out.Ack
		ack.Refused, ack.Lost = append(ack.Refused, t.Refused...), t.Lost
		if err := a.want.Save(); err != nil {
			ack.Errors = append(ack.Errors, err.Error())
		}
		a.noteAcked(out.Number, ack)
	})
	if refusal != nil {
		return *refusal
	}
	a.log.Info().Stringer("netmap", t.Netmap.NetmapVersion).Int("peers", len(t.Netmap.Peers)).Int("refused", len(ack.Refused)).Int("errors", len(ack.Errors)).Msg("netmap applied")
	for _, r := range ack.Refused {
		a.log.Warn().Uint32("peer", uint32(r.Peer)).Str("prefix", r.Prefix).Str("item", strings.TrimSpace(r.Kind+" "+r.Name)).Str("reason", r.Reason).Msg("refused a part of the netmap")
	}
	if t.Announces {
		a.facts.Changed()
	}
	a.lookAtKeysSoon()
	return ack
}

// followApplied tells the hub what became of an apply that it did not ask for, if the outcome is
// another.
func (a *Agent) followApplied(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case out := <-a.host.Applied():
			if a.want.Have() == (protocol.NetmapVersion{}) || !a.noteAcked(out.Number, out.Ack) {
				continue
			}
			if err := a.control.Ack(out.Ack); err != nil {
				a.log.Debug().Err(err).Msg("changed acknowledgement was not sent")
			}
		}
	}
}

// followNetmap applies again what is wanted when that is another without a netmap: when the
// hub list changed, when an apply failed, when lost pins are there again, and when the netmap grows too old.
func (a *Agent) followNetmap(ctx context.Context) error {
	hubs := a.want.WatchHubs()
	age, pins, clock := time.NewTicker(tick), time.NewTicker(pinsTick), time.NewTicker(clockTick)
	defer age.Stop()
	defer pins.Stop()
	defer clock.Stop()
	for {
		again := true
		select {
		case <-ctx.Done():
			return nil
		case <-hubs: // the wall is around them
		case <-clock.C:
			a.board.Set(health.Clock, a.want.ClockNote())
			again = false
		case <-pins.C:
			again = a.want.FindPins()
		case <-age.C:
			a.want.Confirm(false)
			stored := !a.board.OK(health.State) && a.want.SaveAgain() // the hub was told that it is not
			f := a.host.Facts()
			again = stored || len(f.Errors) > 0 || a.want.Expired() != f.Expired
			a.board.Set(health.Netmap, a.want.Cause(f.Expired, f.Result.Refused))
		}
		if again {
			a.host.Reapply(ctx)
		}
	}
}

// noteAcked remembers what the hub is told of the apply of this number; it reports whether
// that is new.
func (a *Agent) noteAcked(apply uint64, ack protocol.NetmapAck) bool {
	text := fmt.Sprint(ack.Refused, ack.Errors)
	a.mu.Lock()
	defer a.mu.Unlock()
	if apply < a.ackedApply {
		return false
	}
	a.ackedApply = apply
	changed := text != a.acked
	a.acked = text
	return changed
}

// setRevoked withdraws all peers, across restarts too, until a hub welcomes
// this node again.
func (a *Agent) setRevoked(ctx context.Context) {
	if !a.want.Revoke() {
		return
	}
	a.log.Error().Msg("this node was revoked: no peer is reached any more; join again with a new token, or run 'causeway-agent leave'")
	a.want.SaveOrTell()
	a.host.Reapply(ctx)
}
