package state_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/state"
	"causeway/protocol"
)

// openCut opens a store that takes a snapshot after every so many transactions.
func openCut(t testing.TB, srv *server, m *state.Marker, v state.Vault, every int) *state.Store {
	t.Helper()
	st, err := state.Open(t.Context(), state.StoreConfig{JetStream: srv.js, Marker: m, Vault: v, SnapshotEvery: every, Log: zerolog.Nop()})
	require.NoError(t, err)
	return st
}

func firstSequence(t testing.TB, srv *server) uint64 {
	t.Helper()
	s, err := srv.js.Stream(t.Context(), state.StreamName)
	require.NoError(t, err)
	info, err := s.Info(t.Context())
	require.NoError(t, err)
	return info.State.FirstSeq
}

// A log that is cut says the same: its state, its audit with what changed, and its backup.
func TestCutLogSaysTheSame(t *testing.T) {
	dir := t.TempDir()
	v := state.DirVault(filepath.Join(dir, "log"))
	m, err := state.NewMarker(filepath.Join(dir, "log.json"))
	require.NoError(t, err)
	var audit []state.Transaction
	var news [][]state.Difference
	var raw [][]byte
	var want *state.State
	t.Run("first", func(t *testing.T) {
		srv := start(t, filepath.Join(dir, "nats"))
		st := openCut(t, srv, m, v, 1000)
		setUp(t, st)
		for i := range 30 {
			_, err := addToken(t.Context(), st, i+1)
			require.NoError(t, err)
			if i%10 == 9 {
				require.NoError(t, st.Compact(t.Context()))
			}
		}
		id, err := addToken(t.Context(), st, 99)
		require.NoError(t, err)
		_, err = st.Redeem(t.Context(), "token", "join", request(id, secret(99), 1, "n1"))
		require.NoError(t, err)
		require.Equal(t, uint64(22), firstSequence(t, srv), "the log is cut at the snapshot before the last")
		want = st.State()
		audit, err = st.Audit(t.Context(), 0, 1000)
		require.NoError(t, err)
		require.Len(t, audit, 33)
		for _, a := range audit {
			news = append(news, st.Differences(a.Sequence))
		}
		require.NoError(t, st.EachRaw(t.Context(), 1, 33, func(b []byte) error { raw = append(raw, b); return nil }))
		_, err = state.Fold(audit)
		require.Error(t, err, "the newest is first")
		before, err := st.Audit(t.Context(), 5, 2)
		require.NoError(t, err)
		require.Equal(t, []uint64{4, 3}, []uint64{before[0].Sequence, before[1].Sequence})
	})
	t.Run("again", func(t *testing.T) {
		srv := start(t, filepath.Join(dir, "nats"))
		st := openCut(t, srv, m, v, 1000)
		require.Empty(t, state.Same(want, st.State()))
		again, err := st.Audit(t.Context(), 0, 1000)
		require.NoError(t, err)
		require.Equal(t, audit, again)
		for i, a := range again {
			require.Equal(t, news[i], st.Differences(a.Sequence), a.Sequence)
		}
		n := 0
		require.NoError(t, st.EachRaw(t.Context(), 1, 33, func(b []byte) error {
			require.Equal(t, string(raw[n]), string(b))
			n++
			return nil
		}))
		require.Equal(t, 33, n)
	})
	t.Run("the newest snapshot is damaged", func(t *testing.T) {
		names, err := filepath.Glob(filepath.Join(dir, "log", "snapshot-*"))
		require.NoError(t, err)
		require.Len(t, names, 2)
		b, err := os.ReadFile(names[1])
		require.NoError(t, err)
		b[len(b)/2] ^= 4
		require.NoError(t, os.WriteFile(names[1], b, 0o600))
		srv := start(t, filepath.Join(dir, "nats"))
		require.Empty(t, state.Same(want, openCut(t, srv, m, v, 1000).State()))
		require.NoError(t, os.Remove(names[0]))
		_, err = state.Open(t.Context(), state.StoreConfig{JetStream: srv.js, Marker: m, Vault: v, Log: zerolog.Nop()})
		require.ErrorContains(t, err, "no snapshot of the state before it can be read; restore the data directory from a backup")
		_, err = state.Open(t.Context(), state.StoreConfig{JetStream: srv.js, Marker: m, Log: zerolog.Nop()})
		require.ErrorContains(t, err, "the state log begins with transaction 22", "a cut log without its snapshots is no smaller cluster")
	})
}

// A store takes snapshots by itself, and the log stays short.
func TestStoreCutsItself(t *testing.T) {
	dir := t.TempDir()
	srv := start(t, dir)
	st := openCut(t, srv, nil, state.DirVault(filepath.Join(dir, "log")), 20)
	follow(t, st)
	setUp(t, st)
	for i := range 100 {
		_, err := addToken(t.Context(), st, i+1)
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { return firstSequence(t, srv) > 40 }, patience, 10*time.Millisecond)
	txs, err := st.Audit(t.Context(), 0, 1000)
	require.NoError(t, err)
	require.Len(t, txs, 101)
}

func follow(t testing.TB, st *state.Store) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- st.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A hub that was away while another one cut their log takes that one's snapshot and goes on.
func TestHubBehindACut(t *testing.T) {
	dir := t.TempDir()
	srv := start(t, dir)
	v, err := state.OpenBucketVault(t.Context(), srv.js)
	require.NoError(t, err)
	open := func() *state.Store {
		st, err := state.Open(t.Context(), state.StoreConfig{JetStream: srv.js, Vault: v, Away: func() error { return nil }, Log: zerolog.Nop()})
		require.NoError(t, err)
		return st
	}
	one, two := open(), open()
	setUp(t, one)
	for i := range 30 {
		_, err := addToken(t.Context(), one, i+1)
		require.NoError(t, err)
		if i%10 == 9 {
			require.NoError(t, one.Compact(t.Context()))
		}
	}
	require.Zero(t, two.State().Seq, "nobody follows")
	_, err = addToken(t.Context(), two, 50)
	require.NoError(t, err)
	require.Equal(t, uint64(32), two.State().Seq)
	_, err = addToken(t.Context(), one, 51)
	require.NoError(t, err)
	third := open()
	require.Empty(t, state.Same(one.State(), third.State()))
	txs, err := third.Audit(t.Context(), 0, 1000)
	require.NoError(t, err)
	require.Len(t, txs, 33)
	_, err = third.Update(t.Context(), "unix:root", "again", func(d *state.Draft) error { return d.Add(state.SiteCreated{Name: "a"}) })
	require.True(t, state.IsKind(err, state.Conflict), "%v", err)
}

// At its limit the log still takes what shuts somebody out.
func TestFullLogTakesRevocations(t *testing.T) {
	srv := start(t, t.TempDir())
	st, err := state.Open(t.Context(), state.StoreConfig{JetStream: srv.js, MaxBytes: 64 << 10, Log: zerolog.Nop()})
	require.NoError(t, err)
	setUp(t, st)
	id, err := addToken(t.Context(), st, 1)
	require.NoError(t, err)
	st1, err := st.Redeem(t.Context(), "token", "join", request(id, secret(1), 1, "n1"))
	require.NoError(t, err)
	n, _ := st1.NodeByName("n1")
	for i := 2; ; i++ {
		if _, err = addToken(t.Context(), st, i); err != nil {
			break
		}
		require.Less(t, i, 1000)
	}
	var full *state.FullLogError
	require.ErrorAs(t, err, &full)
	for i := range 4 {
		_, err = st.Update(t.Context(), "unix:root", "token revoke", func(d *state.Draft) error {
			return d.Add(state.TokenCancelled{ID: protocol.TokenID{byte(i + 2), 0}})
		})
		require.NoError(t, err)
	}
	_, err = st.Update(t.Context(), "hub", "quarantine", func(d *state.Draft) error { return state.Quarantine(d, n.Number, "two of it") })
	require.NoError(t, err)
	_, err = st.Update(t.Context(), "unix:root", "node label n1", func(d *state.Draft) error { return state.Label(d, "n1", map[string]string{"a": "b"}) })
	require.ErrorAs(t, err, &full)
	_, err = st.Update(t.Context(), "unix:root", "node revoke n1", func(d *state.Draft) error { return state.Remove(d, n.Number, state.GoneRevoked) })
	require.NoError(t, err)

}

// updates lets a test see, and fail, what changes the configuration of the log.
type updates struct {
	jetstream.JetStream
	before func(context.Context, jetstream.StreamConfig) error
}

func (u *updates) UpdateStream(ctx context.Context, c jetstream.StreamConfig) (jetstream.Stream, error) {
	if err := u.before(ctx, c); err != nil {
		return nil, err
	}
	return u.JetStream.UpdateStream(ctx, c)
}

// cutAfter opens a store on u with thirty transactions and two snapshots, so that the next Compact cuts.
func cutAfter(t testing.TB, u *updates) *state.Store {
	t.Helper()
	st, err := state.Open(t.Context(), state.StoreConfig{JetStream: u, Vault: state.DirVault(filepath.Join(t.TempDir(), "log")), Log: zerolog.Nop()})
	require.NoError(t, err)
	setUp(t, st)
	for i := range 30 {
		_, err := addToken(t.Context(), st, i+1)
		require.NoError(t, err)
		if i == 10 {
			require.NoError(t, st.Compact(t.Context()))
		}
	}
	return st
}

// A reply that is lost while the log is cut holds up decisions for seconds, not minutes.
func TestCutWaitsForNoReplyLong(t *testing.T) {
	asked := 0
	u := &updates{JetStream: start(t, t.TempDir()).js, before: func(ctx context.Context, _ jetstream.StreamConfig) error {
		asked++
		until, ok := ctx.Deadline()
		require.True(t, ok)
		require.Less(t, time.Until(until), 6*time.Second)
		return nil
	}}
	require.NoError(t, cutAfter(t, u).Compact(t.Context()))
	require.Equal(t, 2, asked)
}

// The limit that a cut sets goes, though its end failed or the hub that set it is gone.
func TestLimitOfACutGoes(t *testing.T) {
	srv := start(t, t.TempDir())
	u := &updates{JetStream: srv.js, before: func(_ context.Context, c jetstream.StreamConfig) error {
		if c.MaxMsgs <= 0 {
			return errors.New("no reply")
		}
		return nil
	}}
	config := func() jetstream.StreamConfig {
		s, err := srv.js.Stream(t.Context(), state.StreamName)
		require.NoError(t, err)
		return s.CachedInfo().Config
	}
	st := cutAfter(t, u)
	require.ErrorContains(t, st.Compact(t.Context()), "no reply")
	limited := config()
	require.Positive(t, limited.MaxMsgs)
	u.before = func(context.Context, jetstream.StreamConfig) error { return nil }
	require.NoError(t, st.Compact(t.Context()), "nothing is due")
	require.Equal(t, int64(-1), config().MaxMsgs)
	require.Equal(t, jetstream.DiscardNew, config().Discard)

	_, err := srv.js.UpdateStream(t.Context(), limited)
	require.NoError(t, err)
	follow(t, st)
	require.Eventually(t, func() bool { return config().Discard == jetstream.DiscardNew }, patience, 100*time.Millisecond)

	lost := false // a reply to what was done
	u.before = func(ctx context.Context, c jetstream.StreamConfig) error {
		if c.MaxMsgs > 0 {
			lost = true
			_, err := srv.js.UpdateStream(ctx, c)
			require.NoError(t, err)
			return context.DeadlineExceeded
		}
		return nil
	}
	_, err = addToken(t.Context(), st, 50)
	require.NoError(t, err)
	require.ErrorIs(t, st.Compact(t.Context()), context.DeadlineExceeded)
	require.True(t, lost)
	require.Equal(t, jetstream.DiscardNew, config().Discard)
}

// Of two hubs for which a snapshot is due at once, the later one leaves it at that of the other: a log that
// is cut at one just taken has too little behind it.
func TestSnapshotDueAtTwoHubs(t *testing.T) {
	srv := start(t, t.TempDir())
	v, err := state.OpenBucketVault(t.Context(), srv.js)
	require.NoError(t, err)
	open := func() *state.Store {
		st, err := state.Open(t.Context(), state.StoreConfig{JetStream: srv.js, Vault: v, SnapshotEvery: 20, Away: func() error { return nil }, Log: zerolog.Nop()})
		require.NoError(t, err)
		return st
	}
	one, two := open(), open()
	setUp(t, one)
	tokens := 0
	add := func(st *state.Store, n int) {
		for range n {
			tokens++
			_, err := addToken(t.Context(), st, tokens)
			require.NoError(t, err)
		}
	}
	snapshots := func() (n int) {
		names, err := v.List(t.Context())
		require.NoError(t, err)
		for _, name := range names {
			if strings.HasPrefix(name, "snapshot-") {
				n++
			}
		}
		return n
	}
	add(one, 22)
	require.NoError(t, one.CompactIfDue(t.Context()))
	require.Equal(t, 1, snapshots())
	add(two, 3)
	require.NoError(t, two.CompactIfDue(t.Context()))
	require.Equal(t, 1, snapshots(), "another one at once")
	require.Equal(t, uint64(1), firstSequence(t, srv))
	add(two, 20)
	require.NoError(t, two.CompactIfDue(t.Context()))
	require.Equal(t, 2, snapshots())
	require.Equal(t, uint64(24), firstSequence(t, srv), "cut at the snapshot of the other")
}

// A log that is full is cut though few transactions came since the last snapshot.
func TestFullLogIsCut(t *testing.T) {
	dir := t.TempDir()
	srv := start(t, dir)
	st, err := state.Open(t.Context(), state.StoreConfig{JetStream: srv.js, MaxBytes: 64 << 10, Vault: state.DirVault(filepath.Join(dir, "log")), Log: zerolog.Nop()})
	require.NoError(t, err)
	setUp(t, st)
	tokens := 0
	for err == nil {
		if tokens++; tokens == 30 {
			require.NoError(t, st.Compact(t.Context()))
		}
		require.NoError(t, st.CompactIfDue(t.Context()))
		require.Less(t, tokens, 1000)
		_, err = addToken(t.Context(), st, tokens)
	}
	var full *state.FullLogError
	require.ErrorAs(t, err, &full)
	require.Equal(t, uint64(1), firstSequence(t, srv))
	require.NoError(t, st.CompactIfDue(t.Context()))
	require.Equal(t, uint64(31), firstSequence(t, srv))
	_, err = addToken(t.Context(), st, tokens)
	require.NoError(t, err)
}
