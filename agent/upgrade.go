package agent

import (
	"context"
	"errors"
	"net"
	"net/http"
	"runtime"
	"time"

	"causeway/agent/upgrade"
	"causeway/protocol"
)

// upgradePoll is how often the netmap's wish and root's result are looked at.
const upgradePoll = time.Second

// errNoHub says that there is no hub to fetch from.
var errNoHub = errors.New("no control session with a hub")

// followUpgrade does what the netmap wishes, if the host allows it.
func (a *Agent) followUpgrade(ctx context.Context) error {
	t := time.NewTicker(upgradePoll)
	defer t.Stop()
	for {
		if wish := a.upgradeDue(); wish.ID != 0 {
			a.log.Info().Str("version", wish.Version).Msg("the hub asks for an upgrade")
			a.setUpgrade(wish, protocol.UpgradeFetching, nil)
			if err := a.fetchUpgrade(ctx, wish); err != nil && ctx.Err() == nil {
				a.log.Error().Err(err).Str("version", wish.Version).Msg("the upgrade failed, this version goes on")
				a.setUpgrade(wish, protocol.UpgradeFailed, err)
			} else if ctx.Err() == nil {
				a.setUpgrade(wish, protocol.UpgradeInstalling, nil)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// upgradeDue brings what is told of upgrades up to date, and returns the wish that
// nothing was done about yet.
func (a *Agent) upgradeDue() (due protocol.UpgradeWish) {
	result, err := upgrade.ReadResult(a.cfg.UpgradeDir)
	a.mu.Lock()
	wish := a.want.Now().Netmap().Self.Upgrade
	before := a.upgraded
	if err == nil && a.unread != nil { // it reads again
		if a.upgraded == a.unread {
			a.upgraded = nil
		}
		a.unread = nil
	}
	if err == nil && result.ID != 0 && (a.upgraded == nil || a.upgraded.ID == result.ID) {
		a.upgraded = &result.UpgradeStatus
	}
	now := a.upgraded
	switch {
	case wish == nil || wish.ID == 0 || now != nil && now.ID == wish.ID:
	case wish.ID == result.ID: // while another was told of
		a.upgraded = &result.UpgradeStatus
	case wish.Version == a.cfg.Version: // installed by other means
		a.upgraded = &protocol.UpgradeStatus{UpgradeWish: *wish, State: protocol.UpgradeDone}
	case err == nil:
		due = *wish
	default: // what became of the last one is not known: it is not begun, and the hub hears why
		a.unread = &protocol.UpgradeStatus{UpgradeWish: *wish, State: protocol.UpgradeFailed, Error: protocol.OneLine(err.Error(), 500)}
		a.upgraded = a.unread
	}
	changed := a.upgraded != before && (before == nil || *a.upgraded != *before)
	a.mu.Unlock()
	if changed {
		a.control.Changed()
	}
	return due
}

func (a *Agent) setUpgrade(wish protocol.UpgradeWish, state protocol.UpgradeState, err error) {
	st := &protocol.UpgradeStatus{UpgradeWish: wish, State: state}
	if err != nil {
		st.Error = protocol.OneLine(err.Error(), 500)
	}
	a.mu.Lock()
	a.upgraded = st
	a.mu.Unlock()
	a.control.Changed()
}

// fetchUpgrade fetches a release over the tunnel, beside the control session.
func (a *Agent) fetchUpgrade(ctx context.Context, wish protocol.UpgradeWish) error {
	tr := &http.Transport{DisableKeepAlives: true, DisableCompression: true, ResponseHeaderTimeout: 30 * time.Second,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			a.mu.Lock()
			hub := a.hub
			a.mu.Unlock()
			if hub == 0 {
				return nil, errNoHub
			}
			from, to, err := a.hubAddrs(hub, protocol.PackagePort)
			if err != nil {
				return nil, err
			}
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			return a.dial(ctx, from, to)
		}}
	return upgrade.Fetch(ctx, &http.Client{Transport: tr}, "http://hub", wish, runtime.GOARCH, a.cfg.Store.Dir(), a.live.Now().Upgrade)
}
