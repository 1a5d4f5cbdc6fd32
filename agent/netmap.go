package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"causeway/agent/clock"
	"causeway/agent/health"
	"causeway/agent/identity"
	"causeway/agent/netmapcheck"
	"causeway/internal/shortage"
	"causeway/protocol"
)

const (
	// tick is how often age and what could not be applied are looked at unasked.
	tick = 10 * time.Second
	// firewallTick is how often the host's firewalls are tried unasked.
	firewallTick = 6 * time.Second
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
	if held != nil && held.Netmap.Self.Number != a.own.Now().Number {
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
	if a.own.Left() { // a hub list would bring the identity back
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
	if full.Self.Number != a.own.Now().Number {
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
		a.log.Warn().Uint32("peer", uint32(r.Peer)).Str("prefix", r.Prefix).Str("item", strings.TrimSpace(r.Kind+" "+r.Name)).Str("reason", r.Reason).Msg("refused a part of the netmap")
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
	id, held, left := a.own.Now(), a.hubs.Serial, a.own.Left()
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
	if err := a.own.Change(func(id *identity.Identity) { id.HubList = s }); err != nil {
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

// forwards reports whether there is something behind this host.
func (a *Agent) forwards() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.result.Local) > 0
}

// firewallAgain is how long after a trial that was blocked the next one begins.
const firewallAgain = 2 * time.Second

// askFirewall has the host's firewalls looked at soon; no apply waits for that.
func (a *Agent) askFirewall() {
	select {
	case a.firewallDue <- struct{}{}:
	default:
	}
}

// followFirewall looks at the host's firewalls whenever that is due.
func (a *Agent) followFirewall(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.firewallDue:
			a.lookAtFirewall(ctx, a.forwards())
		}
	}
}

// lookAtFirewall sets the condition. Packets that came through say more than rules that
// were read: these count where no packet could be tried.
func (a *Agent) lookAtFirewall(ctx context.Context, forwards bool) {
	if !forwards {
		a.board.Set(health.Firewall, "") // nothing of ours is forwarded
		return
	}
	t, err := a.host.Try(ctx, a.tunnel.Inject)
	if t.Blocked == "" {
		a.firewallShut = false
	}
	if err != nil {
		a.log.Debug().Err(err).Msg("no packet could be tried through the host's firewalls")
	}
	switch {
	case ctx.Err() != nil:
		return
	case t.Blocked != "":
		// Rules and routes may have changed amid the trial: what is blocked is so twice.
		if again := a.firewallShut; again || !a.board.OK(health.Firewall) {
			a.board.Set(health.Firewall, t.Blocked)
		} else {
			time.AfterFunc(firewallAgain, a.askFirewall)
		}
		a.firewallShut = true
		return
	case t.Whole:
		a.board.Set(health.Firewall, "")
		return
	}
	what, readErr := a.host.ForwardBlockedBy(ctx)
	switch {
	case ctx.Err() != nil:
	case readErr != nil:
		a.board.SetError(health.Firewall, readErr)
	case what != "":
		a.board.Set(health.Firewall, "forwarded traffic is dropped by "+what)
	case err != nil:
		a.board.SetNote(health.Firewall, "read, not tried: "+err.Error())
	default:
		a.board.Set(health.Firewall, "")
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
// whole; empty if there is none. A single prefix, or item, that is refused is this
// host's own choice and no fault: the netmap's view and the hub show it.
func refusedWhole(l []protocol.RefusedPart) string {
	for _, r := range l {
		switch {
		case r.Prefix != "", r.Kind != "":
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
	held.Netmap.Mark = a.markLocked()
	a.mu.Unlock()
	err := a.cfg.Store.SaveNetmap(held)
	a.board.SetError(health.State, err)
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
	pins, left, lost := a.pins, a.own.Left(), a.pinsLost != nil
	a.mu.Unlock()
	if left {
		return false
	}
	if pins != nil && !lost {
		if err := a.cfg.Store.SavePins(pins); err != nil {
			a.board.SetError(health.State, err)
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
	if a.held == nil || a.own.Left() {
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
