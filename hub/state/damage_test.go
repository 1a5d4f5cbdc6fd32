package state_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/bus"
	"causeway/hub/state"
)

// look opens the store in dir as a hub does and returns its state, or why it is
// refused.
func look(dir string) (*state.State, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m, err := state.OpenMarker(filepath.Join(dir, "log.json"))
	if err != nil {
		return nil, err
	}
	b, err := bus.Start(ctx, bus.Config{Dir: filepath.Join(dir, "nats"), Log: zerolog.Nop()})
	if err != nil {
		return nil, err
	}
	defer b.Close()
	nc, err := b.StateConn()
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	st, err := state.Open(ctx, state.StoreConfig{JetStream: js, Marker: m, Log: zerolog.Nop()})
	if err != nil {
		return nil, err
	}
	return st.State(), nil
}

// Whatever happens to the store's files while the hub is down, it finds the whole
// state or refuses to start: it never goes on with a smaller one.
func TestDamagedStore(t *testing.T) {
	const transactions = 40
	whole := t.TempDir()
	var want *state.State
	t.Run("write", func(t *testing.T) {
		m, err := state.NewMarker(filepath.Join(whole, "log.json"))
		require.NoError(t, err)
		st := start(t, filepath.Join(whole, "nats")).open(t, m)
		setUp(t, st)
		for i := range transactions - 1 {
			_, err := addToken(t.Context(), st, i+1)
			require.NoError(t, err)
		}
		want = st.State()
	})
	same := func(got *state.State) string { return cmp.Diff(asJSON(t, want), asJSON(t, got)) }
	got, err := look(whole)
	require.NoError(t, err)
	require.Empty(t, same(got))

	var files []string
	require.NoError(t, filepath.WalkDir(whole, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			rel, _ := filepath.Rel(whole, p)
			files = append(files, rel)
		}
		return err
	}))
	refused, found := 0, 0
	try := func(what string, damage func(t *testing.T, dir string)) {
		t.Run(what, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "d")
			require.NoError(t, os.CopyFS(dir, os.DirFS(whole)))
			damage(t, dir)
			got, err := look(dir)
			if err != nil {
				refused++
				require.NotContains(t, err.Error(), "\n")
				if !errors.Is(err, state.ErrNoMarker) { // of which the hub says more
					require.Contains(t, err.Error(), "restore the data directory from a backup", "says what to do")
				}
				return
			}
			found++
			require.Empty(t, same(got), "a state that is not the one that was stored")
		})
	}
	flips := 2
	if os.Getenv("CAUSEWAY_SOAK") != "" {
		flips = 60
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for _, f := range files {
		info, err := os.Stat(filepath.Join(whole, f))
		require.NoError(t, err)
		n := flips
		if strings.HasSuffix(f, ".blk") && strings.Contains(f, state.StreamName+"/msgs") {
			n *= 5
		}
		for range n {
			if info.Size() == 0 {
				break
			}
			at, bit := rng.Int64N(info.Size()), rng.IntN(8)
			try(fmt.Sprintf("flip bit %d of byte %d of %s", bit, at, f), func(t *testing.T, dir string) {
				b, err := os.ReadFile(filepath.Join(dir, f))
				require.NoError(t, err)
				b[at] ^= 1 << bit
				require.NoError(t, os.WriteFile(filepath.Join(dir, f), b, 0o600))
			})
		}
		for _, size := range []int64{0, info.Size() / 2, info.Size() - 1} {
			try(fmt.Sprintf("cut %s to %d bytes", f, size), func(t *testing.T, dir string) {
				require.NoError(t, os.Truncate(filepath.Join(dir, f), max(size, 0)))
			})
		}
		try("delete "+f, func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, f))) })
	}
	try("delete nats", func(t *testing.T, dir string) { require.NoError(t, os.RemoveAll(filepath.Join(dir, "nats"))) })
	t.Logf("%d files damaged in %d ways: %d refused, %d read whole, 0 smaller", len(files), refused+found, refused, found)
	require.Positive(t, refused)
}

func asJSON(t *testing.T, s *state.State) string {
	b, err := json.Marshal(s.Tokens)
	require.NoError(t, err)
	return fmt.Sprint(s.Seq, " ", s.NextNumber, " ", s.Epoch, " ", s.Sites.Len(), " ", string(b))
}
