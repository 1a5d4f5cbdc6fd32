package hub

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"causeway/hub/bus"
	"causeway/hub/disk"
)

const diskInterval = time.Second

// watchDisk says when the disk has no more room and when it has again, and opens
// the bus anew after a write to it failed. A disk that takes no writes ends the
// hub: it could acknowledge nothing.
func watchDisk(ctx context.Context, guard *disk.Guard, nats *bus.Server, log zerolog.Logger) error {
	t := time.NewTicker(diskInterval)
	defer t.Stop()
	full := false
	for {
		err := guard.Check()
		if err == nil && nats.Failed() {
			if err = guard.Probe(); err == nil {
				log.Warn().Msg("a write to the store failed, opening it anew")
				if err := nats.Reopen(); err != nil {
					return err
				}
			}
		}
		var f *disk.FullError
		switch {
		case errors.As(err, &f):
			if !full {
				log.Error().Err(err).Msg("no change is taken")
			}
			full = true
		case err != nil:
			return err
		case full:
			log.Info().Msg("the disk has room again, changes are taken")
			full = false
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}
