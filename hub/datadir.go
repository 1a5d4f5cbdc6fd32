package hub

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"causeway/hub/join"
	"causeway/hub/state"
	"causeway/internal/cause"
	"causeway/internal/durable"
)

// Names below the data directory, beside those of hub/join.
const (
	natsDir    = "nats"
	markerFile = "log.json"
	// setBackFile says that the log was set back, until a repair or a restore.
	setBackFile = "set-back.json"
	// vaultDir has snapshots of the state and what was cut off the log.
	vaultDir    = "log"
	remakingDir = "remaking" // a log that is being made anew
	// restoringDir has what a restore has made so far; it is gone when the restore has ended.
	restoringDir = "restoring"
	lockFile     = "lock"
	memoryFile   = "live.json"
	backupNote   = "backup.time" // when the last one was taken
	// packagesDir is made by whoever has releases for it.
	packagesDir = "packages"
)

// openDataDir makes the directory if it is missing, checks that it can be
// written to and locks it: two hubs on one log would be one too many.
func openDataDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: make %s: %w; make it for the user that runs the hub, or choose another with --data-dir", dir, cause.Innermost(err))
	}
	if err := restoreEnded(dir); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	for _, below := range []string{natsDir, vaultDir} {
		err := durable.CheckDir(filepath.Join(dir, below))
		if err != nil {
			return nil, fmt.Errorf("data directory: %w; %s", err, cause.Cure(err, "restore the whole directory from a backup"))
		}
	}
	lock := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(lock, os.O_RDWR|os.O_CREATE|unix.O_NONBLOCK, 0o600)
	if fi, e := os.Lstat(lock); err != nil && e == nil && !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("data directory: %s is no file: %w; remove it, it holds nothing", lock, cause.Innermost(err))
	}
	if err != nil {
		return nil, fmt.Errorf("data directory: %s is not writable for the user that runs the hub: %w; give it to that user, or choose another with --data-dir", dir, cause.Innermost(err))
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("data directory: another causeway-hub uses %s; stop it, or choose another with --data-dir", dir)
	}
	return func() { f.Close() }, nil
}

// restoreEnded refuses a directory that a restore which was ended before it was done has left: a hub that
// starts there would be a new one. Whoever has the marker has everything.
func restoreEnded(dir string) error {
	left := filepath.Join(dir, restoringDir)
	if _, err := os.Lstat(left); err != nil {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(dir, markerFile)); err == nil && os.Remove(left) == nil {
		return nil
	}
	return fmt.Errorf("%s has what is left of a restore that did not end; remove it with 'rm -r %s' and all that lies beside it, and restore again", dir, left)
}

// openMarker returns the marker of the state log, a new one for a new hub. A
// directory that has keys or a log but no marker lost it; only a further hub on
// an external log starts with a cluster key and nothing else.
func openMarker(dir string, external bool) (m *state.Marker, err error) {
	path := filepath.Join(dir, markerFile)
	m, err = state.OpenMarker(path)
	if !errors.Is(err, state.ErrNoMarker) {
		return m, err
	}
	_, logErr := os.Stat(filepath.Join(dir, natsDir))
	_, hubErr := os.Stat(filepath.Join(dir, join.HubKeyFile))
	further := external && hubErr != nil && logErr != nil
	if !further && (join.Have(dir) || logErr == nil) {
		return nil, fmt.Errorf("data directory %s is incomplete: it holds keys or a state log, but no %s; restore the whole directory from a backup", dir, markerFile)
	}
	return state.NewMarker(path)
}
