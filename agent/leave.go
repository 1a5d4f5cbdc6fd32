package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"causeway/agent/debug"
)

// errLeft ends Run after a leave.
var errLeft = errors.New("left")

// leaveReach is how long a leave waits for a hub to tell: one that can be
// reached is within a second of an agent's start.
const leaveReach = 3 * time.Second

// leave tells the hub, if there is one, gives the identity up and ends Run.
func (a *answers) leave(ctx context.Context) debug.LeaveResult {
	r := debug.LeaveResult{Told: true}
	known := a.want.Now().Revoked()
	var err error
	if !known { // an agent that has just started is about to reach its hub
		wait, cancel := context.WithTimeout(ctx, leaveReach)
		err = a.connected(wait)
		cancel()
	}
	if err == nil {
		err = a.link.Leave(ctx)
	}
	release, held := a.host.Hold(context.WithoutCancel(ctx)) // after a netmap that is being applied
	if held != nil {
		return debug.LeaveResult{Error: held.Error()}
	}
	defer release()
	revoked := a.want.Now().Revoked()
	if err != nil && !revoked { // a hub that revoked the node knows already
		r = debug.LeaveResult{Error: err.Error()}
	}
	// Here, not in the command that asked: a service manager may start the
	// agent again before that command has the state directory.
	if err := a.want.Leave(); err != nil {
		r.Error = err.Error()
	}
	a.stop(errLeft)
	return r
}

// connected waits for a control session. It fails with what keeps it away if
// ctx ends first.
func (a *answers) connected(ctx context.Context) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for !a.link.Connected() {
		select {
		case <-ctx.Done():
			for _, c := range a.board.List() {
				if !c.OK {
					return fmt.Errorf("%s: %s", c.Name, c.Cause)
				}
			}
			return ctx.Err()
		case <-t.C:
		}
	}
	return nil
}

// LeaveWhenConnected waits for a hub, tells it that this node leaves and ends
// Run. It fails, with the identity still there, if ctx ends first.
func (a *Agent) LeaveWhenConnected(ctx context.Context) error {
	if err := a.answers.connected(ctx); err != nil {
		return err
	}
	if r := a.answers.leave(ctx); !r.Told {
		return fmt.Errorf("%s", r.Error)
	}
	return nil
}
