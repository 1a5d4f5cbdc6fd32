package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"causeway/protocol"
	"causeway/tunnel/underlay"
	"causeway/tunnel/underlay/probe"
	"causeway/tunnel/underlay/sock"
)

// expireEvery is how often expired bindings are looked for.
const expireEvery = time.Second

// Run opens the socket and works until ctx ends. It owns every goroutine, and
// runs once.
func (r *Relay) Run(ctx context.Context) error {
	c, err := sock.Open(sock.Options{Addr: r.cfg.Listen, NoOffload: r.cfg.NoOffload, Buffer: r.cfg.SocketBuffer})
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	r.conn.Store(c)
	g, ctx := errgroup.WithContext(ctx)
	r.streams.open(ctx)
	g.Go(func() error { r.read(c); return nil })
	g.Go(func() error { r.tick(ctx); return nil })
	g.Go(func() error {
		<-ctx.Done()
		r.streams.close()
		r.conn.Store(nil)
		c.Close()
		return nil
	})
	close(r.ready)
	return g.Wait()
}

// tick drops expired bindings and sends handshake messages again.
func (r *Relay) tick(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var expire time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-r.wake:
		}
		now := time.Now()
		if !now.Before(expire) {
			expire = now.Add(expireEvery)
			r.mu.Lock()
			r.binder.Tick(now, &r.out)
			r.publish()
			r.mu.Unlock()
			r.judgeStreams()
		}
		next := expire
		if t := r.table.Tick(now); !t.IsZero() && t.Before(next) {
			next = t
		}
		timer.Reset(max(time.Until(next), time.Millisecond))
	}
}

// reader is the goroutine of a socket or a stream.
type reader struct {
	r    *Relay
	recv underlay.Receiver
	now  time.Time

	nodes     map[protocol.NodeNumber]*entry
	open      map[*entry]*sock.Group // under way
	order     []*entry               // of open
	last      *entry                 // that was forwarded to, with its group
	lastGroup *sock.Group
	groups    []*sock.Group
	pieces    [][]byte // of a group

	run  []byte // for the hub's own device
	seg  int
	from underlay.Source
}

func (r *Relay) read(c *sock.Conn) {
	d := &reader{r: r, recv: r.cfg.NewReader()}
	b := sock.NewBatch()
	for {
		messages, err := c.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// An error of one datagram (ICMP), or a shortage that passes.
			r.drops.Add("receive_error", 1)
			time.Sleep(time.Millisecond)
			continue
		}
		d.batch(messages)
	}
}

// batch handles all that one system call brought: gathered by addressee, each
// addressee's datagrams in the order in which they came.
func (d *reader) batch(messages []sock.Message) {
	d.now, d.nodes = time.Now(), *d.r.nodes.Load()
	for i := range messages {
		d.message(&messages[i])
	}
	for _, e := range d.order {
		g := d.open[e]
		d.flush(e, g)
		d.groups = append(d.groups, g)
	}
	clear(d.open)
	clear(d.order)
	d.order = d.order[:0]
	d.last, d.lastGroup = nil, nil
	d.recv.Flush()
}

func (d *reader) message(m *sock.Message) {
	r := d.r
	from := r.at(m.From)
	// Consecutive datagrams mostly have the same addressee.
	var (
		last      protocol.NodeNumber
		addressee *entry
	)
	for o := 0; o < len(m.Data); o += m.Segment {
		b := m.Data[o:min(o+m.Segment, len(m.Data))]
		t := protocol.ClassifyMessage(b)
		if t == protocol.MessageUnknown {
			d.drop(DropMalformed)
			continue
		}
		n := protocol.MessageNumber(b)
		if t == protocol.MessageProbe && n == 0 {
			d.deliver()
			d.probe(m.From, b)
			from = r.at(m.From)
			continue
		}
		if from == nil {
			d.drop(DropUnbound)
			continue
		}
		if n == 0 {
			if !r.table.Received(d.now, from.number, b) {
				d.drop(DropCrossed)
				continue
			}
			d.gather(from, m, o, len(b))
			continue
		}
		d.deliver()
		if n != last {
			if addressee = d.addressee(from, n); addressee == nil {
				last = 0
				continue
			}
			last = n
		}
		protocol.SetMessageNumber(b, from.number)
		d.forward(addressee, b)
	}
	d.deliver()
}

// at finds whom an address is bound to.
func (r *Relay) at(a netip.AddrPort) *entry {
	r.lookup.RLock()
	e := r.byAddr[a]
	r.lookup.RUnlock()
	return e
}

// addressee returns where a datagram from from to number n goes; nil: nowhere,
// and it is counted.
func (d *reader) addressee(from *entry, n protocol.NodeNumber) *entry {
	to := d.nodes[n]
	switch {
	case to == nil || to.number == from.number:
		d.r.drops.Add(DropAddressee, 1)
	case !from.allows(n) || !to.allows(from.number):
		d.r.drops.Add(DropForbidden, 1)
	case len(*to.bound.Load()) == 0:
		d.r.drops.Add(DropNowhere, 1)
	default:
		return to
	}
	return nil
}

func (d *reader) forward(to *entry, b []byte) {
	g := d.lastGroup
	if to != d.last {
		g = d.group(to)
		d.last, d.lastGroup = to, g
	}
	if !g.Add(b) {
		d.flush(to, g)
		g.Add(b)
	}
}

// group is the one under way to an addressee.
func (d *reader) group(to *entry) *sock.Group {
	g := d.open[to]
	if g == nil {
		if n := len(d.groups); n > 0 {
			g, d.groups = d.groups[n-1], d.groups[:n-1]
		} else {
			g = new(sock.Group)
		}
		if d.open == nil {
			d.open = map[*entry]*sock.Group{}
		}
		d.open[to] = g
		d.order = append(d.order, to)
	}
	return g
}

func (d *reader) flush(to *entry, g *sock.Group) {
	n, bytes := uint64(g.Len()), uint64(g.Bytes())
	if n == 0 {
		return
	}
	reason := DropNowhere
	if bound := *to.bound.Load(); len(bound) > 0 {
		reason = d.writeGroup(bound[0], g)
	}
	if reason == "" {
		d.r.datagrams.Add(n)
		d.r.bytes.Add(bytes)
	} else {
		d.r.drops.Add(reason, n)
	}
	g.Reset()
}

// gather adds the n bytes at offset o to the run for the hub's own device.
// Whatever is not gathered ends the run, so what is gathered lies together.
func (d *reader) gather(from *entry, m *sock.Message, o, n int) {
	if len(d.run) == 0 {
		d.run, d.seg, d.from = m.Data[o:o], m.Segment, underlay.Source{Peer: from.number, Addr: m.From}
	}
	d.run = d.run[:len(d.run)+n]
}

func (d *reader) drop(reason string) {
	d.r.drops.Add(reason, 1)
	d.deliver()
}

func (d *reader) deliver() {
	if len(d.run) > 0 {
		d.recv.Receive(d.from, d.run, min(d.seg, len(d.run)))
		d.run = nil
	}
}

// probe hands a probe to the binder. A restart is told before the answer
// leaves, after which the new run starts to send.
func (d *reader) probe(src netip.AddrPort, b []byte) {
	r := d.r
	r.mu.Lock()
	reason := r.binder.Receive(d.now, src, b, &r.out)
	out := r.publish()
	r.mu.Unlock()
	if reason != probe.OK {
		r.drops.Add(string(reason), 1)
	}
	for _, n := range out.Restarted {
		r.cfg.Log.Info().Uint32("node", uint32(n)).Msg("node has restarted")
		r.table.Forget(n)
		if r.cfg.OnRestart != nil {
			r.cfg.OnRestart(n)
		}
	}
	r.sendProbes(out.Sends)
	for _, n := range out.Routes {
		r.table.Hurry(d.now, n)
	}
}
