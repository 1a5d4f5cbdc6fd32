package agent

import (
	"context"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"causeway/agent/config"
	"causeway/agent/desired"
	"causeway/agent/hublink"
	"causeway/agent/upgrade"
	"causeway/protocol"
)

// upgradePoll is how often the netmap's wish and root's result are looked at.
const upgradePoll = time.Second

// upgrades does what the hub wishes of this node's version.
type upgrades struct {
	log     zerolog.Logger
	dir     string // where root tells of upgrades
	state   string // the state directory
	version string
	live    *config.Live
	want    *desired.Desired
	link    *hublink.Link

	told   *atomic.Pointer[protocol.UpgradeStatus] // the last upgrade that was asked for
	unread *protocol.UpgradeStatus                 // said of a wish while root's result does not read; run's alone
}

// run does what the netmap wishes, if the host allows it.
func (u *upgrades) run(ctx context.Context) error {
	t := time.NewTicker(upgradePoll)
	defer t.Stop()
	for {
		if wish := u.due(); wish.ID != 0 {
			u.log.Info().Str("version", wish.Version).Msg("the hub asks for an upgrade")
			u.tell(wish, protocol.UpgradeFetching, nil)
			if err := u.fetch(ctx, wish); err != nil && ctx.Err() == nil {
				u.log.Error().Err(err).Str("version", wish.Version).Msg("the upgrade failed, this version goes on")
				u.tell(wish, protocol.UpgradeFailed, err)
			} else if ctx.Err() == nil {
				u.tell(wish, protocol.UpgradeInstalling, nil)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// due brings what is told of upgrades up to date, and returns the wish that
// nothing was done about yet.
func (u *upgrades) due() (due protocol.UpgradeWish) {
	result, err := upgrade.ReadResult(u.dir)
	wish, before := u.want.Now().Netmap().Self.Upgrade, u.told.Load()
	now := before
	if err == nil && u.unread != nil { // it reads again
		if now == u.unread {
			now = nil
		}
		u.unread = nil
	}
	if err == nil && result.ID != 0 && (now == nil || now.ID == result.ID) {
		now = &result.UpgradeStatus
	}
	switch {
	case wish == nil || wish.ID == 0 || now != nil && now.ID == wish.ID:
	case wish.ID == result.ID: // while another was told of
		now = &result.UpgradeStatus
	case wish.Version == u.version: // installed by other means
		now = &protocol.UpgradeStatus{UpgradeWish: *wish, State: protocol.UpgradeDone}
	case err == nil:
		due = *wish
	default: // what became of the last one is not known: it is not begun, and the hub hears why
		u.unread = &protocol.UpgradeStatus{UpgradeWish: *wish, State: protocol.UpgradeFailed, Error: protocol.OneLine(err.Error(), 500)}
		now = u.unread
	}
	u.told.Store(now)
	if now != before && (before == nil || now == nil || *now != *before) {
		u.link.Changed()
	}
	return due
}

func (u *upgrades) tell(wish protocol.UpgradeWish, state protocol.UpgradeState, err error) {
	st := &protocol.UpgradeStatus{UpgradeWish: wish, State: state}
	if err != nil {
		st.Error = protocol.OneLine(err.Error(), 500)
	}
	u.told.Store(st)
	u.link.Changed()
}

// fetch fetches a release over the tunnel, beside the control session.
func (u *upgrades) fetch(ctx context.Context, wish protocol.UpgradeWish) error {
	tr := &http.Transport{DisableKeepAlives: true, DisableCompression: true, ResponseHeaderTimeout: 30 * time.Second,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return u.link.DialHub(ctx, protocol.PackagePort)
		}}
	return upgrade.Fetch(ctx, &http.Client{Transport: tr}, "http://hub", wish, runtime.GOARCH, u.state, u.live.Now().Upgrade)
}
