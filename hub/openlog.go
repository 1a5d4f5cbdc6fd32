package hub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"causeway/hub/bus"
	"causeway/hub/state"
	"causeway/internal/durable"
)

// readLog reads the log in dir before the server that keeps it opens it, which would cut off
// what it cannot read. A log that is damaged where it matters is refused and left as it is; one of which
// every transaction is there is made anew from them.
func readLog(ctx context.Context, dir string, marker *state.Marker, log zerolog.Logger) (*state.Reading, *state.Marker, error) {
	read := func(m *state.Marker) (*state.Reading, error) {
		r, err := state.ReadFiles(ctx, filepath.Join(dir, natsDir), state.DirVault(filepath.Join(dir, vaultDir)), m, log)
		if err != nil {
			return nil, err
		}
		return r, r.Err()
	}
	r, err := read(marker)
	if err != nil || r.Clean {
		return r, marker, err
	}
	aside, err := remake(ctx, dir, r, func(*state.Store) error { return nil })
	if err != nil {
		return nil, nil, fmt.Errorf("make the state log anew, of which all transactions are there: %w", err)
	}
	log.Warn().AnErr("cause", r.Damage).Uint64("sequence", r.State.Seq).Str("file", aside).Msg("files of the state log were damaged, all transactions were there: the log was made anew, the damaged files were kept")
	if marker, err = openMarker(dir, false); err != nil {
		return nil, nil, err
	}
	r, err = read(marker)
	return r, marker, err
}

// Names below remakingDir.
const remadeMarker = markerFile + ".made"

// remake makes the log in dir anew from what r found, lets then change it, and puts it in the place of
// the one that is there, which it moves to the directory that it returns. A crash leaves one or
// the other, or what finishRemake finishes.
func remake(ctx context.Context, dir string, r *state.Reading, then func(*state.Store) error) (aside string, err error) {
	tmp := filepath.Join(dir, remakingDir)
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return "", err
	}
	m, err := state.NewMarker(filepath.Join(tmp, remadeMarker))
	if err != nil {
		return "", err
	}
	if err := fillLog(ctx, filepath.Join(tmp, natsDir), filepath.Join(dir, vaultDir), r, m, then); err != nil {
		return "", err
	}
	if err := os.Rename(filepath.Join(tmp, remadeMarker), filepath.Join(tmp, markerFile)); err != nil {
		return "", err
	}
	if err := durable.SyncDir(tmp); err != nil {
		return "", err
	}
	return finishRemake(dir)
}

func fillLog(ctx context.Context, store, vault string, r *state.Reading, m *state.Marker, then func(*state.Store) error) error {
	nats, err := bus.Start(ctx, bus.Config{Dir: store, Log: zerolog.Nop()})
	if err != nil {
		return err
	}
	defer nats.Close()
	conn, err := nats.StateConn()
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	if err := r.Copy(ctx, js); err != nil {
		return err
	}
	s, err := state.Open(ctx, state.StoreConfig{JetStream: js, Marker: m, Vault: state.DirVault(vault), Base: r, Log: zerolog.Nop()})
	if err != nil {
		return err
	}
	if s.State().Seq != r.State.Seq {
		return fmt.Errorf("%d transactions were written, and %d are there", r.State.Seq, s.State().Seq)
	}
	return then(s)
}

// finishRemake puts a log that was made anew in its place, if there is one that is whole.
func finishRemake(dir string) (aside string, err error) {
	tmp := filepath.Join(dir, remakingDir)
	if _, err := os.Lstat(tmp); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	ready := filepath.Join(tmp, markerFile)
	if _, err := os.Lstat(ready); err == nil {
		account := filepath.Join(natsDir, "jetstream", state.Account)
		fresh, place := filepath.Join(tmp, account), filepath.Join(dir, account)
		aside = filepath.Join(dir, "damaged-"+time.Now().UTC().Format("20060102T150405.000Z"))
		if _, err := os.Lstat(fresh); err == nil {
			if err := os.MkdirAll(aside, 0o700); err != nil {
				return "", err
			}
			if err := move(place, filepath.Join(aside, state.Account)); err != nil {
				return "", err
			}
			if err := os.MkdirAll(filepath.Dir(place), 0o700); err != nil {
				return "", err
			}
			if err := move(fresh, place); err != nil {
				return "", err
			}
			if err := move(filepath.Join(dir, markerFile), filepath.Join(aside, markerFile)); err != nil {
				return "", err
			}
		}
		if err := move(ready, filepath.Join(dir, markerFile)); err != nil {
			return "", err
		}
	}
	return aside, os.RemoveAll(tmp)
}

// move renames, if there is something, and is lasting when it returns.
func move(from, to string) error {
	err := os.Rename(from, to)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = durable.SyncDir(filepath.Dir(to))
	}
	if err == nil {
		err = durable.SyncDir(filepath.Dir(from))
	}
	return err
}
