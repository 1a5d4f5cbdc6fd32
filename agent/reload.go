package agent

import (
	"context"
	"strings"

	"causeway/agent/config"
)

// Reload takes what a running agent can take of c, and says of the rest that
// it needs a restart. It may be called while Run runs.
func (a *Agent) Reload(ctx context.Context, c config.Config) {
	if later := a.live.Reload(c); len(later) > 0 {
		a.log.Warn().Str("settings", strings.Join(later, ", ")).Msg("configuration reloaded, but these need a restart: systemctl restart causeway-agent")
	} else {
		a.log.Info().Msg("configuration reloaded")
	}
	a.host.Reapply(ctx)
	a.link.Reloaded()
}

// Alive returns an error if the agent is stuck: the tunnel, its own state, or
// a change to host and tunnel that does not end. Hubs that do not answer are no
// reason: a new start would not help.
func (a *Agent) Alive(ctx context.Context) error {
	a.tunnel.Paths() // takes the underlay's and the engine's locks
	a.board.List()
	a.want.Have()
	release, err := a.host.Hold(ctx)
	if err == nil {
		release()
	}
	return err
}
