package inventory

import (
	"context"
	"encoding/json"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

func TestFacts(t *testing.T) {
	f := Facts(context.Background())
	require.NotEmpty(t, f.Hostname)
	require.NotEmpty(t, f.Kernel)
	require.NotEmpty(t, f.OS)
	require.Positive(t, f.CPUs)
	require.Positive(t, f.MemoryTotal)
	require.WithinDuration(t, time.Now(), f.Time, time.Minute)
	_, err := json.Marshal(f)
	require.NoError(t, err)
}

func startServer(t *testing.T, dir string) *server.Server {
	s, err := server.NewServer(&server.Options{DontListen: true, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	require.NoError(t, err)
	s.Start()
	require.True(t, s.ReadyForConnections(10*time.Second))
	return s
}

// A real server, reached over pipes as over the control channel; it is
// restarted in between, and the snapshot arrives all the same.
func TestPublish(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	srv := startServer(t, dir)
	defer func() { srv.Shutdown(); srv.WaitForShutdown() }()
	stream := func(s *server.Server) jetstream.Stream {
		nc, err := nats.Connect("", nats.InProcessServer(s))
		require.NoError(t, err)
		t.Cleanup(nc.Close)
		js, err := jetstream.New(nc)
		require.NoError(t, err)
		st, err := js.CreateOrUpdateStream(context.Background(), jetstream.StreamConfig{Name: protocol.InventoryStream, Subjects: []string{protocol.SubjectInventoryAll}})
		require.NoError(t, err)
		return st
	}
	st := stream(srv)

	var reports []error
	p := New(Publisher{Number: 7, Site: "idc-sh", Log: zerolog.Nop(),
		Snapshot: func(ctx context.Context) protocol.Inventory { return protocol.Inventory{Hostname: "h"} },
		Report:   func(err error) { mu.Lock(); reports = append(reports, err); mu.Unlock() }})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Run(ctx, func(context.Context) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			return srv.InProcessConn()
		})
	}()
	last := func(st jetstream.Stream) (inv protocol.Inventory) {
		m, err := st.GetLastMsgForSubject(context.Background(), "causeway.v1.inventory.idc-sh.7.snapshot")
		if err == nil {
			require.NoError(t, json.Unmarshal(m.Data, &inv))
		}
		return inv
	}
	require.Eventually(t, func() bool { return last(st).Sequence == 1 }, 10*time.Second, 10*time.Millisecond)
	p.Changed()
	require.Eventually(t, func() bool { return last(st).Sequence == 2 }, 10*time.Second, 10*time.Millisecond)

	srv.Shutdown()
	srv.WaitForShutdown()
	next := startServer(t, dir)
	mu.Lock()
	srv = next
	mu.Unlock()
	st = stream(next)
	require.Eventually(t, func() bool { return last(st).Sequence > 2 }, 20*time.Second, 10*time.Millisecond)
	require.Equal(t, "h", last(st).Hostname)
	cancel()
	<-done
	mu.Lock()
	defer mu.Unlock()
	require.NoError(t, reports[0])
}
