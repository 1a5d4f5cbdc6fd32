package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"causeway/hub/facts/event"
	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
	"causeway/tunnel/mux"
)

// session is one control connection of a node.
type session struct {
	s    *Server
	node protocol.NodeNumber
	site string
	// known is what the fleet knows the session as, once it is proven or need not be; see serveControl.
	known *fleet.Session
	mux   *mux.Session
	end   *endNoted
	// Until it is admitted; see unproven.go.
	knock    *knock
	patience *time.Timer // closes the connection unless the agent was welcomed
	log      zerolog.Logger

	acks   chan protocol.NetmapAck
	accept sync.Once // the control stream: the first one

	listShown time.Time // when the hub list was; for the control stream's reader alone

	mu      sync.Mutex
	control net.Conn // after Hello
	welcome bool
	wmu     sync.Mutex // writes on control
}

// endNoted is a connection that notes whether the other side ended it, which no
// error of the streams inside tells from an end of our own.
type endNoted struct {
	net.Conn
	byPeer atomic.Bool
	knock  *knock
}

func (c *endNoted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.knock.took(n)
	if errors.Is(err, io.EOF) {
		c.byPeer.Store(true)
	}
	return n, err
}

// serveConn runs the session on c, which it closes.
func (s *Server) serveConn(ctx context.Context, c net.Conn) {
	defer c.Close()
	from, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return
	}
	node, ok := s.cfg.Store.State().NodeByOverlay(from.Addr())
	if !ok {
		return
	}
	k := s.door.knock(node.Number, c)
	defer k.end()
	end := &endNoted{Conn: c, knock: k}
	m, err := mux.ServeControl(end)
	if err != nil {
		return
	}
	defer m.Close()
	stop := context.AfterFunc(ctx, func() { m.Close() })
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	ses := &session{s: s, node: node.Number, site: node.Site, mux: m, end: end, knock: k, acks: make(chan protocol.NetmapAck, 4),
		log: s.logOf(node)}
	ses.patience = time.AfterFunc(unprovenTimeout, func() {
		if !ses.welcomed() {
			m.Close()
		}
	})
	defer ses.patience.Stop()
	defer func() {
		if !ses.welcomed() {
			time.AfterFunc(unheardFor, func() { abort(c) })
		}
	}()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer m.Close()
	slots := make(chan struct{}, maxStreams)
	pace := rate.NewLimiter(streamRate, streamBurst)
	all := s.fleet.Streams(node.Number)
	for {
		if pace.Wait(ctx) != nil || ses.welcomed() && all.Wait(ctx) != nil { // strangers take nothing of the node's
			return
		}
		st, err := m.Accept(ctx)
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			st.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer st.Close()
			ses.serveStream(ctx, st)
		})
	}
}

func (ses *session) serveStream(ctx context.Context, st net.Conn) {
	h, err := mux.ReadHeader(st)
	if errors.Is(err, protocol.ErrFrameTooLarge) || errors.Is(err, protocol.ErrFrameInvalid) {
		ses.log.Warn().Err(err).Msg("a stream that does not say what it is, the session ends")
		ses.mux.Close()
		return
	}
	if err != nil {
		return
	}
	switch h.Kind {
	case protocol.StreamControl:
		first := false
		ses.accept.Do(func() { first = true })
		if !first {
			refuseStream(st, protocol.ErrorBadMessage, "there is a control stream already")
			return
		}
		defer ses.mux.Close() // a session without it is of no use
		if err := ses.serveControl(ctx, st); err != nil && ctx.Err() == nil {
			ses.log.Debug().Err(err).Msg("control stream ended")
		}
	case protocol.StreamNATS:
		if !ses.welcomed() {
			refuseStream(st, protocol.ErrorBadMessage, "hello comes first")
			return
		}
		if err := ses.s.cfg.Bus.ServeAgent(ctx, st, ses.site, ses.node); err != nil && ctx.Err() == nil {
			ses.log.Warn().Err(err).Msg("nats stream refused")
		}
	default:
		refuseStream(st, protocol.ErrorUnknownKind, fmt.Sprintf("this hub does not know streams of kind %.40q from an agent", h.Kind))
	}
}

// refuseStream says why before the stream is closed.
func refuseStream(st net.Conn, code, text string) {
	m, err := protocol.NewMessage(protocol.KindError, protocol.Error{Code: code, Message: text})
	if err != nil {
		return
	}
	st.SetWriteDeadline(time.Now().Add(writeTimeout))
	protocol.WriteFrame(st, m, protocol.MaxToAgent)
}

func (ses *session) welcomed() bool {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	return ses.welcome
}

// send writes one message on the control stream.
func (ses *session) send(kind protocol.MessageKind, body any) error {
	m, err := protocol.NewMessage(kind, body)
	if err != nil {
		return err
	}
	return ses.write(kind, func(c net.Conn) error {
		c.SetWriteDeadline(time.Now().Add(writeTimeout))
		return protocol.WriteFrame(c, m, protocol.MaxToAgent)
	})
}

// write has the control stream to itself while f writes a message of that kind.
func (ses *session) write(kind protocol.MessageKind, f func(net.Conn) error) error {
	ses.mu.Lock()
	c := ses.control
	ses.mu.Unlock()
	if c == nil {
		return ErrOffline
	}
	ses.wmu.Lock()
	defer ses.wmu.Unlock()
	if err := f(c); err != nil {
		return fmt.Errorf("send %s: %w", kind, err)
	}
	return nil
}

// serveControl runs the control stream.
func (ses *session) serveControl(ctx context.Context, st net.Conn) error {
	ses.mu.Lock()
	ses.control = st
	ses.mu.Unlock()
	var m protocol.Message
	st.SetReadDeadline(time.Now().Add(unprovenTimeout))
	if err := protocol.ReadFrame(st, &m, protocol.MaxToHub); err != nil {
		return fmt.Errorf("wait for hello: %w", err)
	}
	if m.Kind != protocol.KindHello {
		return ses.send(protocol.KindError, protocol.Error{Code: protocol.ErrorBadMessage, Message: fmt.Sprintf("hello comes first, not %.40q", m.Kind)})
	}
	var h protocol.Hello
	if err := m.Decode(&h); err != nil {
		return ses.send(protocol.KindError, protocol.Error{Code: protocol.ErrorBadMessage, Message: err.Error()})
	}
	fleet.CleanHello(&h)
	proven, err := ses.prove(st, ses.s.cfg.Store.State().Nodes.Get(ses.node), h, m.Body)
	if e := (*state.Error)(nil); errors.As(err, &e) {
		return ses.refuse(protocol.ErrorUnproven, err)
	} else if err != nil {
		return err // it hung up
	}
	leave, err := ses.admit(proven)
	if errors.Is(err, net.ErrClosed) { // it had to make room
		return err
	} else if err != nil {
		return ses.refuse(protocol.ErrorBadMessage, err)
	}
	defer leave()
	h.Vouch = nil // of no use any more, and nobody else's business
	node, err := ses.hello(ctx, h, proven)
	if err != nil {
		code := protocol.ErrorBadMessage
		if state.IsKind(err, state.NotFound) {
			code = protocol.ErrorRevoked
		}
		return ses.refuse(code, err)
	}
	ses.known = fleet.NewSession(ses.node, proven)
	ses.s.link(ses)
	defer ses.s.unlink(ses)
	ses.mu.Lock()
	ses.welcome = true // before the agent can know: it opens other streams at once
	ses.mu.Unlock()
	if err := ses.send(protocol.KindWelcome, protocol.Welcome{
		HubVersion: ses.s.cfg.Version, Hub: ses.s.cfg.Number, Number: node.Number, Name: node.Name, Site: node.Site, Time: time.Now().UTC(),
	}); err != nil {
		return err
	}
	if !ses.s.up(ses, node, h) {
		return errors.New("a session that proves the node's identity came first")
	}
	defer func() { ses.s.gone(ses, ses.end.byPeer.Load()) }()

	var wg sync.WaitGroup
	defer wg.Wait()
	pctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		if err := ses.push(pctx, h); err != nil && pctx.Err() == nil {
			ses.log.Debug().Err(err).Msg("netmap not sent")
			ses.mux.Close()
		}
	})
	return ses.read(ctx, st)
}

// refuse tells the far side why it gets no session.
func (ses *session) refuse(code string, err error) error {
	ses.refused(err)
	return ses.send(protocol.KindError, protocol.Error{Code: code, Message: err.Error()})
}

// hello checks and records what the node says of itself.
func (ses *session) hello(ctx context.Context, h protocol.Hello, proven bool) (state.Node, error) {
	if !ses.s.fleet.MayHello(fleet.Comer{Node: ses.node, Proven: proven}) {
		return ses.s.cfg.Store.State().Nodes.Get(ses.node), state.Errorf(state.Refused, "this node said hello too often; it may again in %s", fleet.HelloEvery)
	}
	if err := ses.s.witness(ctx, ses.name(), h.Mark); err != nil {
		return ses.s.cfg.Store.State().Nodes.Get(ses.node), err
	}
	if err := ses.s.forget(ctx, ses.log, ses.name(), h.Gone); err != nil {
		return ses.s.cfg.Store.State().Nodes.Get(ses.node), err
	}
	// A hello that says what is recorded already is no transaction, and needs no log: many
	// agents may come at once, and when the log is out of reach, too. Should it be
	// older than this hub knows, the session ends as every one does when the log says so.
	announce := func(d *state.Draft) error { return state.Announce(d, ses.node, h.Statement, h.Routes) }
	st, changes, err := ses.s.cfg.Store.Changes(announce)
	said := fleet.Announcement{Announce: announce, Routes: len(h.Routes)}
	if h.Statement.WireGuardKey != st.Nodes.Get(ses.node).WireGuardKey { // a new key is stored now, or not from this hello
		said.Announce = func(d *state.Draft) error { return state.AnnounceRoutes(d, ses.node, h.Routes) }
		unused, ok := ses.s.fleet.ChargeKey(ses.node)
		if !ok {
			return st.Nodes.Get(ses.node), state.Errorf(state.Refused, "this node makes new WireGuard keys too often: more than %d at once or %d a day are not stored, it goes on with the key it has", fleet.KeysBurst, fleet.KeysDaily)
		}
		defer func() {
			if ses.s.cfg.Store.State().Nodes.Get(ses.node).WireGuardKey != h.Statement.WireGuardKey {
				unused()
			}
		}()
	}
	back := func() {}
	if err == nil {
		var ok bool
		if back, ok = ses.s.fleet.MayStore(ses.node, ses.name(), said, changes); !ok {
			changes = 0 // the session is the node's right all the same
		}
		if changes == 0 && ses.s.cfg.Store.State() != st { // an older word may have been stored meanwhile
			ses.s.fleet.Again(ses.node)
		}
	}
	if err != nil || changes > 0 {
		if st, err = ses.s.record(ctx, hello{name: ses.name(), routes: len(h.Routes), announce: announce}); err != nil {
			back()
		}
		if full, back := (*state.FullLogError)(nil), (*state.SetBackError)(nil); errors.As(err, &full) || errors.As(err, &back) {
			st, err = ses.s.cfg.Store.State(), nil
			ses.s.fleet.Wait(ses.node)
		}
		if err != nil {
			return ses.s.cfg.Store.State().Nodes.Get(ses.node), err
		}
	}
	if st.Nodes.Get(ses.node).WireGuardKey != h.Statement.WireGuardKey { // a welcome says that it is taken
		return st.Nodes.Get(ses.node), state.Errorf(state.Refused, "the new WireGuard key of this node is not stored now: its announcements wait, or the state log is full or was set back; it goes on with the key it has")
	}
	if have, own := h.Have, st.Epoch; have.Epoch > own || have.Epoch == own && have.Version > st.Seq {
		ses.log.Warn().Stringer("netmap", have).Uint64("sequence", st.Seq).Msg("node holds a netmap newer than this hub's state")
	}
	return st.Nodes.Get(ses.node), nil
}

func (ses *session) name() string { return ses.s.cfg.Store.State().Nodes.Get(ses.node).Name }

// up makes ses the node's session, in place of another. One that did not prove the node's
// identity never takes the place of one that did.
func (s *Server) up(ses *session, node state.Node, h protocol.Hello) bool {
	old, ok := s.fleet.Up(ses.known, h)
	if !ok {
		return false
	}
	if old := s.linked(old); old != nil {
		old.mux.Close()
	}
	s.cfg.Events.Add(event.NodeUp, node.Name, fmt.Sprintf("control session up, agent %s, engine %s", h.AgentVersion, h.Engine))
	ses.log.Info().Str("version", h.AgentVersion).Msg("node connected")
	ses.known.Wake()
	s.fleet.Touch()
	if !s.cfg.Store.State().Nodes.Get(ses.node).Live() { // it came up while its node was revoked
		s.fleet.Recheck()
	}
	return true
}

// gone takes ses out, unless another took its place. goodbye: the agent ended it.
func (s *Server) gone(ses *session, goodbye bool) {
	node := s.cfg.Store.State().Nodes.Get(ses.node)
	if !s.fleet.Gone(ses.known, goodbye) {
		return
	}
	s.cfg.Events.Add(event.NodeDown, node.Name, "control session ended")
	ses.log.Info().Msg("node disconnected")
	s.fleet.Touch()
	time.AfterFunc(fleet.OnlineGrace+redialLull, s.fleet.Touch)
}

// farewell tells a node that is gone so and ends its session.
func (ses *session) farewell() {
	t := time.AfterFunc(farewell, func() { ses.mux.Close() })
	defer t.Stop()
	if ses.send(protocol.KindError, protocol.Error{Code: protocol.ErrorRevoked, Message: "this node is no longer part of the cluster"}) == nil {
		<-ses.mux.Done()
	}
	ses.mux.Close()
}

// read handles what the agent sends until the stream ends.
func (ses *session) read(ctx context.Context, st net.Conn) error {
	pace := rate.NewLimiter(50, 200) // beyond it the agent waits
	for {
		if s, ok := st.(*mux.Stream); ok {
			s.Shrink() // yamux keeps a buffer of the longest message otherwise
		}
		if err := pace.Wait(ctx); err != nil {
			return err
		}
		st.SetReadDeadline(time.Now().Add(silence))
		var m protocol.Message
		if err := protocol.ReadFrame(st, &m, protocol.MaxToHub); err != nil {
			return err
		}
		ses.s.fleet.Word(ses.known)
		switch m.Kind {
		case protocol.KindStatus:
			var v protocol.Status
			if err := m.Decode(&v); err != nil {
				if err := ses.bad(err); err != nil {
					return err
				}
				continue
			}
			fleet.CleanStatus(&v)
			ses.s.fleet.Status(ses.known, v)
			if v.Beat != 0 {
				if err := ses.send(protocol.KindBeat, protocol.Beat{Beat: v.Beat}); err != nil {
					return err
				}
			}
		case protocol.KindNetmapAck:
			var v protocol.NetmapAck
			if err := m.Decode(&v); err != nil {
				if err := ses.bad(err); err != nil {
					return err
				}
				continue
			}
			fleet.CleanAck(&v)
			ses.s.fleet.Acked(ses.known, v)
			select {
			case ses.acks <- v:
			default: // the latest one is what push waits for
				select {
				case <-ses.acks:
				default:
				}
				ses.acks <- v
			}
		case protocol.KindHubListAsk:
			if err := ses.hubList(m); err != nil {
				return err
			}
		case protocol.KindLeave:
			return ses.leave(ctx)
		case protocol.KindError:
			var e protocol.Error
			if m.Decode(&e) == nil {
				ses.log.Warn().Str("code", protocol.OneLine(e.Code, 40)).Str("err", protocol.OneLine(e.Message, fleet.MaxText)).Msg("node reports an error")
			}
		case protocol.KindHello:
			if err := ses.bad(errors.New("a second hello; dial again instead")); err != nil {
				return err
			}
		default:
			e := protocol.Error{Code: protocol.ErrorUnknownKind, Message: fmt.Sprintf("this hub does not know messages of kind %.40q", m.Kind)}
			if err := ses.send(protocol.KindError, e); err != nil {
				return err
			}
		}
	}
}

func (ses *session) bad(err error) error {
	return ses.send(protocol.KindError, protocol.Error{Code: protocol.ErrorBadMessage, Message: protocol.OneLine(err.Error(), fleet.MaxText)})
}
