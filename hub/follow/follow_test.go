package follow

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

const patience = 30 * time.Second

// Messages come in order, none is left out, also when the server forgets the consumer; and
// the end of the context ends it at once, while nothing comes.
func TestStreamGoesOn(t *testing.T) {
	ns, err := server.NewServer(&server.Options{DontListen: true, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir()})
	require.NoError(t, err)
	ns.Start()
	t.Cleanup(func() { ns.Shutdown(); ns.WaitForShutdown() })
	require.True(t, ns.ReadyForConnections(patience))
	nc, err := nats.Connect("", nats.InProcessServer(ns))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	st, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
	require.NoError(t, err)
	publish := func(n int) {
		t.Helper()
		for range n {
			_, err := js.Publish(t.Context(), "s", []byte("x"))
			require.NoError(t, err)
		}
	}
	publish(100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last, failures atomic.Uint64
	last.Store(10) // what was known before
	var wrong atomic.Value
	var wg sync.WaitGroup
	wg.Go(func() {
		Stream(ctx, st, last.Load, func(_ jetstream.Msg, meta *jetstream.MsgMetadata) {
			if meta.Sequence.Stream != last.Load()+1 {
				wrong.Store(fmt.Sprintf("%d after %d", meta.Sequence.Stream, last.Load()))
			}
			last.Store(meta.Sequence.Stream)
		}, func(error) { failures.Add(1) })
	})
	require.Eventually(t, func() bool { return last.Load() == 100 }, patience, time.Millisecond)
	for name := range st.ConsumerNames(t.Context()).Name() {
		require.NoError(t, st.DeleteConsumer(t.Context(), name))
	}
	publish(100)
	require.Eventually(t, func() bool { return last.Load() == 200 }, patience, time.Millisecond)
	require.Nil(t, wrong.Load())
	require.Equal(t, uint64(1), failures.Load())
	begin := time.Now()
	cancel()
	wg.Wait()
	require.Less(t, time.Since(begin), createTimeout)
}
