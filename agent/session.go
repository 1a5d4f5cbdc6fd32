package agent

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
	errLost      = errors.New("the hub does not answer any more")
)

// controlLoop keeps a control session with one hub that answers.
func (a *Agent) controlLoop(ctx context.Context) error {
	b := control.Redial()
	var prefer protocol.NodeNumber
	poll := time.NewTicker(250 * time.Millisecond)
	defer poll.Stop()
	for ctx.Err() == nil {
		n := a.boundHub(prefer)
		if n == 0 {
			select {
			case <-ctx.Done():
			case <-poll.C:
			}
			continue
		}
		start := time.Now()
		err := a.controlSession(ctx, n)
		a.mu.Lock()
		a.hub = 0
		a.mu.Unlock()
		if ctx.Err() != nil {
			return nil
		}
		a.metrics.sessionEnded()
		wait := b.NextBackOff()
		switch {
		case errors.Is(err, control.ErrRevoked):
			a.setRevoked(ctx)
			wait = revokedRetry
		case errors.Is(err, errRotating), errors.Is(err, errRestarted), errors.Is(err, errReloaded), errors.Is(err, errRemade), time.Since(start) > 10*time.Second:
			b.Reset()
			wait = b.NextBackOff()
		}
		if err == nil { // a leave: Run ends now
			return nil
		}
		prefer = n
		a.helloRefused(err)
		if !errors.Is(err, errRestarted) && !errors.Is(err, errReloaded) && !errors.Is(err, errRemade) && !errors.Is(err, errLost) && !errors.Is(err, errRotating) {
			prefer = 0 // the next in the list gets its turn
		}
		a.board.Set(health.Control, err.Error())
		a.log.Debug().Err(err).Uint32("hub", uint32(n)).Dur("retry_in", wait).Msg("control session ended")
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// controlSession dials hub n and serves until the session ends.
func (a *Agent) controlSession(ctx context.Context, n protocol.NodeNumber) error {
	from, to, err := a.hubAddrs(n, protocol.ControlPort)
	if err != nil {
		return err
	}
	// What was signalled before this session began is not about it.
	for stale := true; stale; {
		select {
		case <-a.tunnel.HubRestarted():
		case <-a.host.Remade():
		default:
			stale = false
		}
	}
	dctx, cancel := context.WithTimeout(ctx, dialTimeout)
	conn, err := a.dial(dctx, from, to)
	cancel()
	if err != nil {
		return fmt.Errorf("dial hub %d at %s: %w", n, to, err)
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
		a.watchHub(sctx, n, end)
	}()
	a.mu.Lock()
	a.hub, a.endSession = n, end
	a.mu.Unlock()
	err = a.control.Serve(sctx, conn)
	a.mu.Lock()
	a.endSession = nil
	a.mu.Unlock()
	if c := context.Cause(sctx); c != nil && ctx.Err() == nil {
		err = c
	}
	end(nil)
	<-done
	if ctx.Err() == nil && a.board.OK(health.NATS) {
		a.board.Set(health.NATS, "no control session")
	}
	return err
}

// watchHub ends a session when its hub was restarted or is lost.
func (a *Agent) watchHub(ctx context.Context, n protocol.NodeNumber, end context.CancelCauseFunc) {
	t := time.NewTicker(250 * time.Millisecond)
	defer t.Stop()
	seen := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.host.Remade(): // the session's socket is bound to the device that was
			end(errRemade)
			return
		case r := <-a.tunnel.HubRestarted():
			if r == n {
				end(errRestarted)
				return
			}
		case <-t.C:
			if a.tunnel.HubBound(n) {
				seen = time.Now()
			} else if time.Since(seen) > lostAfter {
				end(errLost)
				return
			}
		}
	}
}

// hubAddrs are the two ends of a connection to a port of hub n's, in one family.
func (a *Agent) hubAddrs(n protocol.NodeNumber, port uint16) (netip.Addr, netip.AddrPort, error) {
	list := a.want.Now().Hubs
	for _, h := range list.Addrs(n) {
		for _, o := range a.own.Now().Overlay {
			if o.Is4() == h.Is4() {
				return o, netip.AddrPortFrom(h, port), nil
			}
		}
	}
	return netip.Addr{}, netip.AddrPort{}, fmt.Errorf("hub %d and this node have no overlay address of one family", n)
}

// hello is the first message of a session.
func (a *Agent) hello() protocol.Hello {
	a.mu.Lock()
	hub := a.hub
	a.mu.Unlock()
	set := a.live.Now()
	return protocol.Hello{Vouch: protocol.Vouch(hub, a.own.Now().Number, a.boot, a.own.Now().IdentityKey), Gone: a.want.Now().Said, Features: desired.Features(set), AgentVersion: a.cfg.Version, BootID: a.boot, Statement: a.say(),
		Routes: set.Routes, Accept: set.Accept, Labels: set.Labels,
		Have: a.want.Have(), HaveSum: a.want.HaveSum(), Mark: a.want.Mark(), Engine: a.tunnel.EngineName()}
}

// prove signs the challenge of the hub that this session is with, and of no other: one
// hub must not pass as this node at another.
func (a *Agent) prove(c protocol.Challenge, hello []byte) (protocol.Proof, error) {
	a.mu.Lock()
	hub := a.hub
	a.mu.Unlock()
	if c.Hub != hub {
		return protocol.Proof{}, fmt.Errorf("hub %d asks for a proof for hub %d", hub, c.Hub)
	}
	return c.Prove(a.own.Now().Number, hello, a.own.Now().IdentityKey), nil
}

// welcome hears that the hub knows this node: what it holds is good again.
func (a *Agent) welcome(w protocol.Welcome) {
	a.mu.Lock()
	a.hub, a.hubVersion, a.hubSays = w.Hub, w.HubVersion, ""
	a.mu.Unlock()
	if a.want.Welcomed() {
		a.want.SaveOrTell()
		a.host.Reapply(context.Background())
	}
	a.keyTaken()
	a.newestSession()
	a.board.Set(health.Control, "")
	a.metrics.sessionBegan()
	a.log.Info().Uint32("hub", uint32(w.Hub)).Str("hub_version", w.HubVersion).Msg("control session with the hub")
	if d := time.Since(w.Time); d.Abs() > time.Minute && !w.Time.IsZero() {
		a.log.Warn().Dur("difference", d).Msg("this host's clock and the hub's differ")
	}
}

// status is what the hub is told now.
func (a *Agent) status() protocol.Status {
	a.mu.Lock()
	upgraded := a.upgraded
	a.mu.Unlock()
	return protocol.Status{Upgrade: upgraded, Candidates: notNil(a.tunnel.Candidates()), Paths: notNil(a.tunnel.Paths()), Conditions: a.board.List()}
}

func notNil[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

func (a *Agent) kept(err error) {
	if err != nil {
		a.log.Warn().Err(err).Msg("an incident is kept in memory alone")
	}
}

// followTunnel keeps the hub condition and asks for a status when paths or
// candidates changed.
func (a *Agent) followTunnel(ctx context.Context) error {
	t := time.NewTicker(pathPoll)
	defer t.Stop()
	var last string
	for {
		switch {
		case a.boundHub(0) == 0:
			if why := a.hubsWord(); why != "" {
				a.board.Set(health.Hub, why)
				break
			}
			a.board.Set(health.Hub, a.hubCause("no hub answers at "+a.hubNames(udpNames)+" (UDP) or "+a.hubNames(httpsNames)+" (TCP); check that it runs and that one of them may leave this host; "+
				"if the hub moved, hand its list over: 'causeway hubs list -o json >hubs.json' on its host, then here 'causeway-agent hubs set @hubs.json'"))
		case a.tunnel.UDPBlocked():
			a.board.SetNote(health.Hub, a.hubCause("reached over a stream (TCP): no hub answers over UDP; let UDP to "+a.hubNames(udpNames)+" pass for more speed"))
		default:
			a.board.SetNote(health.Hub, a.dnsNote())
		}
		a.lookAtHubs()
		suspects := a.tunnel.Suspects()
		a.board.Set(health.Paths, suspectText(suspects))
		text := ""
		for _, p := range a.tunnel.Paths() {
			text += fmt.Sprintln(p.Peer, p.Path, p.Addr)
		}
		if text != last {
			last = text
			a.control.Changed()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.tunnel.CandidatesChanged():
			a.control.Changed()
		case <-a.tunnel.HubsChanged():
		case <-t.C:
		}
	}
}

// sessionPoll is how often it is looked whether there is a session.
const sessionPoll = time.Second

// sessionLost is how long a control session may be missing without being an incident: a
// hub's restart is shorter.
const sessionLost = 3 * time.Second

// followSession makes incidents of times without a control session.
func (a *Agent) followSession(ctx context.Context) error {
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
		l := a.board.List()
		i := slices.IndexFunc(l, func(c protocol.Condition) bool { return c.Name == health.Control })
		c := l[i]
		switch {
		case c.OK && number != 0:
			nrx, ntx := repair.Traffic(a.tunnel.Paths())
			err := a.incidents.Change(number, func(i *protocol.Incident) {
				i.State, i.Until, i.Action, i.Seconds = protocol.IncidentOver, c.Since, "dialled the hub until it answered", max(0, c.Since.Sub(since).Seconds())
				i.RxBytes, i.TxBytes = nrx-min(nrx, rx), ntx-min(ntx, tx)
				i.Felt = fmt.Sprintf("for %.1f s: the node heard of no change and could not be looked at; paths that were up went on: the tunnel sent %d and received %d bytes meanwhile", i.Seconds, i.TxBytes, i.RxBytes)
			})
			a.kept(err)
			number = 0
		case c.OK:
			had = true
			rx, tx = repair.Traffic(a.tunnel.Paths())
		case had && number == 0 && time.Since(c.Since) >= sessionLost:
			since = c.Since
			n, err := a.incidents.Begin(protocol.Incident{Subject: health.Control, Since: since, Found: []string{"no control session with a hub"}, Reason: a.whyNoSession(l), Action: "the hub is dialled again and again"})
			a.kept(err)
			number = n
		}
	}
}

// whyNoSession is the cause of the condition that the session depends on, if that fails too.
func (a *Agent) whyNoSession(l []protocol.Condition) string {
	for _, name := range []string{health.Tunnel, health.Hub, health.Control} {
		for _, c := range l {
			if c.Name == name && !c.OK {
				return c.Name + ": " + c.Cause
			}
		}
	}
	return "not known"
}
