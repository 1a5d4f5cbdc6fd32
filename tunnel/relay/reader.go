package relay

import (
	"time"

	"causeway/protocol"
	"causeway/tunnel/underlay"
	"causeway/tunnel/underlay/probe"
	"causeway/tunnel/underlay/sock"
)

// reader handles what one socket or stream receives. It belongs to one
// goroutine and shares nothing that is locked but for probes and handshakes.
type reader struct {
	r    *Relay
	conn *sock.Conn // that it reads; nil: a stream
	data *sock.Conn // that data leaves by; nil: the first loop's
	recv underlay.Receiver
	now  time.Time
	tick int64 // now, in nanoseconds since the relay's start

	nodes         map[protocol.NodeNumber]*entry
	urgent, later lane
	pieces        [][]byte // of a group, for a stream

	arrivals arrivals
	run      []byte // for the hub's own device
	seg      int
	from     underlay.Source
}

func (r *Relay) newReader(conn, data *sock.Conn) *reader {
	return &reader{r: r, conn: conn, data: data, recv: r.cfg.NewReader()}
}

// batch handles all that one system call brought. Control goes ahead: probes
// are answered and the hub's own datagrams delivered as they are found, then
// control leaves, then data; each gathered by addressee, and each addressee's
// in the order in which they came.
func (d *reader) batch(messages []sock.Message) {
	d.now, d.nodes = time.Now(), *d.r.nodes.Load()
	d.tick = int64(d.now.Sub(d.r.start))
	for i := range messages {
		d.message(&messages[i])
	}
	d.recv.Flush()
	d.flush(&d.urgent, true)
	d.flush(&d.later, false)
}

func (d *reader) message(m *sock.Message) {
	r := d.r
	from := r.byAddr.get(m.From)
	// Consecutive datagrams mostly have the same addressee.
	var (
		last protocol.NodeNumber
		to   *entry
		pair *meter
		held []*bounding
	)
	if from != nil {
		held = r.bounds.Load().bySender[from.number]
	}
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
			d.arrivals.flush() // what came before it is counted in the answer
			d.probe(m, b)
			if from, last = r.byAddr.get(m.From), 0; from != nil {
				held = r.bounds.Load().bySender[from.number]
			}
			continue
		}
		if from == nil {
			d.drop(DropUnbound)
			continue
		}
		d.arrivals.add(from.tally, t, len(b))
		if n == 0 {
			if !r.table.Received(d.now, from.number, b) {
				d.drop(DropCrossed)
				continue
			}
			if !from.meters.hub.take(&hubRate, d.tick, len(b)) {
				d.drop(DropHub)
				continue
			}
			d.gather(from.entry, m, o, len(b))
			continue
		}
		d.deliver()
		if n != last {
			if to = d.addressee(from.entry, n); to == nil {
				last = 0
				continue
			}
			last, pair = n, nil
			if r.pair.bounded() {
				pair = from.meters.pair(n)
			}
		}
		if t != protocol.MessageTransport {
			if !from.meters.control.take(&controlRate, d.tick, len(b)) {
				r.drops.Add(DropControl, 1)
				continue
			}
			protocol.SetMessageNumber(b, from.number)
			d.urgent.add(to, b)
			continue
		}
		if reason := d.limited(from.entry, pair, held, n, len(b)); reason != "" {
			r.drops.Add(reason, 1)
			continue
		}
		protocol.SetMessageNumber(b, from.number)
		if d.later.full() { // memory is bounded; control of this batch has to wait
			d.flush(&d.later, false)
		}
		d.later.add(to, b)
	}
	d.arrivals.flush()
	d.deliver()
}

// limited says which limit keeps data of so many bytes from number n; empty: none.
func (d *reader) limited(from *entry, pair *meter, held []*bounding, n protocol.NodeNumber, size int) string {
	r := d.r
	switch {
	case r.node.bounded() && !from.meters.data.take(&r.node, d.tick, size):
		return DropNode
	case pair != nil && !pair.take(&r.pair, d.tick, size):
		return DropPair
	case len(held) > 0 && !pass(held, n, d.tick, size):
		return DropBound
	}
	return ""
}

// addressee returns where a datagram from from to number n goes; nil: nowhere,
// and it is counted.
func (d *reader) addressee(from *entry, n protocol.NodeNumber) *entry {
	to := d.nodes[n]
	switch {
	case to == nil || to.number == from.number:
		d.r.drops.Add(DropAddressee, 1)
	case !from.class.Allows(to.class):
		d.r.drops.Add(DropForbidden, 1)
	case len(*to.bound.Load()) == 0:
		d.r.drops.Add(DropNowhere, 1)
	default:
		return to
	}
	return nil
}

// flush sends a lane's groups in the order in which they were begun.
func (d *reader) flush(l *lane, urgent bool) {
	for _, p := range l.queue {
		n, bytes := uint64(p.group.Len()), uint64(p.group.Bytes())
		reason := DropNowhere
		if bound := *p.to.bound.Load(); len(bound) > 0 {
			kind := p.group.Kind()
			if reason = d.writeGroup(bound[0], p.group, urgent); reason == "" {
				bound[0].Tally.Sent(protocol.MessageType(kind), int(bytes), p.group.Segment())
			}
		}
		if reason == "" {
			d.r.datagrams.Add(n)
			d.r.bytes.Add(bytes)
		} else {
			d.r.drops.Add(reason, n)
		}
	}
	l.reset()
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

// probe hands a probe to the binder. All readers' probes take turns, and a
// restart is told in that turn, with the node bound nowhere: so before
// OnRestart returns no reader takes anything from the new run, and no address
// of it is acknowledged, after which alone it sends.
func (d *reader) probe(m *sock.Message, b []byte) {
	r := d.r
	overrun := d.conn != nil && d.conn.Overrun()
	r.mu.Lock()
	if overrun {
		r.binder.Overrun(d.now)
	}
	reason := r.binder.Receive(d.now, m.From, m.Local, b, &r.out)
	for _, n := range r.out.Restarted {
		r.withdraw(n)
		r.table.Forget(n)
		if r.cfg.OnRestart != nil {
			boot, _ := r.binder.Boot(n)
			r.cfg.OnRestart(n, boot)
		}
	}
	out := r.publish()
	r.mu.Unlock()
	if reason != probe.OK {
		r.drops.Add(string(reason), 1)
	}
	for _, n := range out.Restarted {
		r.cfg.Log.Info().Uint32("number", uint32(n)).Msg("node has restarted")
	}
	r.sendProbes(out.Sends)
	for _, n := range out.Routes {
		r.table.Hurry(d.now, n)
	}
}

// maxGroups bounds what a lane holds back.
const maxGroups = 128

// lane gathers the groups of one batch.
type lane struct {
	queue []parcel // in the order in which they were begun
	open  map[*entry]*sock.Group
	free  []*sock.Group

	last      *entry // that was added to
	lastGroup *sock.Group
}

type parcel struct {
	to    *entry
	group *sock.Group
}

func (l *lane) full() bool { return len(l.queue) >= maxGroups }

func (l *lane) add(to *entry, b []byte) {
	g := l.lastGroup
	if to != l.last {
		g = l.open[to]
	}
	if g == nil || !g.Add(b) {
		g = l.begin(to)
		g.Add(b)
	}
	l.last, l.lastGroup = to, g
}

// begin makes another group the one under way to an addressee.
func (l *lane) begin(to *entry) *sock.Group {
	var g *sock.Group
	if n := len(l.free); n > 0 {
		g, l.free = l.free[n-1], l.free[:n-1]
	} else {
		g = new(sock.Group)
	}
	if l.open == nil {
		l.open = map[*entry]*sock.Group{}
	}
	l.open[to] = g
	l.queue = append(l.queue, parcel{to, g})
	return g
}

func (l *lane) reset() {
	for _, p := range l.queue {
		p.group.Reset()
		l.free = append(l.free, p.group)
	}
	clear(l.open)
	clear(l.queue)
	l.queue, l.last, l.lastGroup = l.queue[:0], nil, nil
}
