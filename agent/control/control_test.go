package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"causeway/protocol"
	"causeway/tunnel/mux"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hub is the other end of a session.
type hub struct {
	t       *testing.T
	m       *mux.Session
	raw     net.Conn // beneath m
	control net.Conn
	nats    chan net.Conn
}

type agent struct {
	lists  chan protocol.HubListAnswer
	client *Client
	netmap chan protocol.Netmap
	err    chan error
	cancel context.CancelFunc
}

func pair(t *testing.T, edit func(*Config)) (*hub, *agent) {
	a, b := net.Pipe()
	ag := &agent{lists: make(chan protocol.HubListAnswer, 1), netmap: make(chan protocol.Netmap, 8), err: make(chan error, 1)}
	cfg := Config{
		Number:  9,
		Hello:   func() protocol.Hello { return protocol.Hello{AgentVersion: "test"} },
		Welcome: func(protocol.Welcome) {}, Ended: func() {},
		Netmap: func(_ context.Context, n protocol.Netmap) protocol.NetmapAck {
			ag.netmap <- n
			return protocol.NetmapAck{NetmapVersion: n.NetmapVersion}
		},
		HubList: func(_ context.Context, l protocol.HubListAnswer) { ag.lists <- l },
		Status:  func() protocol.Status { return protocol.Status{Conditions: []protocol.Condition{{Name: "x"}}} },
		NATS: func(ctx context.Context, open func(context.Context) (net.Conn, error)) {
			if c, err := open(ctx); err == nil {
				io.WriteString(c, "CONNECT {}\r\n")
				<-ctx.Done()
				c.Close()
			}
		},
		Log: zerolog.Nop(),
	}
	if edit != nil {
		edit(&cfg)
	}
	ag.client = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ag.cancel = cancel
	go func() {
		ag.err <- ag.client.Serve(ctx, a, func(c net.Conn) {
			io.Copy(c, io.LimitReader(c, 4))
			c.Close()
		})
	}()

	m, err := mux.Server(b)
	require.NoError(t, err)
	h := &hub{t: t, m: m, raw: b, nats: make(chan net.Conn, 1)}
	t.Cleanup(func() {
		cancel()
		m.Close()
	})
	h.control = h.accept(protocol.StreamControl)
	return h, ag
}

func (h *hub) accept(kind protocol.StreamKind) net.Conn {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := h.m.Accept(ctx)
	require.NoError(h.t, err)
	hd, err := mux.ReadHeader(c)
	require.NoError(h.t, err)
	require.Equal(h.t, kind, hd.Kind)
	return c
}

func (h *hub) send(kind protocol.MessageKind, body any) {
	h.t.Helper()
	m, err := protocol.NewMessage(kind, body)
	require.NoError(h.t, err)
	// The agent may end the session on what it reads, before the write is over.
	if err := protocol.WriteFrame(h.control, m, protocol.MaxToAgent); err != nil {
		h.t.Logf("send %s: %v", kind, err)
	}
}

// next is the next message of that kind; others are passed over.
func (h *hub) next(kind protocol.MessageKind) protocol.Message {
	h.t.Helper()
	h.control.SetReadDeadline(time.Now().Add(5 * time.Second))
	for {
		var m protocol.Message
		require.NoError(h.t, protocol.ReadFrame(h.control, &m, protocol.MaxToHub))
		if m.Kind == kind {
			return m
		}
	}
}

func (h *hub) welcome() {
	h.t.Helper()
	h.next(protocol.KindHello)
	h.send(protocol.KindWelcome, protocol.Welcome{Number: 9})
}

func (a *agent) ended(t *testing.T) error {
	t.Helper()
	select {
	case err := <-a.err:
		return err
	case <-time.After(5 * time.Second):
		t.Fatal("the session goes on")
		return nil
	}
}

func TestSession(t *testing.T) {
	h, a := pair(t, nil)
	h.welcome()
	n := h.accept(protocol.StreamNATS)
	b := make([]byte, 12)
	_, err := io.ReadFull(n, b)
	require.NoError(t, err)
	require.Equal(t, "CONNECT {}\r\n", string(b))
	h.next(protocol.KindStatus)
	require.Eventually(t, a.client.Connected, 5*time.Second, time.Millisecond)

	v := protocol.NetmapVersion{Epoch: 1, Version: 4}
	h.send(protocol.KindNetmap, protocol.Netmap{NetmapVersion: v})
	var ack protocol.NetmapAck
	require.NoError(t, h.next(protocol.KindNetmapAck).Decode(&ack))
	require.Equal(t, v, ack.NetmapVersion)
	require.Equal(t, v, (<-a.netmap).NetmapVersion)
	h.next(protocol.KindStatus) // at once, not after the interval

	require.NoError(t, a.client.Ack(protocol.NetmapAck{NetmapVersion: v, Errors: []string{"x"}}))
	require.NoError(t, h.next(protocol.KindNetmapAck).Decode(&ack))
	require.Equal(t, []string{"x"}, ack.Errors)

	a.cancel()
	require.ErrorIs(t, a.ended(t), context.Canceled)
	require.False(t, a.client.Connected())
	require.NoError(t, a.client.Ack(ack), "without a session")
}

func TestUnknownAndBadMessages(t *testing.T) {
	h, a := pair(t, nil)
	h.welcome()
	h.send("future", map[string]int{"a": 1})
	var e protocol.Error
	require.NoError(t, h.next(protocol.KindError).Decode(&e))
	require.Equal(t, protocol.ErrorUnknownKind, e.Code)
	h.send(protocol.KindNetmap, "no netmap")
	require.NoError(t, h.next(protocol.KindError).Decode(&e))
	require.Equal(t, protocol.ErrorBadMessage, e.Code)
	h.send(protocol.KindHubList, "no hub list")
	require.NoError(t, h.next(protocol.KindError).Decode(&e))
	require.Equal(t, protocol.ErrorBadMessage, e.Code)
	require.NoError(t, a.client.AskHubList(protocol.ListNonce{3}))
	var ask protocol.HubListAsk
	require.NoError(t, h.next(protocol.KindHubListAsk).Decode(&ask))
	require.Equal(t, protocol.ListNonce{3}, ask.Nonce)
	h.send(protocol.KindHubList, protocol.HubListAnswer{Fresh: &protocol.Freshness{Nonce: ask.Nonce}})
	require.Equal(t, ask.Nonce, (<-a.lists).Fresh.Nonce)
	// A hub of before does not know the question; the session goes on.
	h.send(protocol.KindError, protocol.Error{Code: protocol.ErrorUnknownKind})
	h.send(protocol.KindWelcome, protocol.Welcome{})
	h.send(protocol.KindNetmap, protocol.Netmap{})
	h.next(protocol.KindNetmapAck)
	h.send(protocol.KindError, protocol.Error{Code: "other", Message: "no\nway"})
	err := a.ended(t)
	require.ErrorContains(t, err, "the hub says")
	require.NotContains(t, err.Error(), "\n")
}

func TestStreamsOfTheHub(t *testing.T) {
	h, _ := pair(t, nil)
	h.welcome()
	c, err := h.m.Open(context.Background(), protocol.StreamHeader{Kind: protocol.StreamDebug})
	require.NoError(t, err)
	io.WriteString(c, "ping")
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "ping", string(b))
	c.Close()

	// Of a kind that the agent does not serve.
	c, err = h.m.Open(context.Background(), protocol.StreamHeader{Kind: "shell"})
	require.NoError(t, err)
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err = c.Read(b)
	require.ErrorIs(t, err, io.EOF)
	c.Close()
}

// A hub that opens streams without end gets no more than maxStreams, and another
// when one of them ends.
func TestStreamsOfTheHubAreBounded(t *testing.T) {
	h, _ := pair(t, nil)
	h.welcome()
	open := func() net.Conn {
		c, err := h.m.Open(t.Context(), protocol.StreamHeader{Kind: protocol.StreamDebug})
		require.NoError(t, err)
		return c
	}
	answers := func(c net.Conn) bool {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, "ping")
		b, _ := io.ReadAll(c)
		return string(b) == "ping"
	}
	var held []net.Conn
	for range maxStreams {
		held = append(held, open())
	}
	require.False(t, answers(open()), "one too many")
	require.True(t, answers(held[0]), "those within the limit are served")
	held[0].Close()
	require.Eventually(t, func() bool { c := open(); defer c.Close(); return answers(c) }, 10*time.Second, 10*time.Millisecond, "a place is free again")
}

func TestWelcomeErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		kind protocol.MessageKind
		body any
		want string
	}{
		{"other number", protocol.KindWelcome, protocol.Welcome{Number: 8}, "takes this node for number 8"},
		{"netmap first", protocol.KindNetmap, protocol.Netmap{}, `it sent "netmap" first`},
		{"revoked", protocol.KindError, protocol.Error{Code: protocol.ErrorRevoked}, ErrRevoked.Error()},
		{"bad", protocol.KindWelcome, 3, "decode welcome"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, a := pair(t, nil)
			h.next(protocol.KindHello)
			h.send(c.kind, c.body)
			require.ErrorContains(t, a.ended(t), c.want)
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		h, a := pair(t, nil)
		h.next(protocol.KindHello)
		a.cancel()
		require.Error(t, a.ended(t))
	})
}

// An agent that is told to stop while half a frame of the hub's first message
// is here does not wait for the rest. Whether its read is in the way of that is
// chance, hence the repetition.
func TestStopInMidFrame(t *testing.T) {
	for range 50 {
		h, a := pair(t, nil)
		h.next(protocol.KindHello)
		// yamux: version, type data, flags, stream 1, length; and the data. The
		// first two bytes are there, and of what follows some.
		_, err := h.raw.Write([]byte{
			0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0,
			0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 100, 0, 50, '{',
		})
		require.NoError(t, err)
		runtime.Gosched()
		a.cancel()
		require.Error(t, a.ended(t))
	}
}

func TestHubGone(t *testing.T) {
	h, a := pair(t, nil)
	h.welcome()
	h.next(protocol.KindStatus)
	h.m.Close()
	require.Error(t, a.ended(t))
}

func TestTooLargeFrameEndsTheSession(t *testing.T) {
	h, a := pair(t, nil)
	h.welcome()
	h.control.Write([]byte{0xff, 0xff, 0xff, 0xff})
	require.ErrorIs(t, a.ended(t), protocol.ErrFrameTooLarge)
}

func TestRevoked(t *testing.T) {
	h, a := pair(t, nil)
	h.welcome()
	h.send(protocol.KindError, protocol.Error{Code: protocol.ErrorRevoked})
	require.ErrorIs(t, a.ended(t), ErrRevoked)
}

func TestLeave(t *testing.T) {
	h, a := pair(t, nil)
	require.ErrorIs(t, a.client.Leave(context.Background()), ErrNoSession)
	h.welcome()
	require.Eventually(t, a.client.Connected, 5*time.Second, time.Millisecond)
	done := make(chan error, 1)
	go func() { done <- a.client.Leave(context.Background()) }()
	h.next(protocol.KindLeave)
	h.send(protocol.KindLeft, struct{}{})
	require.NoError(t, <-done)
	require.NoError(t, a.ended(t))
}

func TestLeaveUnconfirmed(t *testing.T) {
	h, a := pair(t, nil)
	h.welcome()
	require.Eventually(t, a.client.Connected, 5*time.Second, time.Millisecond)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.client.Leave(ctx) }()
	h.next(protocol.KindLeave)
	cancel()
	require.ErrorContains(t, <-done, "did not confirm")
}

// A hub asks for a proof of this hello before it welcomes; one that asks in another's name, or
// asks twice, gets none and no session.
func TestProof(t *testing.T) {
	id := protocol.IdentityPrivateKey{5}
	start := func() (*hub, *agent, protocol.Message) {
		h, a := pair(t, func(c *Config) {
			c.Prove = func(ch protocol.Challenge, hello []byte) (protocol.Proof, error) {
				if ch.Hub != 1 {
					return protocol.Proof{}, errors.New("not the hub that was dialled")
				}
				return ch.Prove(9, hello, id), nil
			}
		})
		return h, a, h.next(protocol.KindHello)
	}
	c := protocol.Challenge{Nonce: bytes.Repeat([]byte{7}, protocol.ChallengeNonce), Hub: 1, Boot: protocol.BootID{3}}

	h, a, hello := start()
	h.send(protocol.KindChallenge, c)
	p, err := protocol.ParseProof(h.next(protocol.KindProof).Body)
	require.NoError(t, err)
	require.True(t, p.Proves(c, 9, hello.Body, id.Public()))
	require.False(t, a.client.Connected())
	h.send(protocol.KindWelcome, protocol.Welcome{Number: 9})
	h.next(protocol.KindStatus)
	require.True(t, a.client.Connected())

	h, a, _ = start()
	other := c
	other.Hub = 2
	h.send(protocol.KindChallenge, other)
	require.ErrorContains(t, a.ended(t), "not the hub that was dialled")

	h, a, _ = start()
	h.send(protocol.KindChallenge, protocol.Challenge{Nonce: []byte{1}, Hub: 1})
	require.ErrorIs(t, a.ended(t), protocol.ErrProofInvalid)

	h, a, _ = start()
	h.send(protocol.KindChallenge, c)
	h.next(protocol.KindProof)
	h.send(protocol.KindChallenge, c)
	require.ErrorContains(t, a.ended(t), `it sent "challenge" first`)
}
