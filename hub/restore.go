package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"causeway/hub/admin"
	"causeway/hub/backup"
	"causeway/hub/bus"
	"causeway/hub/join"
	"causeway/hub/state"
	"causeway/internal/durable"
	"causeway/protocol"
)

// restoreTimeout bounds a restore; a log of a million transactions takes minutes.
const restoreTimeout = time.Hour

// Restored says what a restore made.
type Restored struct {
	Made         time.Time // of the backup
	Transactions uint64
	Epoch        uint64 // of netmaps from now on
	Sites, Nodes int    // live ones
	NextNumber   protocol.NodeNumber
	Voided       int // tokens
}

// Restore makes the data directory dir, which must not be there or be empty, from
// a decrypted backup and the text of the cluster key's file. It makes all of it or
// leaves nothing. skip is how many node numbers may have been given away since
// the backup, revoked names nodes that were revoked since.
func Restore(ctx context.Context, dir string, r io.Reader, clusterKey string, skip uint32, revoked []string) (out Restored, err error) {
	ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	entries, err := os.ReadDir(dir)
	absent := errors.Is(err, fs.ErrNotExist)
	if err != nil && !absent {
		return out, fmt.Errorf("restore: %w", err)
	}
	if err := restoreEnded(dir); err != nil {
		return out, fmt.Errorf("restore: %w", err)
	}
	if len(entries) > 0 {
		return out, fmt.Errorf("restore: %s is not empty; move it away, or choose another with --data-dir", dir)
	}
	cluster, err := protocol.ParseClusterPrivateKey(strings.TrimSpace(clusterKey))
	if err != nil {
		return out, errors.New("restore: the file given with --cluster-key is no cluster key; give a copy of the old hub's " + join.ClusterKeyFile)
	}
	a, err := backup.NewReader(r)
	if err != nil {
		return out, err
	}
	hubKey, err := protocol.ParseWireGuardPrivateKey(a.HubKey)
	if err != nil {
		return out, errors.New("backup: it holds no hub key")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return out, fmt.Errorf("restore: %w", err)
	}
	// Made below dir, whose parent may be another user's, and moved up once it is
	// whole, the marker last: without it a hub does not start.
	tmp := filepath.Join(dir, restoringDir)
	if err := os.Mkdir(tmp, 0o700); err != nil { // another restore's is its own
		return out, fmt.Errorf("restore: %w", err)
	}
	names := []string{join.ClusterKeyFile, join.HubKeyFile, natsDir, vaultDir, markerFile}
	secrets := map[string]string{join.ClusterKeyFile: cluster.Secret() + "\n", join.HubKeyFile: hubKey.Secret() + "\n"}
	if a.AdminCA != "" {
		names, secrets[admin.CAFile] = append([]string{admin.CAFile}, names...), a.AdminCA
	}
	defer func() {
		if err != nil {
			for _, name := range append(names, restoringDir) {
				os.RemoveAll(filepath.Join(dir, name))
			}
			if absent {
				os.Remove(dir)
			}
		}
	}()
	for name, text := range secrets {
		if err := durable.WriteFile(filepath.Join(tmp, name), []byte(text)); err != nil {
			return out, fmt.Errorf("restore: %w", err)
		}
	}
	marker, err := state.NewMarker(filepath.Join(tmp, markerFile))
	if err != nil {
		return out, err
	}
	st, voided, err := restoreLog(ctx, filepath.Join(tmp, natsDir), filepath.Join(tmp, vaultDir), marker, cluster, a.Next, skip, revoked)
	if err != nil {
		return out, err
	}
	for _, name := range names {
		if err := os.Rename(filepath.Join(tmp, name), filepath.Join(dir, name)); err != nil {
			return out, fmt.Errorf("restore: %w", err)
		}
	}
	if err := os.Remove(tmp); err != nil {
		return out, fmt.Errorf("restore: %w", err)
	}
	if err := durable.SyncDir(dir); err != nil {
		return out, fmt.Errorf("restore: %w", err)
	}
	return Restored{a.Made, a.Last, st.Epoch, st.Sites.Len(), len(st.LiveNodes()), st.NextNumber, voided}, nil
}

// restoreLog makes the log and closes it again.
func restoreLog(ctx context.Context, dir, vault string, marker *state.Marker, cluster protocol.ClusterPrivateKey, next func() ([]byte, error), skip uint32, revoked []string) (*state.State, int, error) {
	nats, err := bus.Start(ctx, bus.Config{Dir: dir, Log: zerolog.Nop()})
	if err != nil {
		return nil, 0, err
	}
	defer nats.Close()
	conn, err := nats.StateConn()
	if err != nil {
		return nil, 0, err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, 0, err
	}
	st, err := state.Import(ctx, js, next)
	if err != nil {
		return nil, 0, err
	}
	if st.Cluster != cluster.Public() {
		return nil, 0, errors.New("restore: the cluster key is not the one of this backup; give a copy of the old hub's " + join.ClusterKeyFile)
	}
	store, err := state.Open(ctx, state.StoreConfig{JetStream: js, Marker: marker, Vault: state.DirVault(vault), Log: zerolog.Nop()})
	if err != nil {
		return nil, 0, err
	}
	open := 0
	after, err := store.Update(ctx, "restore", "restored from a backup", func(d *state.Draft) error {
		open = 0
		for _, tok := range d.Tokens.All() {
			if tok.State(d.Now) == state.TokenOpen {
				open++
			}
		}
		return state.Restore(d, skip, revoked)
	})
	if err == nil {
		err = store.Compact(ctx) // the first start reads the state, not all that led to it
	}
	return after, open, err
}
