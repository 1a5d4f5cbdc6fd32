package state_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/state"
	"causeway/protocol"
)

// A store that is shown the cluster's word of a transaction which it does not have stores nothing but
// what shuts somebody out, over restarts, until a higher epoch; other words say nothing.
func TestSetBack(t *testing.T) {
	ctx := t.Context()
	cluster, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	srv := start(t, t.TempDir())
	file := filepath.Join(t.TempDir(), "set-back.json")
	open := func() *state.Store {
		st, err := state.Open(ctx, state.StoreConfig{JetStream: srv.js, SetBackFile: file, Log: zerolog.Nop()})
		require.NoError(t, err)
		return st
	}
	st := open()
	_, err = st.Update(ctx, "hub", "start", func(d *state.Draft) error {
		return errors.Join(d.Add(state.ClusterCreated{Cluster: cluster.Public(), Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4}}),
			d.Add(state.HubAdded{Number: 1}), d.Add(state.SiteCreated{Name: "a"}))
	})
	require.NoError(t, err)
	first := st.State().Mark(cluster)
	token, err := addToken(ctx, st, 1)
	require.NoError(t, err)
	now := st.State().Mark(cluster)
	create := func(st *state.Store, name string) error {
		_, err := st.Update(ctx, "unix:root", "site create", func(d *state.Draft) error { return d.Add(state.SiteCreated{Name: name}) })
		return err
	}

	// What is no word of a later state, or nobody's.
	stranger, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	later := now
	later.Sequence, later.NextNumber = 40, 7
	older := now
	older.Epoch, older.Sequence = 0, 900
	for name, m := range map[string]protocol.StateMark{"itself": now, "the one before": first, "an older epoch": older.Sign(cluster)} {
		require.NoError(t, st.Witness(ctx, m), name)
	}
	require.ErrorIs(t, st.Witness(ctx, later), protocol.ErrStateMarkInvalid)
	require.ErrorIs(t, st.Witness(ctx, later.Sign(stranger)), protocol.ErrPinMismatch)
	require.NoError(t, st.SetBack())
	require.NoError(t, st.Witness(ctx, open().State().Mark(cluster)), "read from the log, by a store that has just been opened")
	require.NoError(t, create(st, "b"))

	// Another word of a transaction that is there: the log went on from an earlier time.
	fork := open()
	other := now
	other.Hash = make([]byte, 32)
	require.NoError(t, fork.Witness(ctx, other.Sign(cluster)))
	var back *state.SetBackError
	require.ErrorAs(t, fork.SetBack(), &back)
	require.Equal(t, now.Sequence, back.Known.Sequence)

	// A later one; the file is that of both stores.
	require.NoError(t, st.Witness(ctx, later.Sign(cluster)))
	require.ErrorAs(t, st.SetBack(), &back)
	seq := st.State().Seq
	require.Equal(t, seq, back.Sequence)
	require.ErrorAs(t, create(st, "c"), &back)
	again := open()
	require.ErrorAs(t, create(again, "c"), &back)
	require.EqualValues(t, 40, back.Known.Sequence)
	require.Equal(t, seq, again.State().Seq)
	_, err = again.Update(ctx, "unix:root", "token cancel", func(d *state.Draft) error { return d.Add(state.TokenCancelled{ID: token}) })
	require.NoError(t, err, "what shuts somebody out goes on")

	// A restored log begins a new epoch beyond the one that was seen.
	far := later
	far.Epoch = 3
	require.NoError(t, again.Witness(ctx, far.Sign(cluster)))
	require.ErrorAs(t, again.SetBack(), &back)
	known, err := state.ReadSetBack(file, again.State())
	require.NoError(t, err)
	require.EqualValues(t, 3, known.Known.Epoch)
	mended, err := state.Open(ctx, state.StoreConfig{JetStream: srv.js, Log: zerolog.Nop()})
	require.NoError(t, err)
	_, err = mended.Update(ctx, "repair", "set back", func(d *state.Draft) error { return state.RestoreBeyond(d, known.Known, 5, nil) })
	require.NoError(t, err)
	require.EqualValues(t, 4, mended.State().Epoch)
	require.EqualValues(t, 12, mended.State().NextNumber)
	require.NoError(t, create(open(), "c"))
}

// Marks of any transaction since the start, and from before it, are known again.
func TestMarksOfTheLog(t *testing.T) {
	ctx := context.Background()
	cluster, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	srv := start(t, t.TempDir())
	st := srv.open(t, nil)
	_, err = st.Update(ctx, "hub", "start", func(d *state.Draft) error {
		return d.Add(state.ClusterCreated{Cluster: cluster.Public(), Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4}})
	})
	require.NoError(t, err)
	var marks []protocol.StateMark
	for i := range 20 {
		s, err := st.Update(ctx, "unix:root", "site create", func(d *state.Draft) error { return d.Add(state.SiteCreated{Name: fmt.Sprintf("s%d", i)}) })
		require.NoError(t, err)
		marks = append(marks, s.Mark(cluster))
	}
	opened := srv.open(t, nil)
	for _, m := range marks {
		require.WithinDuration(t, time.Now(), m.Time, time.Minute)
		for _, s := range []*state.Store{st, opened} {
			require.NoError(t, s.Witness(ctx, m))
			require.NoError(t, s.SetBack())
		}
	}
	m := marks[0]
	m.Hash = append([]byte{^m.Hash[0]}, m.Hash[1:]...)
	require.NoError(t, opened.Witness(ctx, m.Sign(cluster)))
	require.Error(t, opened.SetBack())
}
