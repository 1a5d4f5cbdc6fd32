package bus

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// start starts a server with which no node waits.
func start(t *testing.T) *Server {
	t.Helper()
	return startWith(t, Budget{1 << 20, 1 << 20, 1 << 30, 1 << 30})
}

func startWith(t *testing.T, b Budget) *Server {
	t.Helper()
	s, err := Start(t.Context(), Config{Dir: t.TempDir(), Budget: b, Log: zerolog.Nop()})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

// dialer connects NATS clients through ServeAgent, as an agent's control
// session does.
type dialer struct {
	s    *Server
	site string
	n    protocol.NodeNumber
	t    *testing.T

	mu   sync.Mutex
	last error
	wg   sync.WaitGroup
}

func (d *dialer) Dial(_, _ string) (net.Conn, error) {
	agent, hub := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	d.t.Cleanup(func() { cancel(); d.wg.Wait() })
	d.wg.Go(func() {
		err := d.s.ServeAgent(ctx, hub, d.site, d.n)
		d.mu.Lock()
		d.last = err
		d.mu.Unlock()
	})
	return agent, nil
}

func (d *dialer) SkipTLSHandshake() bool { return true }

func (d *dialer) ended() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last
}

// agent connects as node n; denied receives the server's permission errors.
func agent(t *testing.T, s *Server, site string, n protocol.NodeNumber, opts ...nats.Option) (nc *nats.Conn, d *dialer, denied chan error) {
	t.Helper()
	d = &dialer{s: s, site: site, n: n, t: t}
	denied = make(chan error, 100)
	opts = append(opts, nats.SetCustomDialer(d), nats.CustomInboxPrefix(protocol.InboxPrefix(n)), nats.NoReconnect(), nats.SkipHostLookup(),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { denied <- err }))
	nc, err := nats.Connect("nats://hub:4222", opts...)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	return nc, d, denied
}

func inventory(t *testing.T, s *Server) jetstream.Stream {
	t.Helper()
	nc, err := s.AgentsConn()
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	st, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: protocol.InventoryStream, Subjects: []string{protocol.SubjectInventoryAll}})
	require.NoError(t, err)
	return st
}

func TestAgentPublishesItsInventory(t *testing.T) {
	s := start(t)
	st := inventory(t, s)
	nc, _, _ := agent(t, s, "idc-sh", 7, nats.UserInfo("root", "guess"), nats.Name("agent"))
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ack, err := js.Publish(ctx, protocol.InventorySubject("idc-sh", 7), []byte("facts"))
	require.NoError(t, err)
	require.Equal(t, uint64(1), ack.Sequence)
	msg, err := st.GetMsg(ctx, 1)
	require.NoError(t, err)
	require.Equal(t, "facts", string(msg.Data))
}

func TestAgentPermissions(t *testing.T) {
	s := start(t)
	st := inventory(t, s)
	for _, subject := range []string{
		protocol.InventorySubject("idc-sh", 8), protocol.InventorySubject("idc-bj", 7), "causeway.v1.inventory.idc-sh.7",
		"causeway.v1.inventory.idc-sh.70.snapshot", "causeway.state.v1.log", "$JS.API.STREAM.DELETE.CAUSEWAY_INVENTORY",
		"$JS.API.INFO", "$SYS.REQ.SERVER.PING", "_INBOX.8.x", "anything",
	} {
		nc, _, denied := agent(t, s, "idc-sh", 7)
		require.NoError(t, nc.Publish(subject, []byte("x")))
		requireDenied(t, nc, denied, "publish "+subject)
	}
	for _, subject := range []string{
		">", "*", "causeway.>", "causeway.v1.inventory.>", protocol.InventorySubject("idc-sh", 8), protocol.InventorySubject("idc-sh", 7),
		"_INBOX.>", "_INBOX.8.>", "_INBOX.*.>", "_INBOX.7", "$JS.>", "$SYS.>", "causeway.state.v1.log",
	} {
		nc, _, denied := agent(t, s, "idc-sh", 7)
		_, err := nc.SubscribeSync(subject)
		require.NoError(t, err)
		requireDenied(t, nc, denied, "subscribe "+subject)
	}
	info, err := st.Info(t.Context())
	require.NoError(t, err)
	require.Zero(t, info.State.Msgs)
}

func requireDenied(t *testing.T, nc *nats.Conn, denied chan error, what string) {
	t.Helper()
	require.NoError(t, nc.Flush(), what)
	select {
	case err := <-denied:
		require.ErrorContains(t, err, "ermissions", what)
	case <-time.After(10 * time.Second):
		t.Fatal("allowed: " + what)
	}
}

// JetStream answers a publish with its own rights: without the filter, the
// second subject deletes the stream.
func TestAgentReplySubject(t *testing.T) {
	s := start(t)
	st := inventory(t, s)
	for _, reply := range []string{protocol.InventorySubject("idc-sh", 8), "$JS.API.STREAM.DELETE.CAUSEWAY_INVENTORY", "_INBOX.8.x", "_INBOX.70.x"} {
		nc, d, _ := agent(t, s, "idc-sh", 7)
		require.NoError(t, nc.PublishRequest(protocol.InventorySubject("idc-sh", 7), reply, []byte("x")))
		require.Error(t, nc.FlushTimeout(10*time.Second), reply)
		require.Eventually(t, func() bool { return errors.Is(d.ended(), ErrProtocol) }, 10*time.Second, time.Millisecond, reply)
	}
	_, err := st.Info(t.Context())
	require.NoError(t, err)
}

func TestStateAccountIsApart(t *testing.T) {
	s := start(t)
	nc, err := s.StateConn()
	require.NoError(t, err)
	defer nc.Close()
	sub, err := nc.SubscribeSync(">")
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	ac, err := s.AgentsConn()
	require.NoError(t, err)
	defer ac.Close()
	require.NoError(t, ac.Publish("causeway.state.v1.log", []byte("x")))
	require.NoError(t, ac.Flush())
	require.NoError(t, nc.Publish("own", nil))
	msg, err := sub.NextMsg(10 * time.Second)
	require.NoError(t, err)
	require.Equal(t, "own", msg.Subject)
}

func TestCredentialsEndWithTheSession(t *testing.T) {
	s := start(t)
	nc, _, _ := agent(t, s, "idc-sh", 7)
	require.Len(t, s.sessions, 3)
	nc.Close()
	require.Eventually(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.sessions) == 2 }, 10*time.Second, time.Millisecond)
	for _, connect := range []string{`{"auth_token":"guess"}`, `{}`, `{"user":"a","pass":"b"}`} {
		c, err := s.ns.InProcessConn()
		require.NoError(t, err)
		c.SetDeadline(time.Now().Add(10 * time.Second))
		br := bufio.NewReader(c)
		_, err = br.ReadString('\n') // INFO
		require.NoError(t, err)
		go c.Write([]byte("CONNECT " + connect + "\r\nPING\r\n")) // a pipe: both sides may write at once
		line, err := br.ReadString('\n')
		require.NoError(t, err)
		require.Contains(t, line, "Authorization Violation")
		c.Close()
	}
}

func TestStartSaysWhyNot(t *testing.T) {
	_, err := Start(t.Context(), Config{Dir: "/proc/causeway", Log: zerolog.Nop()})
	require.Error(t, err)
	require.NotContains(t, err.Error(), "not ready after")
	require.NotContains(t, err.Error(), "\n")
}

// An agent is foreign code as far as the hub is concerned: whatever it sends first, what
// reaches the server carries the session's credential and nothing of the agent's.
func FuzzRewriteConnect(f *testing.F) {
	f.Add([]byte("CONNECT {\"user\":\"a\",\"pass\":\"b\",\"jwt\":\"c\",\"auth_token\":\"d\",\"echo\":false}\r\n"))
	f.Add([]byte("CONNECT {\"Auth_Token\":\"x\",\"AUTH_TOKEN\":\"y\",\"account\":\"CAUSEWAY_STATE\"}\r\n"))
	f.Add([]byte("connect {}\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		out, err := rewriteConnect(line, "secret", "node 7")
		if err != nil {
			require.ErrorIs(t, err, ErrProtocol)
			return
		}
		arg, ok := strings.CutPrefix(string(out), "CONNECT ")
		require.True(t, ok)
		require.Equal(t, 1, strings.Count(string(out), "\n"))
		var m map[string]any
		require.NoError(t, json.Unmarshal([]byte(arg), &m))
		require.Equal(t, "secret", m["auth_token"])
		for _, k := range []string{"user", "pass", "jwt", "nkey", "sig", "account", "new_account"} {
			require.NotContains(t, m, k)
		}
	})
}

// Whatever line an agent sends, a publish that passes has a reply below its
// own inbox or none, and its payload is bounded.
func FuzzCheckLine(f *testing.F) {
	for _, l := range []string{"PUB a 5\r\n", "PUB a _INBOX.7.x 5\r\n", "HPUB a b 3 5\r\n", "HPUB a 3 5\r\n", "pub a b 5\n", "SUB a 1\r\n", "CONNECT {}\r\n"} {
		f.Add([]byte(l))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		n, err := checkLine(words(line), "_INBOX.7.", maxPayload)
		if err == nil && n > maxPayload+2 {
			t.Fatal(n)
		}
	})
}
