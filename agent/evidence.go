package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"causeway/agent/debug"
	"causeway/netns"
	"causeway/netns/look"
	"causeway/protocol"
)

const (
	// evidenceWait bounds all that is done for one answer.
	evidenceWait = 8 * time.Second
	echoWait     = 1500 * time.Millisecond
	connectWait  = 3 * time.Second
	// mostHosts bounds at how many addresses a silent peer's host is looked for.
	mostHosts = 3
)

// evidence tells what this node sees of a flow. It looks, sends a few small packets
// to the peer and to the flow's local end, and judges nothing. It refuses an end
// that is not its own, so that nobody scans networks through it.
func (a *answers) evidence(ctx context.Context, q protocol.EvidenceRequest) (protocol.Evidence, error) {
	ctx, cancel := context.WithTimeout(ctx, evidenceWait)
	defer cancel()
	before := a.tunnel.Drops()
	facts := a.host.Facts()
	res := facts.Result
	e := protocol.Evidence{Version: protocol.Version, Netmap: a.want.Have(), Expired: facts.Expired, Errors: slices.Clone(facts.Errors)}
	if !a.ownEnd(q.Local, slices.Concat(res.Local, a.want.Announced())) {
		return e, fmt.Errorf("%s is neither an address of this node nor inside a route that it carries", q.Local)
	}
	var peer protocol.Peer
	for _, p := range res.Peers {
		if p.Number() == q.Peer {
			peer, e.Peer = p, true
			for _, x := range p.Prefixes() {
				if x.Contains(q.Remote) && (!e.Allowed.IsValid() || x.Bits() > e.Allowed.Bits()) {
					e.Allowed = x
				}
			}
		}
	}
	for _, r := range res.Refused {
		if r.Kind == "" && (r.Peer == q.Peer || r.Peer == 0 || r.Peer == a.own.Now().Number) && len(e.Refused) < protocol.MaxEvidenceLines {
			e.Refused = append(e.Refused, r)
		}
	}
	e.Errors = e.Errors[:min(len(e.Errors), protocol.MaxEvidenceLines)]
	a.ownEvidence(&e, q)
	flow := look.Flow{Local: q.Local, Remote: q.Remote, Proto: q.Proto, Port: q.Port, Serves: q.Serves, UnderlayPort: a.tunnel.Port()}

	var wg sync.WaitGroup
	if e.Peer {
		wg.Go(func() { e.Probes = a.echoPeer(ctx, peer, q.Remote) })
		if q.Proto == protocol.FlowTCP && q.Port != 0 && !q.Serves && e.Allowed.IsValid() && e.Stays == nil {
			wg.Go(func() {
				if from := a.sourceFor(q.Local); from.IsValid() {
					c := look.Connect(ctx, from, netip.AddrPortFrom(q.Remote, q.Port), connectWait)
					e.Connect = &c
				}
			})
		}
		if from := a.sourceFor(q.Local); from.IsValid() && e.Allowed.IsValid() && e.Stays == nil && !slices.Contains(peer.Overlay, q.Remote) {
			wg.Go(func() {
				r := debug.SendEcho(ctx, debug.EchoRequest{From: from, To: q.Remote, Count: 2, Wait: echoWait})
				e.Reach = &r
			})
		}
	}
	wg.Go(func() { e.Pod = a.lookAtPod(ctx, flow) })
	wg.Go(func() { e.Names = a.link.NamesNow(ctx) })
	wg.Go(func() { e.Disk = a.net.Disk() })
	wg.Wait()

	e.Ways, e.Underlay.Hub = a.tunnel.Ways(q.Peer), a.tunnel.Ways(a.link.Bound())
	e.Underlay.UDPBlocked = a.tunnel.UDPBlocked()
	for _, p := range a.tunnel.Paths() {
		if p.Peer == q.Peer && e.Peer {
			e.Path = &p
			if p.Path != protocol.PathStream && p.Addr.IsValid() { // a relay's is the hub's
				e.Underlay.LinkMTU, e.Underlay.PathMTU = a.look.Way(p.Addr.Addr(), netns.DefaultMark)
			}
		}
	}
	for _, w := range slices.Concat(e.Underlay.Hub, e.Ways) {
		if w.Addr.IsValid() && len(flow.Underlay) < 2*mostHosts && !slices.Contains(flow.Underlay, w.Addr) {
			flow.Underlay = append(flow.Underlay, w.Addr)
		}
	}
	var err error
	if e.Flow, err = a.flow(ctx, flow); err != nil {
		return e, err
	}
	if e.Peer && !slices.ContainsFunc(e.Ways, protocol.Way.Fresh) {
		e.Underlay.PeerHost, e.Underlay.PeerPort = a.lookForHost(ctx, peer)
	}
	e.Conditions, e.Drops = a.board.List(), a.tunnel.Drops().Since(before)
	e.Time = time.Now().UTC()
	return e, nil
}

// ownEvidence tells what of the host's own is in the flow's way, and what the host would lose if
// accept: named the range that would lead the flow into the tunnel.
func (a *answers) ownEvidence(e *protocol.Evidence, q protocol.EvidenceRequest) {
	f := a.host.Facts()
	if s := f.StayOf(q.Remote); s != nil && e.Allowed.IsValid() {
		e.Stays, e.Name = &s.Own, s.Prefix
		if s.Apart {
			e.Name = s.In
		}
	}
	for _, r := range e.Refused {
		if p, err := netip.ParsePrefix(r.Prefix); err == nil && r.Peer == q.Peer && p.Contains(q.Remote) && !e.Allowed.IsValid() {
			e.Name = p
		}
	}
	e.Takes = f.Takes(e.Name)
	e.Takes = e.Takes[:min(len(e.Takes), protocol.MaxEvidenceLines)]
}

// flow looks what the host does with a flow's packets, while nothing of the plan is
// being changed: half of a change looks like what others did.
func (a *answers) flow(ctx context.Context, f look.Flow) (protocol.FlowEvidence, error) {
	release, err := a.host.Hold(ctx)
	if err != nil {
		return protocol.FlowEvidence{}, err
	}
	defer release()
	return a.look.Flow(ctx, a.host.Facts().Plan, f), nil
}

// ownEnd reports whether an address is the node's own, or behind it.
func (a *answers) ownEnd(x netip.Addr, routes []netip.Prefix) bool {
	return slices.Contains(a.own.Now().Overlay, x) || slices.ContainsFunc(routes, func(p netip.Prefix) bool { return p.Contains(x) })
}

// echoPeer sends small echo requests to a peer, and some as large as the route to
// remote lets through.
func (a *answers) echoPeer(ctx context.Context, p protocol.Peer, remote netip.Addr) []protocol.TunnelPing {
	q := debug.EchoRequest{Count: 4, Wait: echoWait}
	for _, to := range p.Overlay {
		for _, from := range a.own.Now().Overlay {
			if to.Is4() == from.Is4() && !q.To.IsValid() {
				q.From, q.To = from, to
			}
		}
	}
	if !q.To.IsValid() {
		return nil
	}
	out := []protocol.TunnelPing{debug.SendEcho(ctx, q)}
	mtu, known := a.host.Facts().MTUs[p.Number()]
	if !known {
		mtu = a.live.Now().Tunnel.MTU
	}
	if out[0].Received > 0 && mtu > 0 {
		q.Size, q.Count = mtu, 3
		out = append(out, debug.SendEcho(ctx, q))
	}
	return out
}

// sourceFor is an address of this host that stands for a local end: the host's own
// beside a pod, which is inside the route that the pod is in.
func (a *answers) sourceFor(local netip.Addr) netip.Addr {
	if slices.Contains(a.own.Now().Overlay, local) {
		return local
	}
	as, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}
	}
	for _, x := range as {
		if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr().Is4() == local.Is4() && p.Contains(local) {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// lookAtPod looks at the flow's local end, if that is not the host itself, and pings
// it from beside and from afar.
func (a *answers) lookAtPod(ctx context.Context, f look.Flow) *protocol.PodEvidence {
	var near, far protocol.TunnelPing
	var wg sync.WaitGroup
	if slices.Contains(a.own.Now().Overlay, f.Local) {
		return nil
	}
	beside := a.sourceFor(f.Local)
	if beside.IsValid() && beside != f.Local {
		wg.Go(func() {
			near = debug.SendEcho(ctx, debug.EchoRequest{From: beside, To: f.Local, Count: 2, Wait: echoWait})
		})
	}
	for _, o := range a.own.Now().Overlay {
		if o.Is4() == f.Local.Is4() && beside != f.Local {
			wg.Go(func() { far = debug.SendEcho(ctx, debug.EchoRequest{From: o, To: f.Local, Count: 2, Wait: echoWait}) })
		}
	}
	e := a.look.Pod(ctx, f)
	wg.Wait()
	if e == nil {
		return nil
	}
	e.Beside = beside
	if near.Sent > 0 {
		e.Near = &near
	}
	if far.Sent > 0 {
		e.Far = &far
	}
	return e
}

// lookForHost looks whether the host of a peer that is silent answers, and whether
// its port is closed, past the tunnel.
func (a *answers) lookForHost(ctx context.Context, p protocol.Peer) (host *protocol.TunnelPing, port string) {
	for _, c := range p.Candidates[:min(len(p.Candidates), mostHosts)] {
		r := debug.SendEcho(ctx, debug.EchoRequest{To: c.Addr(), Count: 2, Wait: 500 * time.Millisecond, Mark: netns.DefaultMark})
		if host == nil || r.Received > 0 {
			host = &r
		}
		if portClosed(ctx, c) {
			return host, "closed"
		}
	}
	return host, ""
}

// portClosed reports whether a host says by ICMP that nobody listens at a UDP port.
func portClosed(ctx context.Context, to netip.AddrPort) bool {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, netns.DefaultMark) }); e != nil {
			return e
		}
		return err
	}}
	conn, err := d.DialContext(ctx, "udp", to.String())
	if err != nil {
		return false
	}
	defer conn.Close()
	for range 2 {
		if _, err := conn.Write([]byte{0}); errors.Is(err, syscall.ECONNREFUSED) {
			return true
		}
		conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); errors.Is(err, syscall.ECONNREFUSED) {
			return true
		}
	}
	return false
}
