package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"causeway/hub/api"
	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
)

// waveLimit is how long a wave may take: an agent fetches for ten minutes at most,
// and has a minute to prove the new version.
const waveLimit = 15 * time.Minute

// upgrade leads the upgrade under way from wave to wave: on when all nodes of a wave are ready
// at the new version, to its end when one has failed.
func (l *Loop) upgrade(ctx context.Context, t *turn) error {
	u := t.state.Upgrade
	if u == nil || u.State != state.UpgradeRunning {
		return nil
	}
	c := change{who: "hub", then: func(_ *state.State, err error) {
		if err != nil && ctx.Err() == nil && !state.IsKind(err, state.Conflict) {
			l.cfg.Log.Warn().Err(err).Msg("how an upgrade stands was not stored, trying again")
		}
	}}
	switch why, done := wave(t.state, t.fleet(), t.now); {
	case why != "":
		l.cfg.Log.Error().Str("version", u.Version).Str("cause", why).Msg("upgrade stopped: a node failed")
		c.why, c.decide = "upgrade failed", func(d *state.Draft) error {
			return state.EndUpgrade(d, u.ID, state.UpgradeFailed, protocol.OneLine(why, fleet.MaxText))
		}
	case done:
		c.why, c.decide = fmt.Sprintf("upgrade wave %d done", u.Wave+1), func(d *state.Draft) error {
			return state.AdvanceUpgrade(d, u.ID, u.Wave)
		}
	default:
		return nil
	}
	t.acted = true
	l.storeAlone(ctx, t.step, c)
	return nil
}

// wave judges the wave under way: why it failed, or whether all of it is done.
func wave(st *state.State, fl fleet.Snapshot, now time.Time) (why string, done bool) {
	u := st.Upgrade
	var waiting []string
	for _, n := range u.Waves[u.Wave] {
		node := st.Nodes.Get(n)
		p, text := progressOf(u, node, fl.Info(node))
		switch p {
		case api.UpgradeNodeFailed:
			return "node " + node.Name + ": " + text, false
		case api.UpgradeNodeDone, api.UpgradeNodeGone:
		default:
			waiting = append(waiting, node.Name+": "+text)
		}
	}
	if len(waiting) > 0 && now.Sub(u.Since) > waveLimit {
		return fmt.Sprintf("not done within %s: %s", waveLimit, strings.Join(waiting, "; ")), false
	}
	return "", len(waiting) == 0
}

// UpgradeOf tells how far a node is with an upgrade, and more about that.
func (l *Loop) UpgradeOf(u *state.Upgrade, n state.Node) (progress, text string) {
	return progressOf(u, n, l.cfg.Fleet.Info(n))
}

func progressOf(u *state.Upgrade, n state.Node, i fleet.Info) (progress, text string) {
	if !n.Live() {
		return api.UpgradeNodeGone, "it is no part of the cluster any more"
	}
	told := i.Status.Upgrade
	if told != nil && told.ID != u.ID {
		told = nil
	}
	switch {
	case !slices.ContainsFunc(u.Waves[:u.Wave+1], func(w []protocol.NodeNumber) bool { return slices.Contains(w, n.Number) }):
		return api.UpgradeNodeWaiting, "its wave has not come"
	case told != nil && told.State == protocol.UpgradeFailed:
		return api.UpgradeNodeFailed, told.Error
	case i.Connected.IsZero():
		return api.UpgradeNodeWorking, "it is not connected"
	case told == nil:
		return api.UpgradeNodeWorking, "asked"
	case told.State != protocol.UpgradeDone:
		return api.UpgradeNodeWorking, string(told.State)
	case i.Hello.AgentVersion != u.Version:
		return api.UpgradeNodeWorking, "it still runs " + i.Hello.AgentVersion
	case i.State != api.NodeReady:
		return api.UpgradeNodeWorking, "it is " + i.State + ": " + strings.Join(i.Reasons, "; ")
	}
	return api.UpgradeNodeDone, ""
}
