package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"causeway/agent/health"
	"causeway/protocol"
)

const (
	// tick is how often age and what could not be applied are looked at unasked.
	tick = 10 * time.Second
	// firewallTick is how often the host's firewalls are tried unasked.
	firewallTick = 6 * time.Second
	// blockedTick is how soon an operator who mended a firewall sees that it is so.
	blockedTick = 4 * time.Second
)

// takeNetmap is the control channel's: it applies what may be applied, stores
// the netmap and says what was refused.
func (a *Agent) takeNetmap(ctx context.Context, n protocol.Netmap) protocol.NetmapAck {
	a.repairs.first(ctx)
	a.applyMu.Lock()
	defer a.applyMu.Unlock()
	t, refusal := a.want.Take(n)
	if refusal != nil {
		return *refusal
	}
	ack := a.apply(ctx)
	ack.Refused, ack.Lost = append(ack.Refused, t.Refused...), t.Lost
	if err := a.want.Save(); err != nil {
		ack.Errors = append(ack.Errors, err.Error())
	}
	a.noteAcked(ack)
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

// reapply applies what is held once more, as after a change on the host, and
// tells the hub if the outcome is another.
func (a *Agent) reapply(ctx context.Context) {
	a.repairs.first(ctx)
	a.applyMu.Lock()
	defer a.applyMu.Unlock()
	ack := a.apply(ctx)
	if a.want.Have() == (protocol.NetmapVersion{}) || !a.noteAcked(ack) {
		return
	}
	if err := a.control.Ack(ack); err != nil {
		a.log.Debug().Err(err).Msg("changed acknowledgement was not sent")
	}
}

// noteAcked remembers what the hub is told of a netmap; it reports whether
// that is new.
func (a *Agent) noteAcked(ack protocol.NetmapAck) bool {
	text := fmt.Sprint(ack.Refused, ack.Errors)
	a.mu.Lock()
	defer a.mu.Unlock()
	changed := text != a.acked
	a.acked = text
	return changed
}

// forwards reports whether there is something behind this host.
func (a *Agent) forwards() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.result.Local) > 0
}

// firewallAgain is how long after a trial that was blocked the next one begins.
const firewallAgain = 2 * time.Second

// askFirewall has the host's firewalls looked at soon; no apply waits for that.
func (a *Agent) askFirewall() {
	select {
	case a.firewallDue <- struct{}{}:
	default:
	}
}

// followFirewall looks at the host's firewalls whenever that is due.
func (a *Agent) followFirewall(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.firewallDue:
			a.lookAtFirewall(ctx, a.forwards())
		}
	}
}

// lookAtFirewall sets the condition. Packets that came through say more than rules that
// were read: these count where no packet could be tried.
func (a *Agent) lookAtFirewall(ctx context.Context, forwards bool) {
	if !forwards {
		a.board.Set(health.Firewall, "") // nothing of ours is forwarded
		return
	}
	t, err := a.host.Try(ctx, a.tunnel.Inject)
	if t.Blocked == "" {
		a.firewallShut = false
	}
	if err != nil {
		a.log.Debug().Err(err).Msg("no packet could be tried through the host's firewalls")
	}
	switch {
	case ctx.Err() != nil:
		return
	case t.Blocked != "":
		// Rules and routes may have changed amid the trial: what is blocked is so twice.
		if again := a.firewallShut; again || !a.board.OK(health.Firewall) {
			a.board.Set(health.Firewall, t.Blocked)
		} else {
			time.AfterFunc(firewallAgain, a.askFirewall)
		}
		a.firewallShut = true
		return
	case t.Whole:
		a.board.Set(health.Firewall, "")
		return
	}
	what, readErr := a.host.ForwardBlockedBy(ctx)
	switch {
	case ctx.Err() != nil:
	case readErr != nil:
		a.board.SetError(health.Firewall, readErr)
	case what != "":
		a.board.Set(health.Firewall, "forwarded traffic is dropped by "+what)
	case err != nil:
		a.board.SetNote(health.Firewall, "read, not tried: "+err.Error())
	default:
		a.board.Set(health.Firewall, "")
	}
}

// setRevoked withdraws all peers, across restarts too, until a hub welcomes
// this node again.
func (a *Agent) setRevoked(ctx context.Context) {
	if !a.want.Revoke() {
		return
	}
	a.log.Error().Msg("this node was revoked: no peer is reached any more; join again with a new token, or run 'causeway-agent leave'")
	a.want.SaveOrTell()
	a.reapply(ctx)
}
