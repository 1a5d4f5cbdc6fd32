package inventory

import (
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"strconv"
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
	c := NewCollector(Config{})
	f := c.Facts(context.Background())
	require.NotEmpty(t, f.Hostname)
	require.NotEmpty(t, f.Kernel)
	require.NotEmpty(t, f.OS)
	require.Positive(t, f.CPUs)
	require.Positive(t, f.MemoryTotal)
	require.NotNil(t, f.Load)
	require.Equal(t, uint64(f.CPUs)*1000, f.Capacity.CPU.Total)
	require.Equal(t, f.MemoryTotal, f.Capacity.Memory.Total)
	require.Empty(t, f.Runtimes, "no runtime was named")
	require.Empty(t, f.Containers)
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

// history reads what the stream holds, from the first message.
func history(t *testing.T, s *server.Server) (out []message) {
	nc, err := nats.Connect("", nats.InProcessServer(s))
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	st, err := js.CreateOrUpdateStream(context.Background(), jetstream.StreamConfig{Name: protocol.InventoryStream, Subjects: []string{protocol.SubjectInventoryAll}})
	require.NoError(t, err)
	i, err := st.Info(context.Background())
	require.NoError(t, err)
	for n := i.State.FirstSeq; n <= i.State.LastSeq && n > 0; n++ {
		m, err := st.GetMsg(context.Background(), n)
		require.NoError(t, err)
		var h struct {
			Seq  uint64          `json:"seq"`
			Boot protocol.BootID `json:"boot_id"`
		}
		require.NoError(t, json.Unmarshal(m.Data, &h))
		out = append(out, message{Snapshot: m.Subject == protocol.InventorySubject("idc-sh", 7), Boot: h.Boot, Sequence: h.Seq, Data: m.Data})
	}
	return out
}

// fold applies messages to nothing, as a hub does, and fails at a gap.
func foldAll(t *testing.T, l []message) (inv protocol.Inventory) {
	var facts []byte
	var last message
	for _, m := range l {
		if !m.Snapshot {
			require.Equal(t, last.Boot, m.Boot)
			require.Equal(t, last.Sequence+1, m.Sequence)
		}
		var err error
		facts, err = after(facts, m)
		require.NoError(t, err)
		last = m
	}
	require.NoError(t, json.Unmarshal(facts, &inv))
	return inv
}

// A real server, reached over pipes as over the control channel. It is away while facts
// change, and so is the agent for a while: all arrives, in order and without a gap.
func TestPublish(t *testing.T) {
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "inventory.jsonl")
	var mu sync.Mutex
	var kernel int
	var srv *server.Server
	set := func(s *server.Server) { mu.Lock(); srv = s; mu.Unlock() }
	change := func() { mu.Lock(); kernel++; mu.Unlock() }
	start := func(boot byte) (p *Publisher, changes chan struct{}, stop func()) {
		changes = make(chan struct{}, 1)
		p = New(PublisherConfig{Number: 7, Site: "idc-sh", Boot: protocol.BootID{boot}, File: file, Changes: changes, Log: zerolog.Nop(), Report: func(error) {},
			Facts: func(context.Context) protocol.Inventory {
				mu.Lock()
				defer mu.Unlock()
				return protocol.Inventory{Hostname: "h", Kernel: strconv.Itoa(kernel), Time: time.Now()}
			}})
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { p.Follow(ctx) })
		wg.Go(func() {
			p.Run(ctx, func(context.Context) (net.Conn, error) {
				mu.Lock()
				defer mu.Unlock()
				if srv == nil {
					return nil, net.ErrClosed
				}
				return srv.InProcessConn()
			})
		})
		return p, changes, func() { cancel(); wg.Wait() }
	}
	waiting := func(p *Publisher) (n int) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.queue.items)
	}
	first := startServer(t, dir)
	require.Empty(t, history(t, first)) // makes the stream
	set(first)
	p, changes, stop := start(1)
	require.Eventually(t, func() bool { l := history(t, first); return len(l) == 1 && l[0].Snapshot && l[0].Sequence == 1 }, 10*time.Second, 10*time.Millisecond)
	change()
	signal(changes)
	require.Eventually(t, func() bool { l := history(t, first); return len(l) == 2 && !l[1].Snapshot }, 10*time.Second, 10*time.Millisecond)

	set(nil)
	first.Shutdown()
	first.WaitForShutdown()
	require.Eventually(t, func() bool { return !p.isConnected() }, 10*time.Second, 10*time.Millisecond)
	for i := range 2 {
		change()
		signal(changes)
		require.Eventually(t, func() bool { return waiting(p) == i+1 }, 10*time.Second, 10*time.Millisecond)
	}
	stop()
	require.FileExists(t, file)
	change()
	p, _, stop = start(2)
	defer func() { stop() }()
	require.Eventually(t, func() bool { return waiting(p) == 3 }, 10*time.Second, 10*time.Millisecond, "two of the last run, and a snapshot")

	second := startServer(t, dir)
	defer func() { second.Shutdown(); second.WaitForShutdown() }()
	set(second)
	require.Eventually(t, func() bool { return waiting(p) == 0 && len(history(t, second)) >= 5 }, 20*time.Second, 20*time.Millisecond)
	l := history(t, second)
	require.Equal(t, "4", foldAll(t, l).Kernel)
	require.Equal(t, "3", foldAll(t, l[:4]).Kernel, "what the last run could not send")
	require.NoFileExists(t, file)

	// The hub asks for a snapshot.
	nc, err := nats.Connect("", nats.InProcessServer(second))
	require.NoError(t, err)
	defer nc.Close()
	require.NoError(t, nc.Publish(protocol.AskSubject(7), nil))
	require.Eventually(t, func() bool {
		l := history(t, second)
		return len(l) >= 6 && l[len(l)-1].Snapshot
	}, 10*time.Second, 20*time.Millisecond)
}
