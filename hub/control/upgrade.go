package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"causeway/hub/api"
	"causeway/hub/facts/event"
	"causeway/hub/state"
	"causeway/protocol"
)

const (
	// upgradePoll is how often nodes of a wave are looked at.
	upgradePoll = 500 * time.Millisecond
	// waveLimit is how long a wave may take: an agent fetches for ten minutes at most,
	// and has a minute to prove the new version.
	waveLimit = 15 * time.Minute
)

// RunUpgrades leads the upgrade under way from wave to wave until ctx ends: on
// when all nodes of a wave are ready at the new version, to its end when one has
// failed.
func (s *Server) RunUpgrades(ctx context.Context) error {
	t := time.NewTicker(upgradePoll)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		u := s.cfg.Store.State().Upgrade
		if u == nil || u.State != state.UpgradeRunning {
			continue
		}
		why, done := s.wave(u, time.Now())
		var err error
		switch {
		case why != "":
			s.cfg.Log.Error().Str("version", u.Version).Str("cause", why).Msg("upgrade stopped: a node failed")
			_, err = s.cfg.Store.Update(ctx, "hub", "upgrade failed", func(d *state.Draft) error {
				return state.EndUpgrade(d, u.ID, state.UpgradeFailed, protocol.OneLine(why, maxText))
			})
		case done:
			_, err = s.cfg.Store.Update(ctx, "hub", fmt.Sprintf("upgrade wave %d done", u.Wave+1), func(d *state.Draft) error {
				return state.AdvanceUpgrade(d, u.ID, u.Wave)
			})
		}
		if err != nil && ctx.Err() == nil && !state.IsKind(err, state.Conflict) {
			s.cfg.Log.Warn().Err(err).Msg("how an upgrade stands was not stored, trying again")
		}
	}
}

// wave judges the wave under way: why it failed, or whether all of it is done.
func (s *Server) wave(u *state.Upgrade, now time.Time) (why string, done bool) {
	st := s.cfg.Store.State()
	var waiting []string
	for _, n := range u.Waves[u.Wave] {
		node := st.Nodes[n]
		p, text := s.UpgradeOf(u, node)
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
func (s *Server) UpgradeOf(u *state.Upgrade, n state.Node) (progress, text string) {
	if !n.Live() {
		return api.UpgradeNodeGone, "it is no part of the cluster any more"
	}
	i := s.Info(n)
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

// noteUpgrade makes events of what a node tells of its upgrade. s.mu is held.
func (s *Server) noteUpgrade(name string, before, now *protocol.UpgradeStatus) {
	if now == nil || before != nil && *before == *now {
		return
	}
	u := s.cfg.Store.State().Upgrade
	if u == nil || u.ID != now.ID || before == nil && u.State != state.UpgradeRunning {
		return // of the past: this hub has just started
	}
	switch now.State {
	case protocol.UpgradeDone:
		s.cfg.Events.Add(event.NodeUpgraded, name, "upgraded to "+now.Version)
	case protocol.UpgradeFailed:
		s.cfg.Events.Add(event.UpgradeFailed, name, "upgrade to "+now.Version+" failed: "+now.Error)
	}
}

func cleanUpgrade(u *protocol.UpgradeStatus) *protocol.UpgradeStatus {
	if u == nil || u.ID == 0 {
		return nil
	}
	return &protocol.UpgradeStatus{UpgradeWish: protocol.UpgradeWish{ID: u.ID, Version: protocol.OneLine(u.Version, 64)},
		State: protocol.UpgradeState(protocol.OneLine(string(u.State), 16)), Error: protocol.OneLine(u.Error, maxText)}
}
