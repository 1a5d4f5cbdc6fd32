package services

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/bus"
	"causeway/protocol"
)

// What changed is written and nothing else, what is gone goes, also after a start, and one that is too long has no endpoints.
func TestPublish(t *testing.T) {
	b, err := bus.Start(t.Context(), bus.Config{Dir: t.TempDir(), Log: zerolog.Nop()})
	require.NoError(t, err)
	t.Cleanup(b.Close)
	nc, err := b.AgentsConn()
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	var l []api.Service
	p := New(Config{JetStream: js, List: func(context.Context) ([]api.Service, error) { return l, nil }, Log: zerolog.Nop()})
	require.NoError(t, p.open(t.Context()))
	get := func(name string) (s api.Service, revision uint64) {
		e, err := p.bucket.Get(t.Context(), name)
		if err != nil {
			require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
			return s, 0
		}
		require.NoError(t, json.Unmarshal(e.Value(), &s))
		return s, e.Revision()
	}
	l = []api.Service{{Name: "web", Endpoints: []api.ServiceEndpoint{{Site: "a", Ready: api.EndpointReady}}}, {Name: "db"}}
	require.NoError(t, p.publish(t.Context()))
	web, first := get("web")
	require.Equal(t, l[0].Endpoints, web.Endpoints)
	require.NoError(t, p.publish(t.Context()))
	_, again := get("web")
	require.Equal(t, first, again)
	l[0].Endpoints = []api.ServiceEndpoint{{Site: "a", Ready: api.EndpointNotReady}}
	require.NoError(t, p.publish(t.Context()))
	web, again = get("web")
	require.Greater(t, again, first)
	require.Equal(t, api.EndpointNotReady, web.Endpoints[0].Ready)

	l[0].Endpoints = []api.ServiceEndpoint{{Site: "a", Cause: strings.Repeat("x", maxValue)}}
	require.NoError(t, p.publish(t.Context()))
	web, _ = get("web")
	require.Empty(t, web.Endpoints)
	sum := p.sum

	// After a start.
	l = l[:1]
	p = New(p.cfg)
	require.NoError(t, p.open(t.Context()))
	require.NoError(t, p.publish(t.Context()))
	_, there := get("db")
	require.Zero(t, there)
	require.Less(t, p.sum, sum)
	l = nil
	require.NoError(t, p.publish(t.Context()))
	require.Zero(t, p.sum)
	require.Empty(t, p.written)

	// All together are bounded.
	p.sum = maxAll - 10
	l = []api.Service{{Name: "one"}}
	require.ErrorContains(t, p.publish(t.Context()), "some are left out, such as one")
}

// docs/LIMITS.md says what the code does.
func TestLimitsPage(t *testing.T) {
	b, err := os.ReadFile("../../../docs/LIMITS.md")
	require.NoError(t, err)
	require.Contains(t, string(b), fmt.Sprintf("| services in the bucket `%s` | each, all | %d KiB, %d MiB; %d written a second |", protocol.ServicesBucket, maxValue>>10, maxAll>>20, writeRate))
}
