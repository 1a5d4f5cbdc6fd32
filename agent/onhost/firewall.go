package onhost

import (
	"context"
	"time"

	"causeway/agent/health"
)

// forwards reports whether there is something behind this host.
func (k *Keeper) forwards() bool {
	return len(k.Facts().Result.Local) > 0
}

const (
	// firewallTick is how often the host's firewalls are tried unasked.
	firewallTick = 6 * time.Second
	// blockedTick is how soon an operator who mended a firewall, or gave a name free, sees that it is so.
	blockedTick = 4 * time.Second
)

// firewallAgain is how long after a trial that was blocked the next one begins.
const firewallAgain = 2 * time.Second

// askFirewall has the host's firewalls looked at soon; no apply waits for that.
func (k *Keeper) askFirewall() {
	select {
	case k.firewallDue <- struct{}{}:
	default:
	}
}

// FollowFirewall looks at the host's firewalls whenever that is due, and now and then: rules of
// others are too many to look at each change.
func (k *Keeper) FollowFirewall(ctx context.Context) error {
	unasked, blocked := time.NewTicker(firewallTick), time.NewTicker(blockedTick)
	defer unasked.Stop()
	defer blocked.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-unasked.C:
		case <-blocked.C:
			if k.board.OK(health.Firewall) {
				continue
			}
		case <-k.firewallDue:
		}
		k.lookAtFirewall(ctx, k.forwards())
	}
}

// lookAtFirewall sets the condition. Packets that came through say more than rules that
// were read: these count where no packet could be tried.
func (k *Keeper) lookAtFirewall(ctx context.Context, forwards bool) {
	if !forwards {
		k.board.Set(health.Firewall, "") // nothing of ours is forwarded
		return
	}
	t, err := k.look.Try(ctx, k.tunnel.Inject)
	if t.Blocked == "" {
		k.firewallShut = false
	}
	if err != nil {
		k.log.Debug().Err(err).Msg("no packet could be tried through the host's firewalls")
	}
	switch {
	case ctx.Err() != nil:
		return
	case t.Blocked != "":
		// Rules and routes may have changed amid the trial: what is blocked is so twice.
		if again := k.firewallShut; again || !k.board.OK(health.Firewall) {
			k.board.Set(health.Firewall, t.Blocked)
		} else {
			time.AfterFunc(firewallAgain, k.askFirewall)
		}
		k.firewallShut = true
		return
	case t.Whole:
		k.board.Set(health.Firewall, "")
		return
	}
	what, readErr := k.look.ForwardBlockedBy(ctx)
	switch {
	case ctx.Err() != nil:
	case readErr != nil:
		k.board.SetError(health.Firewall, readErr)
	case what != "":
		k.board.Set(health.Firewall, "forwarded traffic is dropped by "+what)
	case err != nil:
		k.board.SetNote(health.Firewall, "read, not tried: "+err.Error())
	default:
		k.board.Set(health.Firewall, "")
	}
}
