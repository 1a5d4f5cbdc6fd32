package inventory

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/bus"
	"causeway/hub/facts"
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

// The hub's own server keeps no blocks of 8 MiB in memory for the histories, and what all nodes
// tell together is bounded all the same: the oldest goes first.
func TestHistoryOfAllNodesIsBounded(t *testing.T) {
	dir := t.TempDir()
	b, err := bus.Start(t.Context(), bus.Config{Dir: dir, Log: zerolog.Nop()})
	require.NoError(t, err)
	defer b.Close()
	nc, err := b.AgentsConn()
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	var events event.Log
	const bound = 48 << 20 // more than what the server gives small blocks
	s, err := Open(t.Context(), Config{JetStream: js, Conn: nc, MaxBytes: bound * 3 / 2, Inside: true, Events: &events, Log: zerolog.Nop(),
		Node: func(n protocol.NodeNumber) (string, bool) { return fmt.Sprintf("node-%d", n), true }})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	defer func() { cancel(); <-done }()
	text := make([]byte, protocol.MaxInventory)
	const nodes, each = 20, 4 // 80 MiB, of each less than its share
	for i := range nodes * each {
		_, err := js.Publish(t.Context(), protocol.InventorySubject("idc", protocol.NodeNumber(2+i/each)), text)
		require.NoError(t, err)
	}
	var st jetstream.StreamState
	require.Eventually(t, func() bool {
		i, err := s.stream.Info(t.Context())
		require.NoError(t, err)
		st = i.State
		return st.Bytes <= bound+lookAfter
	}, 20*time.Second, 10*time.Millisecond)
	require.Greater(t, st.Bytes, uint64(bound*3/4), "no more goes than has to")
	require.Equal(t, uint64(nodes*each), st.LastSeq)
	// And so are the facts: one node's that change, and many nodes'.
	for i := range 40 {
		require.NoError(t, s.room(2, len(text)))
		_, err := s.bucket.Put(t.Context(), protocol.FactsKey("idc", protocol.NodeNumber(2+i%8)), text)
		require.NoError(t, err)
	}
	for i := range bound/2>>20 - 1 {
		require.NoError(t, s.room(protocol.NodeNumber(100+i), len(text)))
	}
	require.ErrorContains(t, s.room(200, len(text)), "all nodes' facts together would take 25 MiB, and 24 may be")
	blocks, err := filepath.Glob(filepath.Join(dir, "jetstream", "*", "streams", "*", "msgs", "*.blk"))
	require.NoError(t, err)
	require.Greater(t, len(blocks), 5)
	for _, name := range blocks {
		fi, err := os.Stat(name)
		require.NoError(t, err)
		require.LessOrEqual(t, fi.Size(), int64(4<<20), name)
	}
}

// Long facts that change all the time are written to the bucket now and then, short ones at once, and
// none is forgotten.
func TestLongFactsAreWrittenRarely(t *testing.T) {
	b, err := bus.Start(t.Context(), bus.Config{Dir: t.TempDir(), Log: zerolog.Nop()})
	require.NoError(t, err)
	defer b.Close()
	nc, err := b.AgentsConn()
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	var events event.Log
	s, err := Open(t.Context(), Config{JetStream: js, Conn: nc, MaxBytes: 64 << 20, Inside: true, Events: &events, Log: zerolog.Nop(),
		Node: func(n protocol.NodeNumber) (string, bool) { return fmt.Sprintf("node-%d", n), true }})
	require.NoError(t, err)
	seq, now := uint64(0), time.Now()
	told := func(n protocol.NodeNumber, hostname string, bytes int) {
		seq++
		var disks strings.Builder
		for i := 0; disks.Len() < bytes; i++ {
			fmt.Fprintf(&disks, `,"/%d/%0200d":{}`, i, i)
		}
		s.take(facts.Read(protocol.InventorySubject("idc", n), fmt.Appendf(nil, `{"v":1,"seq":%d,"boot_id":"0100000000000000","hostname":%q,"disks":{%s}}`, seq, hostname, strings.TrimPrefix(disks.String(), ",")), seq, now))
	}
	written := func(n protocol.NodeNumber) string {
		e, err := s.bucket.Get(t.Context(), protocol.FactsKey("idc", n))
		require.NoError(t, err)
		var v stored
		require.NoError(t, json.Unmarshal(e.Value(), &v))
		return v.Hostname
	}
	told(7, "one", 12<<10)
	told(8, "one", 0)
	require.False(t, s.flush(t.Context(), now))
	require.Equal(t, "one", written(7))
	told(7, "two", 12<<10)
	told(8, "two", 0)
	now = now.Add(300 * time.Millisecond)
	require.True(t, s.flush(t.Context(), now), "one waits")
	require.Equal(t, "one", written(7))
	require.Equal(t, "two", written(8))
	require.True(t, s.flush(t.Context(), now))
	require.False(t, s.flush(t.Context(), now.Add(time.Second)))
	require.Equal(t, "two", written(7))
	told(7, "three", 12<<10)
	require.True(t, s.flush(t.Context(), now.Add(time.Second)))
	require.False(t, s.flush(t.Context(), time.Time{}), "at the end none waits")
	require.Equal(t, "three", written(7))
}
