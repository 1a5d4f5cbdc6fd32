package hub

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/bus"
	"causeway/hub/join"
	"causeway/hub/state"
	"causeway/protocol"
)

// openLog opens the log in a data directory as a hub does, its server included.
func openLog(t *testing.T, dir string, use func(*state.Store)) error {
	t.Helper()
	ctx := t.Context()
	if _, err := finishRemake(dir); err != nil {
		return err
	}
	m, err := openMarker(dir, false)
	if err != nil {
		return err
	}
	r, m, err := readLog(ctx, dir, m, zerolog.Nop())
	if err != nil {
		return err
	}
	b, err := bus.Start(ctx, bus.Config{Dir: filepath.Join(dir, natsDir), Log: zerolog.Nop()})
	if err != nil {
		return err
	}
	defer b.Close()
	nc, err := b.StateConn()
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	s, err := state.Open(ctx, state.StoreConfig{JetStream: js, Marker: m, Vault: state.DirVault(filepath.Join(dir, vaultDir)), Base: r, Log: zerolog.Nop()})
	if err != nil {
		return err
	}
	use(s)
	return nil
}

// tree is all that lies below dir.
func tree(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	out := map[string][32]byte{}
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == lockFile {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		out[rel] = sha256.Sum256(b)
		return err
	}))
	return out
}

// sameState compares what states say.
func sameState(a, b *state.State) string {
	return cmp.Diff(a, b, cmpopts.IgnoreUnexported(state.State{}), cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		plain[protocol.NodeNumber, bool](), plain[protocol.TokenID, state.Token](), plain[protocol.NodeNumber, state.Node](), plain[string, state.Admin](), plain[string, state.NATSUser](), plain[state.ObjectKey, state.Object](),
		cmp.Transformer("sites", func(m state.Sites) map[string]state.Site { return maps.Collect(m.All()) }),
		cmp.Transformer("routes", func(m state.Routes) map[state.RouteKey]state.Route { return maps.Collect(m.All()) }))
}

// plain has cmp look into a table of a state.
func plain[K comparable, V any]() cmp.Option {
	return cmp.Transformer("table", func(m state.Map[K, V]) map[K]V { return maps.Collect(m.All()) })
}

// madeLog is a log with snapshots, an archive and a tail, and what is in it.
func madeLog(t *testing.T, dir string, cut bool) (raw [][]byte, want *state.State) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o700))
	m, err := state.NewMarker(filepath.Join(dir, markerFile))
	require.NoError(t, err)
	_ = m
	require.NoError(t, openLog(t, dir, func(s *state.Store) {
		ctx := t.Context()
		_, err := s.Update(ctx, "hub", "start", func(d *state.Draft) error {
			return errors.Join(d.Add(state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4}}),
				d.Add(state.HubAdded{Number: 1}), d.Add(state.SiteCreated{Name: "a"}))
		})
		require.NoError(t, err)
		for i := range 39 {
			_, err := s.Update(ctx, "unix:root", fmt.Sprintf("token %d", i+2), func(d *state.Draft) error {
				h := sha256.Sum256([]byte{byte(i)})
				return d.Add(state.TokenCreated{ID: protocol.TokenID{byte(i + 1)}, Hash: h[:], Site: "a", Expires: d.Now.Add(time.Hour)})
			})
			require.NoError(t, err)
			if cut && (i == 10 || i == 20 || i == 30) {
				require.NoError(t, s.Compact(ctx))
			}
		}
		require.NoError(t, s.EachRaw(ctx, 1, 40, func(b []byte) error { raw = append(raw, bytes.Clone(b)); return nil }))
		want = s.State()
	}))
	require.NoError(t, os.WriteFile(filepath.Join(dir, join.ClusterKeyFile), []byte("a key\n"), 0o600))
	return raw, want
}

// A hub that was killed between a transaction and its mark finds the mark at the newest snapshot, and the log
// one further.
func TestLogBeyondItsMarkAtASnapshot(t *testing.T) {
	dir := t.TempDir()
	madeLog(t, dir, true)
	mark := filepath.Join(dir, markerFile)
	var before []byte
	want := uint64(0)
	require.NoError(t, openLog(t, dir, func(s *state.Store) {
		require.NoError(t, s.Compact(t.Context()))
		var err error
		before, err = os.ReadFile(mark)
		require.NoError(t, err)
		st, err := s.Update(t.Context(), "unix:root", "site create b", func(d *state.Draft) error { return d.Add(state.SiteCreated{Name: "b"}) })
		require.NoError(t, err)
		want = st.Seq
	}))
	require.NoError(t, os.WriteFile(mark, before, 0o600))
	require.NoError(t, openLog(t, dir, func(s *state.Store) { require.Equal(t, want, s.State().Seq) }))
}

// Whatever happens to any file of the log while the hub is down: it starts with everything, or refuses, and then
// no file has changed and 'repair' keeps exactly what is whole from the first transaction on.
func TestDamagedLog(t *testing.T) {
	for _, cut := range []bool{false, true} {
		t.Run(fmt.Sprintf("cut %t", cut), func(t *testing.T) { damageLog(t, cut) })
	}
}

func damageLog(t *testing.T, cut bool) {
	whole := filepath.Join(t.TempDir(), "d")
	raw, want := madeLog(t, whole, cut)
	flips, tries := 2, 1
	if os.Getenv("CAUSEWAY_SOAK") != "" {
		flips, tries = 40, 20
	}
	rng := rand.New(rand.NewPCG(3, 4))
	started, refused, lost := 0, 0, 0
	try := func(what string, damage func(dir string) error) {
		t.Run(what, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "d")
			require.NoError(t, os.CopyFS(dir, os.DirFS(whole)))
			require.NoError(t, damage(dir))
			before := tree(t, dir)
			err := openLog(t, dir, func(s *state.Store) {
				require.Empty(t, sameState(want, s.State()))
				_, err := s.Update(t.Context(), "unix:root", "goes on", func(d *state.Draft) error { return d.Add(state.SiteCreated{Name: "b"}) })
				require.NoError(t, err)
			})
			if err == nil {
				started++
				require.NoError(t, openLog(t, dir, func(s *state.Store) { require.True(t, s.State().Sites.Has("b")) }), "once more")
				return
			}
			refused++
			require.Empty(t, cmp.Diff(before, tree(t, dir)), "a refused start changes nothing: %v", err)
			require.NotContains(t, err.Error(), "\n")
			require.Contains(t, err.Error(), "restore")
			if errors.Is(err, state.ErrNoMarker) || strings.Contains(err.Error(), "is incomplete") {
				return
			}
			require.Contains(t, err.Error(), "causeway-hub repair")
			look, err := RepairLog(t.Context(), dir, false, 10, nil)
			require.Empty(t, cmp.Diff(before, tree(t, dir)), "looking changes nothing")
			if look.Kept == 0 {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			damaged := contents(t, dir)
			done, err := RepairLog(t.Context(), dir, true, 10, nil)
			require.NoError(t, err)
			require.Equal(t, look.Kept, done.Kept)
			require.Equal(t, look.Lost, done.Lost)
			kept := int(done.Kept)
			if done.Known && !strings.HasSuffix(what, " of "+markerFile) {
				require.Equal(t, uint64(len(raw)-kept), done.Lost)
			}
			if kept < len(raw) {
				lost++
				require.NotContains(t, damaged, string(raw[kept]), "the first one that is lost is nowhere whole")
			}
			require.NoError(t, openLog(t, dir, func(s *state.Store) {
				st := s.State()
				require.Equal(t, want.Epoch+1, st.Epoch)
				require.Equal(t, uint64(kept+1), st.Seq)
				require.Equal(t, kept-1, st.Tokens.Len())
				i := 0
				require.NoError(t, s.EachRaw(t.Context(), 1, done.Kept, func(b []byte) error {
					require.Equal(t, string(raw[i]), string(b), "transaction %d", i+1)
					i++
					return nil
				}), "the audit goes on")
			}))
			require.DirExists(t, done.Aside)
		})
	}
	for _, f := range slices.Sorted(maps.Keys(tree(t, whole))) {
		info, err := os.Stat(filepath.Join(whole, f))
		require.NoError(t, err)
		if f == join.ClusterKeyFile || info.Size() == 0 {
			continue
		}
		n := flips
		if strings.HasSuffix(f, ".blk") {
			n *= 6
		}
		for range n {
			at, bit := rng.Int64N(info.Size()), rng.IntN(8)
			try(fmt.Sprintf("flip bit %d of byte %d of %s", bit, at, f), func(dir string) error {
				b, err := os.ReadFile(filepath.Join(dir, f))
				if err == nil {
					b[at] ^= 1 << bit
					err = os.WriteFile(filepath.Join(dir, f), b, 0o600)
				}
				return err
			})
		}
		for range tries {
			size := rng.Int64N(info.Size())
			try(fmt.Sprintf("cut %s to %d bytes", f, size), func(dir string) error { return os.Truncate(filepath.Join(dir, f), size) })
		}
		try("cut "+f+" to nothing", func(dir string) error { return os.Truncate(filepath.Join(dir, f), 0) })
		try("delete "+f, func(dir string) error { return os.Remove(filepath.Join(dir, f)) })
	}
	t.Logf("damaged in %d ways: %d started with everything, %d refused and unchanged, of which a repair lost something in %d", started+refused, started, refused, lost)
	require.Positive(t, started)
	require.Positive(t, refused)
}

// contents are the readable texts of all that lies below dir.
func contents(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	for f := range tree(t, dir) {
		b, err := os.ReadFile(filepath.Join(dir, f))
		require.NoError(t, err)
		out.Write(b)
	}
	return out.String()
}

// Whoever opens a log with the wrong hands is told so before anything happens.
func TestRepairRefuses(t *testing.T) {
	_, err := RepairLog(context.Background(), filepath.Join(t.TempDir(), "none"), true, 0, nil)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = RepairLog(context.Background(), t.TempDir(), true, 0, nil)
	require.ErrorContains(t, err, "holds no hub")
	dir := filepath.Join(t.TempDir(), "d")
	_, _ = madeLog(t, dir, true)
	unlock, err := openDataDir(dir)
	require.NoError(t, err)
	_, err = RepairLog(context.Background(), dir, true, 0, nil)
	require.ErrorContains(t, err, "another causeway-hub uses")
	unlock()
	r, err := RepairLog(context.Background(), dir, true, 0, nil)
	require.NoError(t, err)
	require.True(t, r.Whole)
}

// An archive that is damaged, or gone, is named by doctor and by the backup that it makes impossible; the file put
// back, as they say, a backup is taken.
func TestDamagedArchiveIsNamed(t *testing.T) {
	w, err := tryStart(t, t.TempDir(), func(cfg *Config) { cfg.SnapshotEvery = 10 })
	require.NoError(t, err)
	var archives []string
	for i := 0; len(archives) < 2; i++ {
		w.site(fmt.Sprintf("s%d", i))
		archives, err = filepath.Glob(filepath.Join(w.dir, "data", vaultDir, "transactions-*"))
		require.NoError(t, err)
	}
	w.backup()
	good, err := os.ReadFile(archives[0])
	require.NoError(t, err)
	findings := func() (out []string) {
		var c api.Checkup
		w.must("GET", "/v1/doctor", nil, &c)
		for _, f := range c.Findings {
			if f.Check == "hub-archive" {
				out = append(out, f.Summary)
				require.Contains(t, f.Mend, "copy the file")
			}
		}
		return out
	}
	require.Empty(t, findings())
	for what, damage := range map[string]func() error{
		"damaged": func() error {
			return os.WriteFile(archives[0], append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^4), 0o600)
		},
		"gone": func() error { return os.Remove(archives[0]) },
	} {
		require.NoError(t, damage())
		code, why := w.call("GET", "/v1/backup", nil, nil)
		require.Equal(t, 503, code, what)
		require.Contains(t, why, "put that file back", what)
		require.Len(t, findings(), 1, what)
		if what == "damaged" {
			require.Contains(t, why, archives[0])
			require.Contains(t, findings()[0], archives[0])
		} else {
			require.Contains(t, why, "transactions 1 to ")
		}
		require.NoError(t, os.WriteFile(archives[0], good, 0o600))
		w.backup()
		require.Empty(t, findings(), what)
	}
	require.NoError(t, os.WriteFile(archives[0], []byte("x"), 0o600)) // while no hub runs, too
	w.stop()
	again, err := tryStart(t, w.dir, nil)
	require.NoError(t, err)
	w = again
	require.Eventually(t, func() bool { return len(findings()) == 1 }, patience, 20*time.Millisecond)
}
