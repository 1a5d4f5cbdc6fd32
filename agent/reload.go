package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"causeway/agent/config"
	"causeway/agent/items"
	"causeway/protocol"
)

// errReloaded ends a control session, so that the next one tells the hub what
// was configured anew.
var errReloaded = errors.New("the configuration was reloaded")

// features are what a netmap may require of this agent, and a hub may ask of it.
func features(c config.Config) []string {
	out := []string{protocol.FeatureMark, protocol.FeatureBulk}
	for _, k := range items.Kinds() {
		out = append(out, protocol.ItemFeature(k))
	}
	if c.Upgrade.Allow {
		out = append(out, protocol.FeatureUpgrade)
	}
	return out
}

// Reload takes what a running agent can take of c, and says of the rest that
// it needs a restart. It may be called while Run runs.
func (a *Agent) Reload(ctx context.Context, c config.Config) {
	if later := a.live.Reload(c); len(later) > 0 {
		a.log.Warn().Str("settings", strings.Join(later, ", ")).Msg("configuration reloaded, but these need a restart: systemctl restart causeway-agent")
	} else {
		a.log.Info().Msg("configuration reloaded")
	}
	a.reapply(ctx)
	a.redial(errReloaded)
}

// redial ends the control session, if there is one, so that the next begins at once.
func (a *Agent) redial(why error) {
	a.mu.Lock()
	end := a.endSession
	a.mu.Unlock()
	if end != nil {
		end(why)
	}
}

// alivePoll is how often Alive looks whether a change is done.
const alivePoll = 20 * time.Millisecond

// Alive returns an error if the agent is stuck: the tunnel, its own state, or
// a change to host and tunnel that does not end. Hubs that do not answer are no
// reason: a new start would not help.
func (a *Agent) Alive(ctx context.Context) error {
	a.tunnel.Paths() // takes the underlay's and the engine's locks
	a.board.List()
	a.want.Have()
	if err := a.lockApply(ctx); err != nil {
		return err
	}
	a.applyMu.Unlock()
	return nil
}

// lockApply takes applyMu, unless ctx ends before.
func (a *Agent) lockApply(ctx context.Context) error {
	for !a.applyMu.TryLock() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("a change to the host's network does not end: %w", ctx.Err())
		case <-time.After(alivePoll):
		}
	}
	return nil
}
