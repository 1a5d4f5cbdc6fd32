package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"causeway/agent/debug"
	"causeway/protocol"
)

const (
	// traceWait is how long an echo of a trace is waited for.
	traceWait = time.Second
	// traceSettle is how long a path may take to be found once there is traffic.
	traceSettle = 3 * time.Second
)

// trace looks at what is between this node and a peer. It makes traffic first, so
// that paths are judged: an idle peer's are not.
func (a *answers) trace(ctx context.Context, q protocol.TraceQuestion) protocol.TraceView {
	t := protocol.TraceView{Node: a.want.Name(), Number: a.own.Now().Number, Hubs: []protocol.PathStatus{}, Peer: protocol.PathView{Candidates: []protocol.PathCandidate{}}}
	t.Peer.Path = protocol.PathNone
	peer, ok := a.overlayOf(q.Peer, q.To)
	if !ok {
		t.Error = fmt.Sprintf("node number %d is not in this node's netmap: no policy lets the two talk, or it is revoked; see 'causeway-agent netmap'", q.Peer)
		return t
	}
	t.Overlay = a.ownOverlay(peer)
	t.PeerPing = debug.Echo(ctx, t.Overlay, peer, q.Count, traceWait)
	a.settle(ctx, q.Peer)
	if v, ok := a.tunnel.View(q.Peer); ok {
		t.Peer = v
	}
	hubs := map[protocol.NodeNumber]bool{}
	for _, h := range a.want.Now().Hubs.Hubs {
		hubs[h.Number] = true
	}
	for _, p := range a.tunnel.Paths() {
		if hubs[p.Peer] {
			t.Hubs = append(t.Hubs, p)
		}
	}
	dst := peer
	if q.To.IsValid() {
		dst = q.To
		p := debug.Echo(ctx, a.ownOverlay(dst), dst, q.Count, traceWait)
		t.EndPing = &p
	}
	if q.From.IsValid() {
		p := debug.Echo(ctx, netip.Addr{}, q.From, q.Count, traceWait)
		t.Local = &p
	}
	from := q.From
	if from.IsValid() && from.Is4() != dst.Is4() {
		from = netip.Addr{}
	}
	t.Route = debug.RouteTo(from, dst)
	return t
}

// settle waits until the path to a peer that has traffic now is found: a direct one,
// or another when the peer's addresses had time to answer.
func (a *answers) settle(ctx context.Context, peer protocol.NodeNumber) {
	ctx, cancel := context.WithTimeout(ctx, traceSettle)
	defer cancel()
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for start := time.Now(); ; {
		v, ok := a.tunnel.View(peer)
		tried := time.Since(start) > traceSettle/3
		if !ok || v.MTU > 0 && v.RTT > 0 && (v.Path == protocol.PathDirect || tried && v.Path != protocol.PathNone) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// overlayOf is the overlay address of a peer of the netmap, of the family of like
// if that is valid.
func (a *answers) overlayOf(peer protocol.NodeNumber, like netip.Addr) (netip.Addr, bool) {
	for _, p := range a.host.Facts().Result.Peers {
		if p.Number() != peer || len(p.Overlay) == 0 {
			continue
		}
		for _, o := range p.Overlay {
			if like.IsValid() && o.Is4() == like.Is4() {
				return o, true
			}
		}
		return p.Overlay[0], true
	}
	return netip.Addr{}, false
}

// ownOverlay is the node's overlay address of the family of dst; invalid: it has none.
func (a *answers) ownOverlay(dst netip.Addr) (src netip.Addr) {
	for _, o := range a.own.Now().Overlay {
		if o.Is4() == dst.Is4() {
			src = o
		}
	}
	return src
}
