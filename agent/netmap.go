package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"causeway/agent/clock"
	"causeway/agent/identity"
	"causeway/agent/netmapcheck"
	"causeway/internal/shortage"
	"causeway/netns"
	"causeway/protocol"
	"causeway/tunnel"
)

const (
	// tick is how often age and what could not be applied are looked at unasked.
	tick = 10 * time.Second
	// blockedTick is how soon an operator who mended a firewall sees that it is so.
	blockedTick = 4 * time.Second
	// confirmEvery is how often the time of the last contact with a hub is
	// written to disk.
	confirmEvery = 10 * time.Minute
)

// load reads the last netmap, the pins and the book of what is held. A netmap that does not
// read is none, unless that is for a shortage, which is the error.
func (a *Agent) load() error {
	a.loadPins()
	if err := a.loadBook(); err != nil {
		return err
	}
	held, err := a.cfg.Store.Netmap()
	if shortage.Is(err) {
		return err
	}
	a.bookNew = a.bookNew && held != nil
	if err != nil {
		a.log.Error().Err(err).Msg("the stored netmap does not read, waiting for a hub's")
		return nil
	}
	if held != nil && held.Netmap.Self.Number != a.id.Number {
		a.log.Warn().Msg("the stored netmap is another node's, waiting for a hub's")
		return nil
	}
	if held != nil {
		a.held, a.stored = held, held.Clock.Time
		a.clock = clock.New(a.wall, a.boots, held.Clock, held.Confirmed)
		for _, l := range held.Gone {
			if why := a.takeGone(l); why != "" {
				a.log.Warn().Str("err", why).Msg("a stored list of gone nodes is not used")
			}
		}
	}
	for _, d := range a.cfg.Store.Mended() {
		a.log.Warn().Err(d).Msg("a state file was damaged")
	}
	return nil
}

// takeNetmap is the control channel's: it applies what may be applied, stores
// the netmap and says what was refused.
func (a *Agent) takeNetmap(ctx context.Context, n protocol.Netmap) protocol.NetmapAck {
	a.repairs.first(ctx)
	a.applyMu.Lock()
	defer a.applyMu.Unlock()
	refuse := func(why string) protocol.NetmapAck {
		a.log.Warn().Str("err", why).Msg("refused a netmap")
		return protocol.NetmapAck{NetmapVersion: a.have(), Refused: []protocol.RefusedPart{{Reason: why}}}
	}
	a.mu.Lock()
	if a.left { // a hub list would bring the identity back
		a.mu.Unlock()
		return protocol.NetmapAck{NetmapVersion: n.NetmapVersion, Errors: []string{"this node has left"}}
	}
	var held *protocol.Netmap
	if a.held != nil {
		h := a.held.Netmap
		held = &h
	}
	a.mu.Unlock()
	if held != nil {
		if why := netmapcheck.Newer(held.NetmapVersion, n.NetmapVersion); why != "" {
			return refuse(why)
		}
	}
	full, err := n.Apply(held)
	if errors.Is(err, protocol.ErrUnknownBase) {
		return protocol.NetmapAck{NetmapVersion: a.have(), Full: true}
	}
	if err != nil {
		return refuse(err.Error())
	}
	if full.Self.Number != a.id.Number {
		return refuse(fmt.Sprintf("it is for node number %d", full.Self.Number))
	}
	var more []protocol.RefusedPart
	if n.HubList != nil {
		if why := a.takeHubList(*n.HubList); why != "" {
			more = append(more, protocol.RefusedPart{Reason: "hub list: " + why})
		}
	}
	if n.Gone != nil {
		if why := a.takeGone(*n.Gone); why != "" {
			more = append(more, protocol.RefusedPart{Reason: "list of gone nodes: " + why})
		}
	}
	before := fmt.Sprint(a.announced())
	a.mu.Lock()
	a.held = &identity.StoredNetmap{Netmap: full, Confirmed: a.wordLocked(), Gone: a.gone.lists}
	gone := a.gone.nodes
	a.mu.Unlock()
	ack := a.apply(ctx)
	ack.Refused = append(ack.Refused, more...)
	if held != nil && held.Epoch < full.Epoch {
		ack.Lost = lost(*held, full, gone)
	}
	if err := a.save(); err != nil {
		ack.Errors = append(ack.Errors, err.Error())
	}
	a.noteAcked(ack)
	a.log.Info().Stringer("netmap", full.NetmapVersion).Int("peers", len(full.Peers)).Int("refused", len(ack.Refused)).Int("errors", len(ack.Errors)).Msg("netmap applied")
	for _, r := range ack.Refused {
		a.log.Warn().Uint32("peer", uint32(r.Peer)).Str("prefix", r.Prefix).Str("reason", r.Reason).Msg("refused a part of the netmap")
	}
	if now := fmt.Sprint(a.announced()); now != before {
		a.facts.Changed()
	}
	a.lookAtKeysSoon()
	return ack
}

// takeHubList stores a newer hub list; it says why it does not.
func (a *Agent) takeHubList(s protocol.SignedHubList) string {
	a.mu.Lock()
	id, held, left := a.id, a.hubs.Serial, a.left
	a.mu.Unlock()
	if left {
		return "this node has left"
	}
	l, newer, err := NewerHubList(id, held, s, a.time())
	if err != nil {
		return err.Error()
	}
	if !newer { // the one we hold
		return ""
	}
	if err := a.changeIdentity(func(id *identity.Identity) { id.HubList = s }); err != nil {
		return err.Error()
	}
	a.mu.Lock()
	a.hubs, a.signed = l, s
	a.mu.Unlock()
	a.clock.Floor(l.NotBefore)
	for _, c := range []chan struct{}{a.listChanged, a.wallDue} {
		select {
		case c <- struct{}{}:
		default:
		}
	}
	a.log.Info().Uint64("serial", l.Serial).Int("hubs", len(l.Hubs)).Msg("new hub list")
	return ""
}

// have is the version of the netmap held; zero for none.
func (a *Agent) have() protocol.NetmapVersion {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.haveLocked()
}

// haveLocked is have. a.mu is held.
func (a *Agent) haveLocked() protocol.NetmapVersion {
	if a.held == nil {
		return protocol.NetmapVersion{}
	}
	return a.held.Netmap.NetmapVersion
}

// haveSum is the digest of the peers of the netmap held; nil for none.
func (a *Agent) haveSum() []byte {
	a.mu.Lock()
	held := a.held
	a.mu.Unlock()
	if held == nil {
		return nil
	}
	sum, err := protocol.SumPeers(held.Netmap.Peers)
	if err != nil {
		return nil // the hub sends them, then
	}
	return sum[:]
}

// reapply applies what is held once more, as after a change on the host, and
// tells the hub if the outcome is another.
func (a *Agent) reapply(ctx context.Context) {
	a.repairs.first(ctx)
	a.applyMu.Lock()
	defer a.applyMu.Unlock()
	a.confirm(false) // a clock set right meanwhile makes nothing old that a hub stands by
	ack := a.apply(ctx)
	if a.have() == (protocol.NetmapVersion{}) || !a.noteAcked(ack) {
		return
	}
	if err := a.control.Ack(ack); err != nil {
		a.log.Debug().Err(err).Msg("changed acknowledgement was not sent")
	}
}

// noteAcked remembers what the hub is told of a netmap; it reports whether
// that is new.
func (a *Agent) noteAcked(ack protocol.NetmapAck) bool {
	text := fmt.Sprint(ack.Refused, ack.Errors)
	a.mu.Lock()
	defer a.mu.Unlock()
	changed := text != a.acked
	a.acked = text
	return changed
}

// hubWall keeps everybody but this process' user from what hubs and agents have inside the
// overlay.
func (a *Agent) hubWall() netns.Wall {
	a.mu.Lock()
	list := a.hubs
	a.mu.Unlock()
	w := netns.Wall{UID: uint32(os.Geteuid()), Overlay: list.Overlay}
	for _, h := range list.Hubs {
		w.Hubs = append(w.Hubs, hubOverlay(list, h.Number)...)
	}
	return w
}

// hostConfig is the plan's input for these routes and the peers behind them.
func (a *Agent) hostConfig(routes, local []netip.Prefix, peers []protocol.Peer) netns.Config {
	c := netns.Config{MTU: a.defaultMTU(), Mark: netns.DefaultMark, Table: netns.DefaultTable,
		Overlay: slices.Clone(a.id.Overlay), Routes: routes, Local: local, Shields: a.shields(), Wall: a.hubWall()}
	a.setDevice(&c)
	a.setMTUs(&c, peers)
	if !netns.HasIPv6() {
		v6 := func(p netip.Prefix) bool { return p.Addr().Is6() }
		c.Overlay = slices.DeleteFunc(c.Overlay, netip.Addr.Is6)
		c.Wall = c.Wall.Without6()
		c.Routes, c.Local = slices.DeleteFunc(slices.Clone(c.Routes), v6), slices.DeleteFunc(slices.Clone(local), v6)
	}
	return c
}

// apply makes tunnel and host match what is held. It fails closed: peers that
// are revoked or too old are taken away, but their routes go on leading into
// the tunnel, where nobody takes the packets, and not to the host's default
// route. Called with applyMu.
func (a *Agent) apply(ctx context.Context) protocol.NetmapAck {
	a.learnGrant()
	foreign, foreignErr := a.host.ForeignRoutes(ctx, a.hostConfig(nil, nil, nil))
	set := a.live.Load()
	a.mu.Lock()
	in := netmapcheck.Input{Self: a.id.Number, SelfKeys: a.ownPublicLocked(), Hubs: a.hubs, Announced: set.routes,
		Accept: set.accept, Named: set.named, Foreign: foreignPrefixes(foreign), Pins: a.pins, Gone: a.gone.nodes, Last: a.result.Peers}
	revoked := false
	if a.held != nil {
		in.Netmap, revoked = a.held.Netmap, a.held.Revoked
	}
	in.Granted = a.id.Granted
	held, expired := a.held != nil, a.expiredLocked()
	last, pinsLost := a.result, a.pinsLost != nil
	a.mu.Unlock()

	ack := protocol.NetmapAck{NetmapVersion: in.Netmap.NetmapVersion}
	fail := func(err error) {
		if ctx.Err() == nil {
			ack.Errors = append(ack.Errors, err.Error())
		}
	}
	a.bound(ctx, &in)
	res := netmapcheck.Check(in)
	closed := revoked || expired || pinsLost || len(in.Netmap.Requires) > 0 && len(res.Peers) == 0
	if closed {
		in.Netmap.Requires = nil
		res.Routes = netmapcheck.Check(in).Routes
	}
	if foreignErr != nil {
		// Without knowing the host's own routes no new one is taken.
		fail(foreignErr)
		res = last
	}
	if closed {
		res.Peers = nil
	}
	ack.Refused = res.Refused

	a.tunnel.SetLocal(netns.OwnDestinations(a.id.Overlay, res.Local))
	// Walls come before ways: peers are there while what nftables shall drop is known to be
	// dropped. Without, routes go on leading into the tunnel, where nobody takes the packets.
	var causes []string
	setPeers := func(l []protocol.Peer) {
		if err := a.tunnel.SetPeers(nodePeers(l)); err != nil {
			causes = append(causes, "set peers: "+err.Error())
			fail(fmt.Errorf("set peers: %w", err))
		}
	}
	walled := a.walled
	if !walled {
		setPeers(nil)
	} else {
		setPeers(res.Peers)
	}
	c := a.hostConfig(slices.Concat(in.Hubs.Overlay, res.Routes), res.Local, res.Peers)
	next, apart := a.close(&c, in, res, foreign, foreignErr == nil)
	if err := a.keepBook(next); err != nil {
		fail(err)
	}
	var harmless netns.Failures
	plan, err := netns.NewPlan(c)
	if err == nil {
		err = a.host.Apply(ctx, plan)
		a.walled = !errors.Is(err, netns.ErrNoWalls) && (walled || ctx.Err() == nil)
		a.repairs.noteMended(a.host.PutRight())
	} else { // the host has what it had
		a.mu.Lock()
		plan = a.plan
		a.mu.Unlock()
	}
	if a.walled != walled {
		if !a.walled {
			setPeers(nil)
		} else {
			setPeers(res.Peers)
		}
	}
	var harm netns.Failures
	if errors.As(err, &harm) {
		harm, harmless = harm.Harm()
		for _, text := range harm.Texts() {
			causes = append(causes, "set up the host's network: "+text)
			fail(errors.New(text))
		}
	} else if err != nil {
		causes = append(causes, "set up the host's network: "+err.Error())
		fail(err)
	}
	if foreignErr != nil {
		causes = append(causes, foreignErr.Error())
	}
	if ctx.Err() != nil {
		return ack
	}
	if len(causes) > 0 {
		a.board.Set(condRoutes, strings.Join(causes, "; "))
	} else {
		a.board.SetNote(condRoutes, harmless.Error())
	}
	a.noteName()
	a.lookAtFirewall(ctx, len(res.Local) > 0)

	a.mu.Lock()
	pinsChanged := !pinsLost && res.Pins != nil && !maps.Equal(a.pins, res.Pins)
	if res.Pins != nil && !pinsLost {
		a.pins = res.Pins
	}
	a.result, a.plan, a.errs, a.expired, a.apart = res, plan, ack.Errors, expired, apart
	pins := a.pins
	a.mu.Unlock()
	a.tellClosed()
	if pinsChanged {
		if err := a.cfg.Store.SavePins(pins); err != nil {
			fail(err)
			a.board.SetError(condState, err)
		}
	}
	a.board.Set(condNetmap, a.netmapCause(held, revoked))
	return ack
}

// shields are those of the configuration, or what the identity says where that is silent. The
// port of /metrics is open where the configuration has it at an overlay address.
func (a *Agent) shields() netns.Shields {
	s := a.live.Load().shields.On(a.id.Shields)
	if m, err := netip.ParseAddrPort(a.cfg.Settings.Debug.Metrics); err == nil && slices.Contains(a.id.Overlay, m.Addr()) {
		p := netns.Port{Proto: protocol.FlowTCP, First: m.Port(), Last: m.Port()}
		if !slices.Contains(s.Allow, p) {
			s.Allow = append(slices.Clone(s.Allow), p)
		}
	}
	return s
}

func nodePeers(in []protocol.Peer) []tunnel.NodePeer {
	out := make([]tunnel.NodePeer, 0, len(in))
	for _, p := range in {
		out = append(out, tunnel.NodePeer{Number: p.Number(), Name: p.Name, Key: p.Statement.WireGuardKey, KeyEpoch: p.Statement.Epoch,
			AllowedIPs: p.Prefixes(), Sources: p.Sources, Candidates: elsewhere(p.Candidates), Direct: p.Direct})
	}
	return out
}

// forwards reports whether there is something behind this host.
func (a *Agent) forwards() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.result.Local) > 0
}

func (a *Agent) lookAtFirewall(ctx context.Context, forwards bool) {
	if !forwards {
		a.board.Set(condFirewall, "") // nothing of ours is forwarded
		return
	}
	what, err := a.host.ForwardBlockedBy(ctx)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		a.board.SetError(condFirewall, err)
	case what != "":
		a.board.Set(condFirewall, "forwarded traffic is dropped by "+what)
	default:
		a.board.Set(condFirewall, "")
	}
}

// expiredLocked reports whether the netmap is older than it may get without a
// hub, whatever the host's clock was set to.
func (a *Agent) expiredLocked() bool {
	return a.held != nil && a.held.Netmap.MaxAge > 0 && a.ageLocked() > a.held.Netmap.MaxAge
}

// netmapCause is the netmap condition's cause, empty if it holds.
func (a *Agent) netmapCause(held, revoked bool) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case !held:
		return "no netmap yet"
	case revoked:
		return "this node was revoked: no peer is reached; join again with a new token, or leave"
	case a.pinsLost != nil:
		return fmt.Sprintf("pinned keys of peers: %s; no peer is reached, since any key would do: restore %s, or give up what was pinned: 'rm -r %s', and the next keys seen are", a.pinsLost, a.cfg.Store.PinsFile(), a.cfg.Store.PinsFile())
	case a.expired:
		return fmt.Sprintf("no hub since %s, which is longer than the netmap's max_age of %s: no peer is reached", a.held.Confirmed.Format(time.RFC3339), a.held.Netmap.MaxAge)
	case refusedWhole(a.result.Refused) != "":
		return refusedWhole(a.result.Refused)
	case a.held.Netmap.MaxAge > 0 && a.ageLocked() > a.held.Netmap.MaxAge/2:
		return fmt.Sprintf("no hub since %s; peers are dropped at %s", a.held.Confirmed.Format(time.RFC3339), a.held.Confirmed.Add(a.held.Netmap.MaxAge).Format(time.RFC3339))
	}
	return ""
}

// refusedWhole names the first peer, or the netmap, that was refused as a
// whole; empty if there is none. A single prefix that is refused is this
// host's own choice and no fault: the netmap's view and the hub show it.
func refusedWhole(l []protocol.RefusedPart) string {
	for _, r := range l {
		switch {
		case r.Prefix != "":
		case r.Peer == 0:
			return "the netmap was refused: " + r.Reason
		default:
			return fmt.Sprintf("node %d was refused: %s", r.Peer, r.Reason)
		}
	}
	return ""
}

// save stores the held netmap.
func (a *Agent) save() error {
	a.mu.Lock()
	if a.held == nil {
		a.mu.Unlock()
		return nil
	}
	held := *a.held
	held.Clock = a.clock.State()
	a.mu.Unlock()
	err := a.cfg.Store.SaveNetmap(held)
	a.board.SetError(condState, err)
	if err == nil {
		a.mu.Lock()
		a.stored = held.Clock.Time
		a.mu.Unlock()
	}
	return err
}

// saveAgain stores what the disk would not take before, so that a disk with room again
// needs nobody's hand; it reports whether that is stored now.
func (a *Agent) saveAgain() bool {
	a.mu.Lock()
	pins, left, lost := a.pins, a.left, a.pinsLost != nil
	a.mu.Unlock()
	if left {
		return false
	}
	if pins != nil && !lost {
		if err := a.cfg.Store.SavePins(pins); err != nil {
			a.board.SetError(condState, err)
			return false
		}
	}
	return a.save() == nil
}

// confirm notes that a hub stands by the netmap now, if one does. The time, hub or
// no hub, goes to disk now and then, and at the end.
func (a *Agent) confirm(end bool) {
	connected := a.control.Connected()
	a.mu.Lock()
	if a.held == nil || a.left {
		a.mu.Unlock()
		return
	}
	if connected {
		a.held.Confirmed = a.wordLocked()
	}
	since := a.timeLocked().Sub(a.stored)
	a.mu.Unlock()
	if since > confirmEvery || end && since > 0 {
		if err := a.save(); err != nil {
			a.log.Error().Err(err).Msg("netmap was not stored")
		}
	}
}

// setRevoked withdraws all peers, across restarts too, until a hub welcomes
// this node again.
func (a *Agent) setRevoked(ctx context.Context) {
	a.mu.Lock()
	if a.held == nil || a.held.Revoked {
		a.mu.Unlock()
		return
	}
	held := *a.held
	held.Revoked = true
	a.held = &held
	a.mu.Unlock()
	a.log.Error().Msg("this node was revoked: no peer is reached any more; join again with a new token, or run 'causeway-agent leave'")
	if err := a.save(); err != nil {
		a.log.Error().Err(err).Msg("netmap was not stored")
	}
	a.reapply(ctx)
}

// elsewhere are those candidates that are another host's. A hub that names this host's own
// services has them asked no question.
func elsewhere(l []netip.AddrPort) []netip.AddrPort {
	return slices.DeleteFunc(slices.Clone(l), func(c netip.AddrPort) bool { return c.Addr().Unmap().IsLoopback() })
}
