package agent

import (
	"context"
	"time"

	"causeway/agent/health"
)

const (
	// tick is how often age and what could not be applied are looked at unasked.
	tick = 10 * time.Second
	// pinsTick is how soon an operator who gave pins back sees that they are known.
	pinsTick = 4 * time.Second
	// clockTick is how often the clocks are looked at.
	clockTick = time.Second
)

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
