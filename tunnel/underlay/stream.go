package underlay

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"causeway/internal/retry"
	"causeway/protocol"
	"causeway/tunnel/underlay/probe"
	"causeway/tunnel/underlay/sock"
	"causeway/tunnel/underlay/stream"
)

// Pauses between attempts at a stream: a hub that restarts is to be found at
// once, and what is refused is refused for long.
const (
	redialFirst   = 200 * time.Millisecond
	redialMost    = 1500 * time.Millisecond
	redialRefused = 15 * time.Second
	steadyAfter   = 10 * time.Second // a stream that lasted this long starts over
)

// hubStream is a hub's stream: a name for good, and a connection now and then.
type hubStream struct {
	hub   protocol.NodeNumber
	addr  netip.AddrPort
	https atomic.Pointer[[]string]
	conn  atomic.Pointer[stream.Conn]
	wake  chan struct{} // it is wanted, or wanted no more
	stop  context.CancelFunc
}

// setHubs gives the hubs to the probes, each with a name for its stream, and
// replaces the streams; those of hubs that stay are kept. u.mu is held.
func (u *Underlay) setHubs(hubs []Hub) error {
	old := *u.streams.Load()
	m := map[netip.AddrPort]*hubStream{}
	l := make([]probe.Hub, len(hubs))
	for i, h := range hubs {
		l[i] = probe.Hub{Number: h.Number, Key: h.Key, Addrs: h.Addrs}
		if len(h.HTTPS) == 0 || u.cfg.Plain {
			continue
		}
		var s *hubStream
		for _, o := range old {
			if o.hub == h.Number {
				s = o
			}
		}
		if s == nil {
			u.lastStream++
			s = &hubStream{hub: h.Number, addr: protocol.StreamAddr(u.lastStream), wake: make(chan struct{}, 1)}
		}
		m[s.addr], l[i].Stream = s, s.addr
	}
	if err := u.agent.SetHubs(time.Now(), l, &u.out); err != nil {
		return err
	}
	for _, h := range hubs {
		for _, s := range m {
			if s.hub == h.Number {
				https := slices.Clone(h.HTTPS)
				s.https.Store(&https)
			}
		}
	}
	u.streams.Store(&m)
	signal(u.streamsChanged)
	return nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// runStreams keeps one goroutine for each hub's stream until ctx ends.
func (u *Underlay) runStreams(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	kept := map[*hubStream]bool{}
	for {
		now := *u.streams.Load()
		for s := range kept {
			if now[s.addr] != s {
				s.stop()
				delete(kept, s)
			}
		}
		for _, s := range now {
			if !kept[s] {
				kept[s] = true
				sctx, stop := context.WithCancel(ctx)
				s.stop = stop
				running.Go(func() {
					defer stop()
					u.keepStream(sctx, s)
				})
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-u.streamsChanged:
		}
	}
}

// judgeStreams tells streams whether they are wanted, and ends those that
// answer no more. u.mu is held.
func (u *Underlay) judgeStreams(now time.Time) {
	streams := *u.streams.Load()
	if len(streams) == 0 {
		return
	}
	wanted, blocked := u.agent.StreamsWanted(now), u.agent.UDPBlocked(now)
	if u.udpBlocked.Swap(blocked) != blocked {
		u.events = append(u.events, event{blocked: true})
	}
	changed := u.streamsWanted.Swap(wanted) != wanted
	for a, s := range streams {
		if changed {
			signal(s.wake)
		}
		if c := s.conn.Load(); c != nil && u.agent.StreamSilent(now, a) {
			c.Close(errSilent)
		}
	}
}

var (
	errSilent    = errors.New("the hub answers nothing over it")
	errNotWanted = errors.New("UDP passes again")
)

// keepStream connects s whenever it is wanted, until ctx ends.
func (u *Underlay) keepStream(ctx context.Context, s *hubStream) {
	d := stream.Dialer{Mark: u.cfg.Mark, Proxy: u.cfg.Proxy, Lookup: u.cfg.Lookup}
	log := u.cfg.Log.With().Uint32("peer", uint32(s.hub)).Logger()
	var recv Receiver
	var said string // the last error that was logged
	pause := redialFirst
	for next := 0; ctx.Err() == nil; next++ {
		if !u.streamsWanted.Load() {
			said, pause = "", redialFirst
			select {
			case <-ctx.Done():
			case <-s.wake:
			}
			continue
		}
		https := *s.https.Load()
		at := https[next%len(https)]
		c, err := d.Dial(ctx, at, s.addr)
		if err == nil {
			said = ""
			log.Info().Str("public_https", at).Stringer("addr", c.Remote()).Msg("stream to the hub is connected")
			if recv == nil {
				recv = u.cfg.NewReader()
			}
			start := time.Now()
			err = u.runStream(ctx, s, c, recv)
			log.Info().Str("public_https", at).AnErr("cause", err).Uint64("dropped", c.Dropped()).Msg("stream to the hub has ended")
			if time.Since(start) > steadyAfter {
				pause = redialFirst
			}
			if errors.Is(err, errNotWanted) || errors.Is(err, errSilent) {
				continue
			}
		} else if ctx.Err() == nil && err.Error() != said { // once, not each time
			said = err.Error()
			log.Warn().Err(err).Str("public_https", at).Msg("no stream to the hub; trying again")
		}
		wait := pause
		if errors.Is(err, stream.ErrRefused) && next%len(https) == len(https)-1 {
			wait = redialRefused
		}
		pause = min(pause*2, redialMost)
		select {
		case <-ctx.Done():
		case <-time.After(max(wait*3/4, retry.Asked(err)) + rand.N(wait/2)):
		}
	}
}

// runStream serves a connection until it ends or is wanted no more.
func (u *Underlay) runStream(ctx context.Context, s *hubStream, c *stream.Conn, recv Receiver) error {
	watched := make(chan struct{})
	defer func() { <-watched }()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		defer close(watched)
		for {
			if !u.streamsWanted.Load() {
				c.Close(errNotWanted)
				return
			}
			select {
			case <-ended:
				return
			case <-s.wake:
			}
		}
	}()
	c.SetBound() // a hub may send what it likes
	s.conn.Store(c)
	u.mu.Lock()
	u.agent.StreamUp(time.Now(), s.addr)
	u.after(nil)
	u.poke()
	defer func() {
		s.conn.Store(nil)
		u.mu.Lock()
		u.agent.StreamDown(time.Now(), s.addr, &u.out)
		u.after(nil)
		u.poke()
	}()
	r := &reader{u: u, recv: recv}
	return c.Run(ctx, func(messages []sock.Message) {
		r.now = time.Now()
		for i := range messages {
			r.message(&messages[i])
		}
		r.recv.Flush()
	})
}

// writeStream sends numbered datagrams over a stream.
func (u *Underlay) writeStream(to netip.AddrPort, b []byte, segment int) error {
	s := (*u.streams.Load())[to]
	if s == nil {
		return ErrNoPath
	}
	c := s.conn.Load()
	if c == nil {
		return ErrNoPath
	}
	err := c.Send(b, segment)
	if errors.Is(err, stream.ErrFull) {
		u.drops.Add(DropStreamFull, uint64((len(b)+segment-1)/max(segment, 1)))
	}
	return err
}

// NeedStreams has streams connected for a while, for datagrams that no UDP path
// carries.
func (u *Underlay) NeedStreams() {
	u.mu.Lock()
	u.agent.NeedStreams(time.Now())
	u.mu.Unlock()
	u.poke()
}

// UDPBlocked reports whether hubs answer over streams alone.
func (u *Underlay) UDPBlocked() bool { return u.udpBlocked.Load() }

// shown replaces a stream's address by that of the socket at its other end.
func (u *Underlay) shown(l []protocol.PathStatus) {
	for i := range l {
		l[i].Addr = u.at(l[i].Addr)
	}
}

// at is where datagrams to a go: of a stream, the hub's address as it is
// connected now; zero if it is not.
func (u *Underlay) at(a netip.AddrPort) netip.AddrPort {
	if !protocol.IsStream(a) {
		return a
	}
	if s := (*u.streams.Load())[a]; s != nil {
		if c := s.conn.Load(); c != nil {
			return c.Remote()
		}
	}
	return netip.AddrPort{}
}
