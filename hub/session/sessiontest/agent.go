package sessiontest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"causeway/hub/join/jointest"
	"causeway/protocol"
	"causeway/tunnel/mux"
)

// patience bounds what a host or an agent waits for.
const patience = 20 * time.Second

// Host is a host that has joined.
type Host struct {
	WireGuard protocol.WireGuardPrivateKey
	Epoch     uint32 // of WireGuard
	Identity  protocol.IdentityPrivateKey
	Answer    protocol.JoinAnswer
	Hubs      protocol.HubList
}

// Join redeems a token over HTTPS as a joining host does.
func Join(tok protocol.Token, name string) (*Host, error) {
	h := &Host{Epoch: protocol.FirstKeyEpoch}
	var err error
	if h.WireGuard, err = protocol.NewWireGuardPrivateKey(); err != nil {
		return nil, err
	}
	if h.Identity, err = protocol.NewIdentityPrivateKey(); err != nil {
		return nil, err
	}
	c := jointest.Client(nil)
	defer c.CloseIdleConnections()
	if h.Hubs, err = jointest.HubList(c, tok); err != nil {
		return nil, err
	}
	req := protocol.JoinRequest{Version: protocol.Version, TokenID: tok.ID, Secret: tok.Secret[:], Name: name, IdentityKey: h.Identity.Public(), Proves: true}
	if h.Answer, err = jointest.Redeem(c, tok, h.Hubs.Hubs[0].WireGuardKey, h.WireGuard, req); err != nil {
		return nil, err
	}
	if r := h.Answer.Refused; r != nil {
		return nil, fmt.Errorf("join refused: %s: %s", r.Code, r.Message)
	}
	return h, nil
}

// Rekey gives the host a new WireGuard key, of the next epoch. Its next session tells the hub.
func (h *Host) Rekey() (err error) {
	h.WireGuard, err = protocol.NewWireGuardPrivateKey()
	h.Epoch++
	return err
}

// Agent is the control session of a host that acknowledges all netmaps: the agent's side of the wire, and
// nothing behind it. What it tells, a test says. Its methods may be called concurrently.
type Agent struct {
	tun     *Tunnel
	host    *Host
	mux     *mux.Session
	control net.Conn
	answers http.Handler
	ended   chan struct{}
	serving sync.WaitGroup

	writing sync.Mutex

	answered chan struct{} // the hub answered what flush asked

	mu     sync.Mutex
	mute   bool
	netmap *protocol.Netmap
	news   chan struct{} // closed at the next netmap
}

// Connect makes the control session of h, whose hello says what is given. answers is the agent's debug API; nil: it
// has none.
func (t *Tunnel) Connect(ctx context.Context, h *Host, hello protocol.Hello, answers http.Handler) (*Agent, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := t.dialSoon(ctx, h, protocol.ControlPort)
	if err != nil {
		return nil, err
	}
	if answers == nil {
		answers = http.NotFoundHandler()
	}
	a := &Agent{tun: t, host: h, answers: answers, ended: make(chan struct{}), answered: make(chan struct{}, 1), news: make(chan struct{})}
	if a.mux, err = mux.Client(c); err != nil {
		c.Close()
		return nil, err
	}
	if a.control, err = a.mux.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamControl}); err == nil {
		err = a.hello(hello)
	}
	if err != nil {
		a.mux.Close()
		return nil, err
	}
	go a.read()
	a.serving.Go(a.serve)
	return a, nil
}

// dialSoon connects to a port of the hub's: the tunnel learns of a node a moment after its join.
func (t *Tunnel) dialSoon(ctx context.Context, h *Host, port uint16) (net.Conn, error) {
	hub, err := h.Hubs.Hubs[0].Number.Overlay(h.Hubs.Overlay[0])
	if err != nil {
		return nil, err
	}
	for {
		c, err := t.DialPort(ctx, h.Answer.Overlay[0], netip.AddrPortFrom(hub, port))
		if err == nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (a *Agent) hello(hello protocol.Hello) error {
	h := a.host
	hello.Statement = protocol.NodeStatement{Number: h.Answer.Number, WireGuardKey: h.WireGuard.Public(), Epoch: h.Epoch}.Sign(h.Identity)
	hello.Vouch = protocol.Vouch(h.Hubs.Hubs[0].Number, h.Answer.Number, hello.BootID, h.Identity)
	said, err := protocol.NewMessage(protocol.KindHello, hello)
	if err != nil {
		return err
	}
	a.control.SetDeadline(time.Now().Add(patience))
	defer a.control.SetDeadline(time.Time{})
	if err := protocol.WriteFrame(a.control, said, protocol.MaxToHub); err != nil {
		return err
	}
	for {
		var m protocol.Message
		if err := protocol.ReadFrame(a.control, &m, protocol.MaxToAgent); err != nil {
			return err
		}
		switch m.Kind {
		case protocol.KindChallenge:
			ch, err := protocol.ParseChallenge(m.Body)
			if err == nil {
				err = a.Send(protocol.KindProof, ch.Prove(h.Answer.Number, said.Body, h.Identity))
			}
			if err != nil {
				return err
			}
		case protocol.KindWelcome:
			return nil
		default:
			return fmt.Errorf("no welcome but %s: %s", m.Kind, m.Body)
		}
	}
}

// Send sends a message on the control stream.
func (a *Agent) Send(k protocol.MessageKind, body any) error {
	m, err := protocol.NewMessage(k, body)
	if err != nil {
		return err
	}
	a.writing.Lock()
	defer a.writing.Unlock()
	return protocol.WriteFrame(a.control, m, protocol.MaxToHub)
}

// flush asks what no hub knows, which is answered once all that was sent before has been taken.
const flush protocol.MessageKind = "flush"

// Flush waits until the hub has taken all that was sent. One goroutine alone may call it.
func (a *Agent) Flush(ctx context.Context) error {
	if err := a.Send(flush, struct{}{}); err != nil {
		return err
	}
	select {
	case <-a.answered:
		return nil
	case <-a.ended:
		return errors.New("the session ended")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Mute has the agent acknowledge no further netmap.
func (a *Agent) Mute() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mute = true
}

// Until waits for a netmap for which cond holds, and returns it.
func (a *Agent) Until(ctx context.Context, cond func(protocol.Netmap) bool) (protocol.Netmap, error) {
	for {
		a.mu.Lock()
		n, news := a.netmap, a.news
		a.mu.Unlock()
		if n != nil && cond(*n) {
			return *n, nil
		}
		select {
		case <-news:
		case <-a.ended:
			return protocol.Netmap{}, errors.New("the session ended")
		case <-ctx.Done():
			return protocol.Netmap{}, ctx.Err()
		}
	}
}

func (a *Agent) read() {
	defer close(a.ended)
	for {
		var m protocol.Message
		if protocol.ReadFrame(a.control, &m, protocol.MaxToAgent) != nil {
			return
		}
		switch m.Kind {
		case protocol.KindNetmap:
			a.take(m)
		case protocol.KindError:
			var e protocol.Error
			if m.Decode(&e) == nil && e.Code == protocol.ErrorUnknownKind {
				select {
				case a.answered <- struct{}{}:
				default:
				}
			}
		case protocol.KindBulk:
			if c, err := protocol.ParseChallenge(m.Body); err == nil {
				a.serving.Go(func() { a.bulk(c) })
			}
		}
	}
}

// take keeps a netmap and acknowledges it.
func (a *Agent) take(m protocol.Message) {
	var n protocol.Netmap
	if m.Decode(&n) != nil {
		a.mux.Close()
		return
	}
	a.mu.Lock()
	full, err := n.Apply(a.netmap)
	if err == nil {
		a.netmap = &full
	}
	mute := a.mute
	close(a.news)
	a.news = make(chan struct{})
	a.mu.Unlock()
	if !mute {
		a.Send(protocol.KindNetmapAck, protocol.NetmapAck{NetmapVersion: n.NetmapVersion, Full: err != nil})
	}
}

// serve answers the hub on debug streams.
func (a *Agent) serve() {
	for {
		s, err := a.mux.Accept(context.Background())
		if err != nil {
			return
		}
		if h, err := mux.ReadHeader(s); err != nil || h.Kind != protocol.StreamDebug {
			s.Close()
			continue
		}
		a.serving.Go(func() { serveOne(s, a.answers) })
	}
}

// bulk answers the hub on a connection that it asked for.
func (a *Agent) bulk(ch protocol.Challenge) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := a.tun.dialSoon(ctx, a.host, protocol.BulkPort)
	if err != nil {
		return
	}
	if protocol.WriteFrame(c, ch.ProveBulk(a.host.Answer.Number, a.host.Identity), protocol.MaxProof) != nil {
		c.Close()
		return
	}
	serveOne(c, a.answers)
}

// Publish publishes over NATS on a stream of the session, as agents tell facts, and waits until the hub has stored it.
func (a *Agent) Publish(ctx context.Context, subject string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	nc, err := nats.Connect("nats://hub:4222", nats.SetCustomDialer(natsDialer{a.mux}), nats.SkipHostLookup(), nats.NoReconnect(),
		nats.CustomInboxPrefix(protocol.InboxPrefix(a.host.Answer.Number)), nats.Timeout(patience))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	_, err = js.Publish(ctx, subject, b)
	return err
}

// Close ends the session without a goodbye, as a host that loses its power does.
func (a *Agent) Close() {
	a.mux.Close()
	<-a.ended
	a.serving.Wait()
}

type natsDialer struct{ mux *mux.Session }

// Dial opens a stream for NATS.
func (d natsDialer) Dial(_, _ string) (net.Conn, error) {
	return d.mux.Open(context.Background(), protocol.StreamHeader{Kind: protocol.StreamNATS})
}

// SkipTLSHandshake says that the session is secret already.
func (natsDialer) SkipTLSHandshake() bool { return true }

// serveOne serves HTTP on one connection until it ends.
func serveOne(c net.Conn, h http.Handler) {
	l := &oneConn{c: c, end: make(chan struct{})}
	s := &http.Server{Handler: h, ConnState: func(_ net.Conn, st http.ConnState) {
		if st == http.StateClosed || st == http.StateHijacked {
			l.once.Do(func() { close(l.end) })
		}
	}}
	s.Serve(l)
}

// oneConn is a listener of one connection, which waits for the end of that.
type oneConn struct {
	c    net.Conn
	end  chan struct{}
	once sync.Once
}

// Accept returns the connection, and then an error once that has ended.
func (l *oneConn) Accept() (net.Conn, error) {
	if c := l.c; c != nil {
		l.c = nil
		return c, nil
	}
	<-l.end
	return nil, net.ErrClosed
}

// Close does nothing: the connection is the server's.
func (l *oneConn) Close() error { return nil }

// Addr is none.
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }
