package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"causeway/agent/identity"
	"causeway/agent/netmapcheck"
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

// load reads the last netmap and the pins. A netmap that does not read is
// none; pins that do not read are an error, for without them any key would do.
func (a *Agent) load() error {
	pins, err := a.cfg.Store.Pins()
	if err != nil {
		return fmt.Errorf("pinned keys of peers: %w; if the file is lost, remove it, and the next keys seen are pinned", err)
	}
	a.pins = pins
	held, err := a.cfg.Store.Netmap()
	if err != nil {
		a.log.Error().Err(err).Msg("the stored netmap does not read, waiting for a hub's")
		return nil
	}
	if held != nil && held.Netmap.Self.Number != a.id.Number {
		a.log.Warn().Msg("the stored netmap is another node's, waiting for a hub's")
		return nil
	}
	if held != nil {
		a.held, a.stored = held, held.Confirmed
		for _, l := range held.Gone {
			if why := a.takeGone(l); why != "" {
				a.log.Warn().Str("err", why).Msg("a stored list of gone nodes is not used")
			}
		}
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
	a.held = &identity.StoredNetmap{Netmap: full, Confirmed: a.now().UTC(), Gone: a.gone.lists}
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
	l, err := s.Open(a.id.Pin)
	if err != nil {
		return err.Error()
	}
	a.mu.Lock()
	old, left := a.hubs, a.left
	a.mu.Unlock()
	if left {
		return "this node has left"
	}
	if l.Serial < old.Serial {
		return fmt.Sprintf("serial %d is lower than %d, which this agent holds", l.Serial, old.Serial)
	}
	if l.Serial == old.Serial {
		return "" // the one we hold
	}
	if err := l.ValidAt(a.now()); err != nil {
		return err.Error()
	}
	if why := netmapcheck.Overlay(l.Overlay, a.id.Number, a.id.Overlay); why != "" {
		return why
	}
	if err := a.changeIdentity(func(id *identity.Identity) { id.HubList = s }); err != nil {
		return err.Error()
	}
	a.mu.Lock()
	a.hubs, a.signed = l, s
	a.mu.Unlock()
	select {
	case a.listChanged <- struct{}{}:
	default:
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

// hostConfig is the plan's input for these routes and the peers behind them.
func (a *Agent) hostConfig(routes, local []netip.Prefix, peers []protocol.Peer) netns.Config {
	c := netns.Config{Interface: a.cfg.Settings.Tunnel.Interface, MTU: a.defaultMTU(), Mark: netns.DefaultMark, Table: netns.DefaultTable,
		Overlay: slices.Clone(a.id.Overlay), Routes: routes, Local: local}
	a.setMTUs(&c, peers)
	if !netns.HasIPv6() {
		v6 := func(p netip.Prefix) bool { return p.Addr().Is6() }
		c.Overlay = slices.DeleteFunc(c.Overlay, netip.Addr.Is6)
		c.Routes, c.Local = slices.DeleteFunc(slices.Clone(c.Routes), v6), slices.DeleteFunc(slices.Clone(local), v6)
	}
	return c
}

// apply makes tunnel and host match what is held. It fails closed: peers that
// are revoked or too old are taken away, but their routes go on leading into
// the tunnel, where nobody takes the packets, and not to the host's default
// route. Called with applyMu.
func (a *Agent) apply(ctx context.Context) protocol.NetmapAck {
	foreign, foreignErr := a.host.ForeignRoutes(ctx, a.hostConfig(nil, nil, nil))
	set := a.live.Load()
	a.mu.Lock()
	in := netmapcheck.Input{Self: a.id.Number, SelfKeys: a.ownPublicLocked(), Hubs: a.hubs,
		Accept: set.accept, Named: set.named, Foreign: foreign, Pins: a.pins, Gone: a.gone.nodes, Last: a.result.Peers}
	revoked := false
	if a.held != nil {
		in.Netmap, revoked = a.held.Netmap, a.held.Revoked
	}
	held, expired := a.held != nil, a.expiredLocked()
	last := a.result
	a.mu.Unlock()

	ack := protocol.NetmapAck{NetmapVersion: in.Netmap.NetmapVersion}
	fail := func(err error) {
		if ctx.Err() == nil {
			ack.Errors = append(ack.Errors, err.Error())
		}
	}
	res := netmapcheck.Check(in)
	closed := revoked || expired || len(in.Netmap.Requires) > 0 && len(res.Peers) == 0
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

	var routesErr error
	if err := a.tunnel.SetPeers(nodePeers(res.Peers)); err != nil {
		routesErr = fmt.Errorf("set peers: %w", err)
		fail(routesErr)
	}
	plan, err := netns.NewPlan(a.hostConfig(slices.Concat(in.Hubs.Overlay, res.Routes), res.Local, res.Peers))
	if err == nil {
		err = a.host.Apply(ctx, plan)
		a.repairs.noteMended(a.host.PutRight())
	}
	if err != nil {
		routesErr = errors.Join(routesErr, fmt.Errorf("set up the host's network: %w", err))
		fail(err)
	}
	if ctx.Err() != nil {
		return ack
	}
	a.board.SetError(condRoutes, errors.Join(routesErr, foreignErr))
	a.lookAtFirewall(ctx, len(res.Local) > 0)

	a.mu.Lock()
	pinsChanged := res.Pins != nil && !maps.Equal(a.pins, res.Pins)
	if res.Pins != nil {
		a.pins = res.Pins
	}
	a.result, a.plan, a.errs, a.expired = res, plan, ack.Errors, expired
	pins := a.pins
	a.mu.Unlock()
	if pinsChanged {
		if err := a.cfg.Store.SavePins(pins); err != nil {
			fail(err)
			a.board.SetError(condState, err)
		}
	}
	a.board.Set(condNetmap, a.netmapCause(held, revoked))
	return ack
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
// hub. A clock that was set back makes it younger, never a panic.
func (a *Agent) expiredLocked() bool {
	return a.held != nil && a.held.Netmap.MaxAge > 0 && a.now().Sub(a.held.Confirmed) > a.held.Netmap.MaxAge
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
	case a.expired:
		return fmt.Sprintf("no hub since %s, which is longer than the netmap's max_age of %s: no peer is reached", a.held.Confirmed.Format(time.RFC3339), a.held.Netmap.MaxAge)
	case refusedWhole(a.result.Refused) != "":
		return refusedWhole(a.result.Refused)
	case a.held.Netmap.MaxAge > 0 && a.now().Sub(a.held.Confirmed) > a.held.Netmap.MaxAge/2:
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
	a.mu.Unlock()
	err := a.cfg.Store.SaveNetmap(held)
	a.board.SetError(condState, err)
	if err == nil {
		a.mu.Lock()
		a.stored = held.Confirmed
		a.mu.Unlock()
	}
	return err
}

// saveAgain stores what the disk would not take before, so that a disk with room again
// needs nobody's hand; it reports whether that is stored now.
func (a *Agent) saveAgain() bool {
	a.mu.Lock()
	pins, left := a.pins, a.left
	a.mu.Unlock()
	if left {
		return false
	}
	if pins != nil {
		if err := a.cfg.Store.SavePins(pins); err != nil {
			a.board.SetError(condState, err)
			return false
		}
	}
	return a.save() == nil
}

// confirm notes that a hub stands by the netmap now, if one does. The time
// goes to disk now and then, and at the end.
func (a *Agent) confirm(end bool) {
	connected := a.control.Connected()
	a.mu.Lock()
	if a.held == nil || a.left {
		a.mu.Unlock()
		return
	}
	if connected {
		a.held.Confirmed = a.now().UTC()
	}
	since := a.held.Confirmed.Sub(a.stored).Abs()
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
