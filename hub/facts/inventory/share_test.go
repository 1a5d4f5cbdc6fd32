package inventory

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/bus"
	"causeway/hub/facts/event"
	"causeway/protocol"
)

// unread is a stream whose messages nobody reads to weigh them.
type unread struct {
	jetstream.Stream
	t *testing.T
}

func (s unread) CreateConsumer(ctx context.Context, c jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	if c.HeadersOnly {
		s.t.Error("the history was read to weigh it")
	}
	return s.Stream.CreateConsumer(ctx, c)
}

// A node whose messages are as long as they may be keeps its newest ones, and pushes nobody
// else's out of a stream that all of its would fill. Nothing is read for that but what lay
// there before the start.
func TestHistoryOfOneNodeIsBounded(t *testing.T) {
	for name, before := range map[string]int{"all of it since the start": 0, "some of it before the start": 10} {
		t.Run(name, func(t *testing.T) { boundedHistory(t, before) })
	}
}

func boundedHistory(t *testing.T, before int) {
	b, err := bus.Start(t.Context(), bus.Config{Dir: t.TempDir(), Log: zerolog.Nop()})
	require.NoError(t, err)
	defer b.Close()
	nc, err := b.AgentsConn()
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	var events event.Log
	open := func() *Store {
		s, err := Open(t.Context(), Config{JetStream: js, Conn: nc, MaxBytes: 36 << 20, Events: &events, Log: zerolog.Nop(),
			Node: func(n protocol.NodeNumber) (string, bool) { return fmt.Sprintf("node-%d", n), true }})
		require.NoError(t, err)
		return s
	}
	open() // makes the stream
	text := make([]byte, protocol.MaxInventory)
	for range before {
		_, err := js.Publish(t.Context(), protocol.InventorySubject("idc", 7), text)
		require.NoError(t, err)
	}
	s := open()
	if before == 0 {
		require.True(t, s.whole)
		s.stream = unread{s.stream, t}
	} else { // as where facts lie behind what is read again
		s.next, s.whole = uint64(before), false
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	defer func() { cancel(); <-done }()
	publish := func(subject string, data []byte) {
		_, err := js.Publish(t.Context(), subject, data)
		require.NoError(t, err)
	}
	count := func(filter string) (n uint64) {
		st, err := js.Stream(t.Context(), protocol.InventoryStream)
		require.NoError(t, err)
		i, err := st.Info(t.Context(), jetstream.WithSubjectFilter(filter))
		require.NoError(t, err)
		for _, c := range i.State.Subjects {
			n += c
		}
		return n
	}
	for i := range 20 {
		publish(protocol.InventorySubject("idc", 8), fmt.Appendf(nil, `{"v":1,"seq":%d,"boot_id":"0100000000000000","hostname":"h"}`, i+1))
	}
	publish(protocol.IncidentSubject("idc", 7), []byte("x"))
	for i := range 40 {
		subject := protocol.InventorySubject("idc", 7)
		if i%2 == 1 {
			subject = protocol.DeltaSubject("idc", 7)
		}
		publish(subject, text)
		if i%4 == 3 { // as fast as its budget lets it, or slower
			require.Eventually(t, func() bool { return count("causeway.v1.inventory.idc.7.*") <= (nodeShare+weighAfter)>>20 }, 20*time.Second, 10*time.Millisecond)
		}
	}
	require.Equal(t, uint64(20), count("causeway.v1.inventory.idc.8.>"))
	require.GreaterOrEqual(t, count("causeway.v1.inventory.idc.7.>"), uint64(nodeShare>>20-1), "it keeps its share")
}
