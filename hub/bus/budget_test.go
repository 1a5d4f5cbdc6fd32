package bus

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// count is how often something was refused for reason.
func (s *Server) count(t *testing.T, reason string) float64 {
	t.Helper()
	r := prometheus.NewRegistry()
	require.NoError(t, r.Register(s.Metrics()))
	all, err := r.Gather()
	require.NoError(t, err)
	for _, m := range all[0].Metric {
		if m.Label[0].GetValue() == reason {
			return m.Counter.GetValue()
		}
	}
	t.Fatal("no such reason")
	return 0
}

// raw opens a nats stream of a node and says CONNECT.
func raw(t *testing.T, s *Server, n protocol.NodeNumber) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, hub := net.Pipe()
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { defer close(ended); s.ServeAgent(ctx, hub, "idc", n) }()
	t.Cleanup(func() { cancel(); c.Close(); <-ended })
	br := bufio.NewReader(c)
	c.SetDeadline(time.Now().Add(patience))
	_, err := br.ReadString('\n')
	require.NoError(t, err)
	fmt.Fprintf(c, "CONNECT {}\r\nPING\r\n")
	line, err := br.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "PONG\r\n", line)
	return c, br
}

// A node's streams share one budget, others have their own, and who comes back has no new one.
func TestNodeBudget(t *testing.T) {
	b := Budget{Lines: 20, LinesAtOnce: 40, Bytes: 1 << 20, BytesAtOnce: 2 << 20}
	s := startWith(t, b)
	inventory(t, s)
	taken := func(streams int) int {
		n := 0
		deadline := time.Now().Add(time.Second)
		for range streams {
			c, br := raw(t, s, 7)
			go func() {
				for {
					if _, err := br.ReadString('\n'); err != nil {
						return
					}
				}
			}()
			c.SetWriteDeadline(deadline)
			for {
				if _, err := fmt.Fprintf(c, "PUB %s 1\r\nx\r\n", protocol.DeltaSubject("idc", 7)); err != nil {
					break
				}
				n++
			}
			deadline = time.Now().Add(time.Second)
			c.Close()
		}
		return n
	}
	began := time.Now()
	first := taken(3)
	most := b.LinesAtOnce + int(time.Since(began).Seconds()*float64(b.Lines)) + 3*3 // a CONNECT's PING, one in the pipe, one that waits
	require.LessOrEqual(t, first, most, "three streams after each other")
	require.Greater(t, first, b.LinesAtOnce-10)
	began = time.Now()
	nc, _, _ := agent(t, s, "idc", 8)
	for range b.LinesAtOnce / 2 {
		require.NoError(t, nc.Publish(protocol.DeltaSubject("idc", 8), []byte("x")))
	}
	require.NoError(t, nc.FlushTimeout(patience))
	require.Less(t, time.Since(began), time.Second, "another node waits for nothing")
	t.Logf("%d of %d lines at most", first, most)
}

// Bytes are counted with the payload, and the largest payload passes.
func TestNodeBudgetOfBytes(t *testing.T) {
	s := startWith(t, Budget{Lines: 1000, LinesAtOnce: 1000, Bytes: 1 << 20, BytesAtOnce: maxPayload + maxLine})
	st := inventory(t, s)
	nc, _, _ := agent(t, s, "idc", 7)
	began := time.Now()
	for range 3 {
		require.NoError(t, nc.Publish(protocol.InventorySubject("idc", 7), make([]byte, protocol.MaxInventory)))
	}
	require.NoError(t, nc.FlushTimeout(patience))
	require.Greater(t, time.Since(began), 1700*time.Millisecond, "two of three wait a second each")
	require.Eventually(t, func() bool { // they are on their way to the disk
		info, err := st.Info(t.Context())
		return err == nil && info.State.Msgs == 3
	}, patience, 5*time.Millisecond)
}

// What is for another subject is not stored anywhere, and counted.
func TestOtherSubjectsAreCounted(t *testing.T) {
	s := start(t)
	st := inventory(t, s)
	nc, _, denied := agent(t, s, "idc", 7)
	for i := range 50 {
		require.NoError(t, nc.Publish(fmt.Sprintf("causeway.v1.inventory.idc.7.%d", i), make([]byte, 1000)))
	}
	for range 50 {
		select {
		case err := <-denied:
			require.ErrorContains(t, err, "Permissions Violation")
		case <-time.After(patience):
			t.Fatal("not refused")
		}
	}
	require.NoError(t, nc.Publish(protocol.IncidentSubject("idc", 7), []byte("x")))
	require.NoError(t, nc.FlushTimeout(patience))
	info, err := st.Info(t.Context())
	require.NoError(t, err)
	require.Equal(t, uint64(1), info.State.Msgs)
	require.Equal(t, 50.0, s.count(t, RefusedSubject))
}

// Of a node's streams the newest stay, and each has few subscriptions.
func TestNodeStreams(t *testing.T) {
	s := start(t)
	first, _ := raw(t, s, 7)
	other, ob := raw(t, s, 8)
	for range nodeStreams {
		raw(t, s, 7)
	}
	_, err := first.Read(make([]byte, 1))
	require.Error(t, err, "the oldest is closed")
	fmt.Fprintf(other, "PING\r\n")
	line, err := ob.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "PONG\r\n", line)
	require.Equal(t, 1.0, s.count(t, RefusedStream))

	for i := range nodeSubs {
		fmt.Fprintf(other, "SUB _INBOX.8.%d %d\r\n", i, i)
	}
	fmt.Fprintf(other, "UNSUB 0\r\nSUB causeway.v1.ask.8 a\r\nPING\r\n")
	line, err = ob.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "PONG\r\n", line)
	fmt.Fprintf(other, "SUB _INBOX.8.> b\r\n")
	_, err = ob.ReadString('\n')
	require.Error(t, err, "one too many ends the stream")
	require.Equal(t, 1.0, s.count(t, RefusedSubs))
}

// A stream whose end waits for its node, which does not read, keeps nobody else waiting.
func TestClosingAStreamBlocksNobody(t *testing.T) {
	s := start(t)
	stuck := make(chan struct{})
	defer close(stuck)
	for range nodeStreams + 1 {
		_, leave := s.enter(7, func() { <-stuck })
		defer leave()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, leave := s.enter(8, func() {})
		leave()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("another node waits")
	}
}

// The table of what nodes have left does not grow with those that come and go.
func TestPursesAreBounded(t *testing.T) {
	s := start(t)
	for n := range protocol.NodeNumber(5 * spentNodes) {
		_, leave := s.enter(n+1, func() {})
		leave()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	require.LessOrEqual(t, len(s.purses), spentNodes+1)
	require.Zero(t, s.connected)
}

// deafener dials connections that read nothing from some moment on.
type deafener struct{ deaf atomic.Bool }

type deafConn struct {
	net.Conn
	d      *deafener
	closed chan struct{}
	once   sync.Once
}

func (d *deafener) Dial(network, addr string) (net.Conn, error) {
	c, err := net.Dial(network, addr)
	return &deafConn{Conn: c, d: d, closed: make(chan struct{})}, err
}

func (c *deafConn) Read(b []byte) (int, error) {
	if c.d.deaf.Load() {
		<-c.closed
	}
	return c.Conn.Read(b)
}

func (c *deafConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// Readers who take nothing cost what all of them may, not that for each; who reads stays.
func TestReadersThatDoNotRead(t *testing.T) {
	s := start(t)
	inventory(t, s)
	d := openDoor(t, s)
	good := d.reader("good")
	sub, err := good.SubscribeSync(protocol.SubjectInventoryAll)
	require.NoError(t, err)
	require.NoError(t, good.Flush())
	for i := range maxReaderUser {
		ear := &deafener{}
		nc := d.reader(fmt.Sprintf("deaf-%d", i), nats.SetCustomDialer(ear))
		_, err := nc.SubscribeSync(protocol.SubjectInventoryAll)
		require.NoError(t, err)
		require.NoError(t, nc.Flush())
		ear.deaf.Store(true)
	}
	hub, err := s.AgentsConn()
	require.NoError(t, err)
	defer hub.Close()
	sent := 0
	require.Eventually(t, func() bool {
		require.NoError(t, hub.Publish(protocol.InventorySubject("idc", 7), make([]byte, protocol.MaxInventory)))
		require.NoError(t, hub.FlushTimeout(patience))
		sent++
		_, err := sub.NextMsg(patience)
		require.NoError(t, err, "who reads gets all")
		return s.count(t, RefusedSlow) > 0
	}, patience, 50*time.Millisecond)
	t.Logf("after %d MiB", sent)
}
