package hublink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"causeway/agent/control"
	"causeway/agent/desired"
	"causeway/agent/health"
	"causeway/agent/repair"
	"causeway/protocol"
)

const (
	dialTimeout = 3 * time.Second
	// farewellSeconds is how long the end of a session may take to arrive when the
	// agent stops.
	farewellSeconds = 1
	// lostAfter is how long a hub may not answer probes before its control
	// session is given up: TCP would wait far longer after an outage.
	lostAfter = 3 * time.Second
	// revokedRetry is how often a revoked node asks again.
	revokedRetry = time.Minute
	// pathPoll is how often paths are compared for a status of their own.
	pathPoll = 500 * time.Millisecond
)

// These are why a session is given up from this side.
var (
	errRemade    = errors.New("the tunnel's interface was made anew")
	errRestarted = errors.New("the hub was restarted")
	errReloaded  = errors.New("the configuration was reloaded")
	errLost      = errors.New("the hub does not answer any more")
)

// Run keeps a control session with one hub that answers, until ctx ends or this node has left. serve
// answers what the hub asks.
func (l *Link) Run(ctx context.Context, serve func(net.Conn)) error {
	b := control.Redial()
	var prefer protocol.NodeNumber
	poll := time.NewTicker(250 * time.Millisecond)
	defer poll.Stop()
	for ctx.Err() == nil {
		n := l.boundHub(prefer)
		if n == 0 {
			select {
			case <-ctx.Done():
			case <-poll.C:
			}
			continue
		}
		start := time.Now()
		err := l.controlSession(ctx, n, serve)
		l.mu.Lock()
		l.hub = 0
		l.mu.Unlock()
		if ctx.Err() != nil {
			return nil
		}
		l.cfg.Ended()
		wait := b.NextBackOff()
		switch {
		case errors.Is(err, control.ErrRevoked):
			l.setRevoked(ctx)
			wait = revokedRetry
		case errors.Is(err, errRotating), errors.Is(err, errRestarted), errors.Is(err, errReloaded), errors.Is(err, errRemade), time.Since(start) > 10*time.Second:
			b.Reset()
			wait = b.NextBackOff()
		}
		if err == nil { // a leave: Run ends now
			return nil
		}
		prefer = n
		l.helloRefused(err)
		if !errors.Is(err, errRestarted) && !errors.Is(err, errReloaded) && !errors.Is(err, errRemade) && !errors.Is(err, errLost) && !errors.Is(err, errRotating) {
			prefer = 0 // the next in the list gets its turn
		}
		l.board.Set(health.Control, err.Error())
		l.log.Debug().Err(err).Uint32("hub", uint32(n)).Dur("retry_in", wait).Msg("control session ended")
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// controlSession dials hub n and serves until the session ends.
func (l *Link) controlSession(ctx context.Context, n protocol.NodeNumber, serve func(net.Conn)) error {
	// What was signalled before this session began is not about it.
	for stale := true; stale; {
		select {
		case <-l.tunnel.HubRestarted():
		case <-l.host.Remade():
		default:
			stale = false
		}
	}
	conn, err := l.dialAt(ctx, n, protocol.ControlPort)
	if err != nil {
		return err
	}
	sctx, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	stop := context.AfterFunc(ctx, func() {
		// The hub shall hear that this node goes, and is not lost.
		if c, ok := conn.(*net.TCPConn); ok {
			c.SetLinger(farewellSeconds)
		}
		end(context.Cause(ctx))
	})
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.watchHub(sctx, n, end)
	}()
	l.mu.Lock()
	l.hub, l.endSession = n, end
	l.mu.Unlock()
	err = l.control.Serve(sctx, conn, serve)
	l.mu.Lock()
	l.endSession = nil
	l.mu.Unlock()
	if c := context.Cause(sctx); c != nil && ctx.Err() == nil {
		err = c
	}
	end(nil)
	<-done
	if ctx.Err() == nil && l.board.OK(health.NATS) {
		l.board.Set(health.NATS, "no control session")
	}
	return err
}

// watchHub ends a session when its hub was restarted or is lost.
func (l *Link) watchHub(ctx context.Context, n protocol.NodeNumber, end context.CancelCauseFunc) {
	t := time.NewTicker(250 * time.Millisecond)
	defer t.Stop()
	seen := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.host.Remade(): // the session's socket is bound to the device that was
			end(errRemade)
			return
		case r := <-l.tunnel.HubRestarted():
			if r == n {
				end(errRestarted)
				return
			}
		case <-t.C:
			if l.tunnel.HubBound(n) {
				seen = time.Now()
			} else if time.Since(seen) > lostAfter {
				end(errLost)
				return
			}
		}
	}
}

// hubAddrs are the two ends of a connection to a port of hub n's, in one family.
func (l *Link) hubAddrs(n protocol.NodeNumber, port uint16) (netip.Addr, netip.AddrPort, error) {
	list := l.want.Now().Hubs
	for _, h := range list.Addrs(n) {
		for _, o := range l.own.Now().Overlay {
			if o.Is4() == h.Is4() {
				return o, netip.AddrPortFrom(h, port), nil
			}
		}
	}
	return netip.Addr{}, netip.AddrPort{}, fmt.Errorf("hub %d and this node have no overlay address of one family", n)
}

// hello is the first message of a session.
func (l *Link) hello() protocol.Hello {
	l.mu.Lock()
	hub := l.hub
	l.mu.Unlock()
	set := l.live.Now()
	return protocol.Hello{Vouch: protocol.Vouch(hub, l.own.Now().Number, l.cfg.Boot, l.own.Now().IdentityKey), Gone: l.want.Now().Said, Features: desired.Features(set), AgentVersion: l.cfg.Version, BootID: l.cfg.Boot, Statement: l.say(),
		Routes: set.Routes, Accept: set.Accept, Labels: set.Labels,
		Have: l.want.Have(), HaveSum: l.want.HaveSum(), Mark: l.want.Mark(), Engine: l.tunnel.EngineName()}
}

// prove signs the challenge of the hub that this session is with, and of no other: one
// hub must not pass as this node at another.
func (l *Link) prove(c protocol.Challenge, hello []byte) (protocol.Proof, error) {
	l.mu.Lock()
	hub := l.hub
	l.mu.Unlock()
	if c.Hub != hub {
		return protocol.Proof{}, fmt.Errorf("hub %d asks for a proof for hub %d", hub, c.Hub)
	}
	return c.Prove(l.own.Now().Number, hello, l.own.Now().IdentityKey), nil
}

// welcome hears that the hub knows this node: what it holds is good again.
func (l *Link) welcome(w protocol.Welcome) {
	l.mu.Lock()
	l.hub, l.hubVersion, l.hubSays = w.Hub, w.HubVersion, ""
	l.mu.Unlock()
	if l.want.Welcomed() {
		l.want.SaveOrTell()
		l.host.Reapply(context.Background())
	}
	l.keyTaken()
	l.newestSession()
	l.board.Set(health.Control, "")
	l.cfg.Began()
	l.log.Info().Uint32("hub", uint32(w.Hub)).Str("hub_version", w.HubVersion).Msg("control session with the hub")
	if d := time.Since(w.Time); d.Abs() > time.Minute && !w.Time.IsZero() {
		l.log.Warn().Dur("difference", d).Msg("this host's clock and the hub's differ")
	}
}

// status is what the hub is told now.
func (l *Link) status() protocol.Status {
	return protocol.Status{Upgrade: l.cfg.Upgrade(), Candidates: notNil(l.tunnel.Candidates()), Paths: notNil(l.tunnel.Paths()), Conditions: l.board.List(), Services: l.cfg.Services(), Fences: l.cfg.Fences()}
}

func notNil[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

func (l *Link) kept(err error) {
	if err != nil {
		l.log.Warn().Err(err).Msg("an incident is kept in memory alone")
	}
}

// FollowPaths keeps the hub condition and asks for a status when paths or
// candidates changed.
func (l *Link) FollowPaths(ctx context.Context) error {
	t := time.NewTicker(pathPoll)
	defer t.Stop()
	var last string
	for {
		switch {
		case l.boundHub(0) == 0:
			if why := l.hubsWord(); why != "" {
				l.board.Set(health.Hub, why)
				break
			}
			l.board.Set(health.Hub, l.hubCause("no hub answers at "+l.hubNames(udpNames)+" (UDP) or "+l.hubNames(httpsNames)+" (TCP); check that it runs and that one of them may leave this host; "+
				"if the hub moved, hand its list over: 'causeway hubs list -o json >hubs.json' on its host, then here 'causeway-agent hubs set @hubs.json'"))
		case l.tunnel.UDPBlocked():
			l.board.SetNote(health.Hub, l.hubCause("reached over a stream (TCP): no hub answers over UDP; let UDP to "+l.hubNames(udpNames)+" pass for more speed"))
		default:
			l.board.SetNote(health.Hub, l.dnsNote())
		}
		l.lookAtHubs()
		suspects := l.tunnel.Suspects()
		l.board.Set(health.Paths, suspectText(suspects))
		text := ""
		for _, p := range l.tunnel.Paths() {
			text += fmt.Sprintln(p.Peer, p.Path, p.Addr)
		}
		if text != last {
			last = text
			l.control.Changed()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.tunnel.CandidatesChanged():
			l.control.Changed()
		case <-l.tunnel.HubsChanged():
		case <-t.C:
		}
	}
}

// sessionPoll is how often it is looked whether there is a session.
const sessionPoll = time.Second

// sessionLost is how long a control session may be missing without being an incident: a
// hub's restart is shorter.
const sessionLost = 3 * time.Second

// FollowSession makes incidents of times without a control session.
func (l *Link) FollowSession(ctx context.Context) error {
	t := time.NewTicker(sessionPoll)
	defer t.Stop()
	var number, rx, tx uint64
	var had bool // there was a session in this run
	var since time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		conditions := l.board.List()
		i := slices.IndexFunc(conditions, func(c protocol.Condition) bool { return c.Name == health.Control })
		c := conditions[i]
		switch {
		case c.OK && number != 0:
			nrx, ntx := repair.Traffic(l.tunnel.Paths())
			err := l.incidents.Change(number, func(i *protocol.Incident) {
				i.State, i.Until, i.Action, i.Seconds = protocol.IncidentOver, c.Since, "dialled the hub until it answered", max(0, c.Since.Sub(since).Seconds())
				i.RxBytes, i.TxBytes = nrx-min(nrx, rx), ntx-min(ntx, tx)
				i.Felt = fmt.Sprintf("for %.1f s: the node heard of no change and could not be looked at; paths that were up went on: the tunnel sent %d and received %d bytes meanwhile", i.Seconds, i.TxBytes, i.RxBytes)
			})
			l.kept(err)
			number = 0
		case c.OK:
			had = true
			rx, tx = repair.Traffic(l.tunnel.Paths())
		case had && number == 0 && time.Since(c.Since) >= sessionLost:
			since = c.Since
			n, err := l.incidents.Begin(protocol.Incident{Subject: health.Control, Since: since, Found: []string{"no control session with a hub"}, Reason: whyNoSession(conditions), Action: "the hub is dialled again and again"})
			l.kept(err)
			number = n
		}
	}
}

// whyNoSession is the cause of the condition that the session depends on, if that fails too.
func whyNoSession(conditions []protocol.Condition) string {
	for _, name := range []string{health.Tunnel, health.Hub, health.Control} {
		for _, c := range conditions {
			if c.Name == name && !c.OK {
				return c.Name + ": " + c.Cause
			}
		}
	}
	return "not known"
}
