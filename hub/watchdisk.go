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
// hub: it could acknowledge nothing. Too few descriptors or too little memory do not: they
// come back.
func watchDisk(ctx context.Context, guard *disk.Guard, nats *bus.Server, log zerolog.Logger) error {
	t := time.NewTicker(diskInterval)
	defer t.Stop()
	none := false // is taken
	for {
		err := guard.Check()
		var full *disk.FullError
		var short *disk.ShortageError
		if err == nil && nats.Failed() || errors.As(err, &short) {
			if err = guard.Probe(); err == nil && nats.Failed() {
				log.Warn().Msg("a write to the store failed, opening it anew")
				if err = guard.Explain(nats.Reopen()); err != nil && !errors.As(err, &short) {
					return err
				}
			}
		}
		switch {
		case errors.As(err, &full), errors.As(err, &short):
			if !none {
				log.Error().Err(err).Msg("no change is taken")
			}
			none = true
		case err != nil:
			return err
		case none:
			log.Info().Msg("writes go through again, changes are taken")
			none = false
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}
