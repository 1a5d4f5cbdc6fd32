package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"causeway/internal/durable"
)

// Vault keeps what a log that was cut needs beside it: snapshots, and the transactions that were
// cut off. Its methods may be called concurrently; a name is written once, or with the same content.
type Vault interface {
	List(ctx context.Context) ([]string, error)
	// Get returns what Put stored, at most maxVaultFile bytes. Its error is errNotAsked if a later call may
	// return it.
	Get(ctx context.Context, name string) ([]byte, error)
	// Put stores all of b under name or nothing, and lasting when it returns.
	Put(ctx context.Context, name string, b []byte) error
	Delete(ctx context.Context, name string) error
	// Where says where a file lies, for a person.
	Where(name string) string
}

// errNotAsked says that a vault did not answer: what it holds may be whole.
var errNotAsked = errors.New("the files of the state log are out of reach now")

// maxVaultFile bounds a file: a snapshot of a hundred thousand nodes has a quarter of it.
const maxVaultFile = 256 << 20

// DirVault keeps files in a directory, which is made with the first one.
func DirVault(dir string) Vault { return dirVault(dir) }

type dirVault string

func (d dirVault) Where(name string) string { return filepath.Join(string(d), name) }

func (d dirVault) List(context.Context) ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			out = append(out, e.Name())
		}
	}
	return out, err
}

func (d dirVault) Get(_ context.Context, name string) ([]byte, error) {
	st, err := os.Stat(d.Where(name))
	if err == nil && st.Size() > maxVaultFile {
		err = fmt.Errorf("%s has %d bytes", d.Where(name), st.Size())
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(d.Where(name))
}

func (d dirVault) Put(_ context.Context, name string, b []byte) error {
	if err := os.Mkdir(string(d), 0o700); err == nil {
		if err := durable.SyncDir(filepath.Dir(string(d))); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	return durable.WriteFile(d.Where(name), b)
}

func (d dirVault) Delete(_ context.Context, name string) error { return durable.Remove(d.Where(name)) }

// bucketTimeout bounds one question to an object store: what was sent to a server that is gone is never answered.
const bucketTimeout = 15 * time.Second

// bucket is where the hubs on one external NATS share their files.
const bucket = "causeway-state"

// OpenBucketVault keeps files in an object store of js, for all hubs on its log.
func OpenBucketVault(ctx context.Context, js jetstream.JetStream) (Vault, error) {
	o, err := js.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: bucket, Description: "snapshots and older transactions of the hub's state", Storage: jetstream.FileStorage})
	if err != nil {
		return nil, fmt.Errorf("open the bucket %s: %w", bucket, err)
	}
	return bucketVault{o}, nil
}

type bucketVault struct{ store jetstream.ObjectStore }

func (v bucketVault) Where(name string) string { return "object " + name + " of bucket " + bucket }

func (v bucketVault) List(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, bucketTimeout)
	defer cancel()
	infos, err := v.store.List(ctx)
	if errors.Is(err, jetstream.ErrNoObjectsFound) {
		return nil, nil
	}
	var out []string
	for _, i := range infos {
		if !i.Deleted {
			out = append(out, i.Name)
		}
	}
	return out, err
}

func (v bucketVault) Get(ctx context.Context, name string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, bucketTimeout)
	defer cancel()
	i, err := v.store.GetInfo(ctx, name)
	var b []byte
	if err == nil {
		if i.Size > maxVaultFile {
			return nil, fmt.Errorf("%s has %d bytes", v.Where(name), i.Size)
		}
		b, err = v.store.GetBytes(ctx, name)
	}
	switch {
	case err == nil:
		return b, nil
	case errors.Is(err, jetstream.ErrObjectNotFound), errors.Is(err, jetstream.ErrDigestMismatch), errors.Is(err, jetstream.ErrBadObjectMeta):
		return nil, err
	}
	return nil, fmt.Errorf("%w: %w", errNotAsked, err)
}

func (v bucketVault) Put(ctx context.Context, name string, b []byte) error {
	ctx, cancel := context.WithTimeout(ctx, bucketTimeout)
	defer cancel()
	_, err := v.store.Put(ctx, jetstream.ObjectMeta{Name: name}, bytes.NewReader(b))
	return err
}

func (v bucketVault) Delete(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, bucketTimeout)
	defer cancel()
	err := v.store.Delete(ctx, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return nil
	}
	return err
}

// Names in a vault. The numbers have leading zeros, so that names sort by sequence.
const (
	snapshotName = "snapshot-%020d.json"
	archiveName  = "transactions-%020d-%020d.jsonl.gz"
)

// span is an archive's first and last transaction, and a snapshot's own twice.
type span struct{ first, last uint64 }

// vaulted sorts a vault's names into snapshots and archives, each by sequence.
func vaulted(ctx context.Context, v Vault) (snapshots []uint64, archives []span, err error) {
	names, err := v.List(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("list the files of the state log: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		var a span
		if n, err := fmt.Sscanf(name, snapshotName, &a.first); err == nil && n == 1 && fmt.Sprintf(snapshotName, a.first) == name {
			snapshots = append(snapshots, a.first)
		} else if n, err := fmt.Sscanf(name, archiveName, &a.first, &a.last); err == nil && n == 2 && fmt.Sprintf(archiveName, a.first, a.last) == name && a.first <= a.last && strings.HasSuffix(name, ".gz") {
			archives = append(archives, a)
		}
	}
	return snapshots, archives, nil
}
