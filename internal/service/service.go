// Package service is what a daemon shares with the manager that runs it, such
// as systemd: it says when it is ready, feeds the watchdog while it is well,
// takes the sockets that the manager holds, and reads secrets that the manager
// hands over. Without a manager all of that does nothing.
package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"

	"causeway/internal/memlimit"
)

// Daemon is a program that runs until it is told to end.
type Daemon struct {
	Run   func(context.Context) error // works until the context ends, and returns nil then
	Ready <-chan struct{}             // closed when it does its work
	// Alive returns an error if the daemon is stuck beyond what it mends by
	// itself. It may block: no answer in time counts as an error. Nil: it is
	// always alive.
	Alive func(context.Context) error
	// Reload is called on SIGHUP. Nil: SIGHUP ends the process as it does by default.
	Reload func() error
	// StopWithin bounds how long Run may take to end; 0: as long as it wants.
	StopWithin time.Duration
	Log        zerolog.Logger
}

// Run runs d until ctx ends. A daemon that ends by itself without an error is
// nothing unusual: it was told to by other ways. The runtime's memory is held within the
// control group's.
func Run(ctx context.Context, d Daemon) error {
	memlimit.Set(d.Log)
	run, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- d.Run(run) }()

	var hangup chan os.Signal
	if d.Reload != nil {
		hangup = make(chan os.Signal, 1)
		signal.Notify(hangup, syscall.SIGHUP)
		defer signal.Stop(hangup)
	}
	ready := d.Ready
	for {
		select {
		case <-ready:
			ready = nil
			d.notify(daemon.SdNotifyReady)
			if every, err := daemon.SdWatchdogEnabled(false); err != nil {
				d.Log.Warn().Err(err).Msg("the watchdog's interval does not read, it is not fed")
			} else if every > 0 {
				go d.watch(run, every)
			}
		case <-hangup:
			d.reload()
		case err := <-done:
			return err
		case <-ctx.Done():
			d.notify(daemon.SdNotifyStopping)
			if d.StopWithin == 0 {
				return <-done
			}
			select {
			case err := <-done:
				return err
			case <-time.After(d.StopWithin):
				return fmt.Errorf("it did not stop within %s and was ended", d.StopWithin)
			}
		}
	}
}

func (d *Daemon) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		d.Log.Warn().Err(err).Str("notify", state).Msg("the service manager was not told")
	}
}

func (d *Daemon) reload() {
	d.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
	if err := d.Reload(); err != nil {
		d.Log.Error().Err(err).Msg("configuration not reloaded, the old one stays")
	}
	d.notify(daemon.SdNotifyReady)
}

// watch feeds the watchdog, which ends the process when it hears nothing for
// `every`: three times in that time, and only while the daemon is alive.
func (d *Daemon) watch(ctx context.Context, every time.Duration) {
	t := time.NewTicker(every / 3)
	defer t.Stop()
	for {
		if err := d.alive(ctx, every/2); err == nil {
			d.notify(daemon.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			d.Log.Error().Err(err).Msg("not alive, the watchdog is not fed")
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// errSilent is what a daemon that does not even say that it is stuck gets.
var errSilent = errors.New("no answer in time")

func (d *Daemon) alive(ctx context.Context, within time.Duration) error {
	if d.Alive == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	answer := make(chan error, 1)
	go func() { answer <- d.Alive(ctx) }()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return errSilent
	}
}
