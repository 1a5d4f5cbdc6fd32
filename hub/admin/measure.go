package admin

import (
	"context"
	"fmt"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/protocol"
)

// Defaults of a bench: no production link notices it.
const (
	benchTime = 5 * time.Second
	benchRate = 100_000_000
	// mtuTime is how long finding an MTU may take, in one direction.
	mtuTime = 25 * time.Second
)

// measure has a send to b: b says where it waits, a is told.
func (s *Server) measure(ctx context.Context, a, b end, o protocol.MeasureOffer) (m protocol.Measured, err error) {
	o.Peer = a.node.Number
	var place protocol.MeasurePlace
	if err := s.ask(ctx, b.node, protocol.DebugMeasureOffer, o, &place, 10*time.Second); err != nil {
		return m, err
	}
	if place.Error != "" {
		return m, huma.Error409Conflict(fmt.Sprintf("node %s: %s", b.Node, protocol.OneLine(place.Error, protocol.MaxFactText)))
	}
	o.Peer = b.node.Number
	if err := s.ask(ctx, a.node, protocol.DebugMeasureRun, protocol.MeasureRun{MeasureOffer: o, Place: place}, &m, o.Time+30*time.Second); err != nil {
		return m, err
	}
	if m.Error != "" {
		return m, huma.Error409Conflict(fmt.Sprintf("node %s: %s", a.Node, protocol.OneLine(m.Error, protocol.MaxFactText)))
	}
	return m, nil
}

func (s *Server) bench(ctx context.Context, in api.BenchRequest) (out api.Bench, err error) {
	a, b, err := s.ends(in.From, in.To)
	if err != nil {
		return out, err
	}
	if in.Proto == "" {
		in.Proto = string(protocol.MeasureTCP)
	}
	if in.Time == 0 {
		in.Time = api.Duration(benchTime)
	}
	if in.Rate == 0 {
		in.Rate = benchRate
	}
	t := time.Duration(in.Time)
	switch {
	case in.Proto != string(protocol.MeasureTCP) && in.Proto != string(protocol.MeasureUDP):
		return out, huma.Error422UnprocessableEntity(fmt.Sprintf("%.40q cannot be measured; there are tcp and udp", in.Proto))
	case t <= 0 || t > protocol.MaxMeasureTime || in.Rate < 1000 || in.Rate > protocol.MaxMeasureRate:
		return out, huma.Error422UnprocessableEntity(fmt.Sprintf("a bench takes up to %s, at 1 kbit/s to 10 Gbit/s", protocol.MaxMeasureTime))
	}
	m, err := s.measure(ctx, a, b, protocol.MeasureOffer{Kind: protocol.MeasureKind(in.Proto), Time: t, Rate: in.Rate})
	if err != nil {
		return out, err
	}
	out = api.Bench{From: a.DiagEnd, To: b.DiagEnd, Proto: in.Proto, Limit: in.Rate, Sent: m.Sent, Received: m.Received, Took: api.Duration(m.Took),
		Datagrams: m.Datagrams, Lost: m.Lost, Reordered: m.Reordered, Jitter: api.Duration(m.Jitter)}
	if m.Took > 0 {
		out.Rate = uint64(float64(m.Received) * 8 / m.Took.Seconds())
	}
	return out, nil
}

// mtu has both nodes look, and then send packets of all sizes, one after the other.
func (s *Server) mtu(ctx context.Context, in api.MTURequest) (out api.MTU, err error) {
	a, b, err := s.ends(in.From, in.To)
	if err != nil {
		return out, err
	}
	t, err := s.trace(ctx, api.TraceRequest{From: a.Node, To: b.Node, Count: 1})
	if err != nil {
		return out, err
	}
	out = api.MTU{From: a.DiagEnd, To: b.DiagEnd}
	direction := func(from, to end, v *protocol.TraceView, bad string) api.MTUDirection {
		d := api.MTUDirection{Node: from.Node, Path: protocol.PathNone, Verdict: bad}
		if v == nil {
			return d
		}
		d.Path, d.Underlay, d.Known = v.Peer.Path, v.Peer.Size, v.Peer.MTU
		m, err := s.measure(ctx, from, to, protocol.MeasureOffer{Kind: protocol.MeasureMTU, Time: mtuTime, Rate: benchRate})
		if err != nil {
			d.Route, d.Verdict = v.Route.MTU, err.Error()
			return d
		}
		d.Measured, d.Route, d.Device = m.MTU, m.Route, m.Device
		d.OK, d.Verdict = judgeMTU(d)
		return d
	}
	out.Forward = direction(a, b, t.Forward, t.ForwardError)
	out.Back = direction(b, a, t.Back, t.BackError)
	return out, nil
}

// judgeMTU holds what is set to what arrives.
func judgeMTU(d api.MTUDirection) (ok bool, verdict string) {
	switch {
	case d.Measured < d.Route:
		return false, fmt.Sprintf("packets of %d to %d bytes are sent and do not arrive: something on the way drops them without a word", d.Measured+1, d.Route)
	case d.Measured == d.Route:
		return true, "what is set is what arrives"
	}
	return true, fmt.Sprintf("up to %d bytes more would arrive than is set", d.Measured-d.Route)
}
