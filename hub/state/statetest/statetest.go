// Package statetest opens state logs for tests.
package statetest

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/bus"
	"causeway/hub/state"
)

// Open opens a state log on a real NATS server, which lives as long as the test. Nobody
// follows it: the store knows what is decided through it.
func Open(t testing.TB) *state.Store {
	t.Helper()
	b, err := bus.Start(t.Context(), bus.Config{Dir: t.TempDir(), Log: zerolog.Nop()})
	require.NoError(t, err)
	nc, err := b.StateConn()
	require.NoError(t, err)
	t.Cleanup(func() { nc.Close(); b.Close() })
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	st, err := state.Open(t.Context(), state.StoreConfig{JetStream: js, Log: zerolog.Nop()})
	require.NoError(t, err)
	return st
}
