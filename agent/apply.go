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

	"causeway/agent/items"
	"causeway/agent/netmapcheck"
	"causeway/netns"
	"causeway/protocol"
	"causeway/tunnel"
)

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

// applying is one apply under way: what is to be, and what of it could not be.
type applying struct {
	ctx     context.Context
	in      netmapcheck.Input
	res     netmapcheck.Result
	last    netmapcheck.Result // of the apply before
	foreign []netns.Foreign
	blind   bool // the host's own routes are not known

	held, revoked, expired, pinsLost bool

	errs   []string // for the hub
	causes []string // why the routes' condition does not hold
	note   string   // of that condition
}

// fail tells the hub of an error, if it is one: the end of the agent is none.
func (x *applying) fail(err error) {
	if err != nil && x.ctx.Err() == nil {
		x.errs = append(x.errs, err.Error())
	}
}

// items are those of the netmap that is in force; of one that is not, none.
func (x *applying) items() []protocol.Item {
	if x.revoked || x.expired {
		return nil
	}
	return x.in.Netmap.Items
}

// cause is fail, and tells of it in the condition behind the words of what.
func (x *applying) cause(what string, err error) {
	x.fail(err)
	if err != nil {
		x.causes = append(x.causes, what+err.Error())
	}
}

// apply makes tunnel and host match what is held. It fails closed: peers that
// are revoked or too old are taken away, but their routes go on leading into
// the tunnel, where nobody takes the packets, and not to the host's default
// route. Called with applyMu.
func (a *Agent) apply(ctx context.Context) protocol.NetmapAck {
	a.learnGrant()
	x := a.decide(ctx)
	c := a.hostConfig(slices.Concat(x.in.Hubs.Overlay, x.res.Routes), x.res.Local, x.res.Peers)
	next, apart := a.close(&c, x)
	uses, err := a.host.Uses(ctx, c)
	if err != nil { // as it was
		x.fail(err)
		a.mu.Lock()
		uses = a.plan.Uses
		a.mu.Unlock()
	}
	c.Uses = uses
	plan, err := netns.NewPlan(c)
	if err != nil {
		// The host keeps what it has, and so nothing is reached that it has no plan for.
		x.cause("the host's network stays as it is, and nobody and nothing is reached that was not before: ", fmt.Errorf("plan it: %w", err))
		x.res.Peers, x.res.Routes, x.res.Local = known(x.res.Peers, x.last.Peers), both(x.res.Routes, x.last.Routes), both(x.res.Local, x.last.Local)
		a.mu.Lock()
		plan = a.plan
		a.mu.Unlock()
		a.setUp(x, nil)
	} else {
		x.fail(a.keepBook(next))
		a.setUp(x, &plan)
	}
	held, refused, errs := items.Apply(ctx, x.items())
	x.errs = append(x.errs, errs...)
	x.res.Refused = slices.Concat(x.res.Refused, refused)
	ack := protocol.NetmapAck{NetmapVersion: x.in.Netmap.NetmapVersion, Refused: x.res.Refused}
	if ctx.Err() != nil {
		ack.Errors = x.errs
		return ack
	}
	a.noteName()
	a.mu.Lock()
	a.result, a.plan, a.errs, a.expired, a.apart, a.items = x.res, plan, x.errs, x.expired, apart, held
	if !x.blind {
		a.own = netmapcheck.NewOwned(x.foreign, x.in.Kept, x.in.Ways)
	}
	a.mu.Unlock()
	a.setRoutes(strings.Join(x.causes, "; "), x.note)
	a.askFirewall()
	a.tellClosed()
	if err := a.keepPins(x); err != nil {
		x.fail(err)
		a.board.SetError(condState, err)
	}
	a.board.Set(condNetmap, a.netmapCause(x.held, x.revoked))
	ack.Errors = x.errs
	return ack
}

// decide is what shall be routed, and by which peers. Called with applyMu.
func (a *Agent) decide(ctx context.Context) *applying {
	foreign, foreignErr := a.host.ForeignRoutes(ctx, a.hostConfig(nil, nil, nil))
	x := &applying{ctx: ctx, foreign: foreign, blind: foreignErr != nil}
	set := a.live.Load()
	a.mu.Lock()
	x.in = netmapcheck.Input{Self: a.id.Number, SelfKeys: a.ownPublicLocked(), Hubs: a.hubs, Announced: set.routes, Granted: a.id.Granted,
		Accept: set.accept, Named: set.named, Foreign: foreign, Pins: a.pins, Gone: a.gone.nodes, Last: a.result.Peers, Features: set.features()}
	if a.held != nil {
		x.in.Netmap, x.held, x.revoked = a.held.Netmap, true, a.held.Revoked
	}
	x.expired, x.last, x.pinsLost = a.expiredLocked(), a.result, a.pinsLost != nil
	a.mu.Unlock()
	a.bound(ctx, &x.in)
	x.res = netmapcheck.Check(x.in)
	closed := x.revoked || x.expired || x.pinsLost || len(x.in.Netmap.Requires) > 0 && len(x.res.Peers) == 0
	if closed {
		x.in.Netmap.Requires = nil
		x.res.Routes = netmapcheck.Check(x.in).Routes
	}
	if x.blind {
		// Without knowing the host's own routes no new one is taken.
		x.cause("", foreignErr)
		x.res = x.last
	}
	if closed {
		x.res.Peers = nil
	}
	return x
}

// setUp has tunnel and host as was decided; without a plan the host stays as it is. Walls come
// before ways: peers are there while what nftables shall drop is known to be dropped. Without,
// routes go on leading into the tunnel, where nobody takes the packets. Called with applyMu.
func (a *Agent) setUp(x *applying, plan *netns.Plan) {
	a.tunnel.SetLocal(netns.OwnDestinations(a.id.Overlay, x.res.Local))
	x.cause("", a.reach(x.res.Peers))
	if plan != nil {
		walled := a.walled
		err := a.host.Apply(x.ctx, *plan)
		a.walled = !errors.Is(err, netns.ErrNoWalls) && (walled || x.ctx.Err() == nil)
		a.repairs.noteMended(a.host.PutRight())
		if a.walled != walled {
			x.cause("", a.reach(x.res.Peers))
		}
		var harm, harmless netns.Failures
		if errors.As(err, &harm) {
			harm, harmless = harm.Harm()
			for _, text := range harm.Texts() {
				x.cause("set up the host's network: ", errors.New(text))
			}
		} else {
			x.cause("set up the host's network: ", err)
		}
		x.note = harmless.Error()
	}
}

// reach gives the tunnel these peers, or none while the walls do not stand, or are taken down again
// and again. Called with applyMu.
func (a *Agent) reach(l []protocol.Peer) error {
	if !a.walled || a.fought {
		l = nil
	}
	if err := a.tunnel.SetPeers(nodePeers(l)); err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	return nil
}

// known are the peers of l that were there before, by no more than they had then.
func known(l, before []protocol.Peer) (out []protocol.Peer) {
	had := make(map[protocol.NodeNumber]protocol.Peer, len(before))
	for _, p := range before {
		had[p.Number()] = p
	}
	for _, p := range l {
		if b, ok := had[p.Number()]; ok {
			p.Overlay, p.Routes, p.Sources = both(p.Overlay, b.Overlay), both(p.Routes, b.Routes), both(p.Sources, b.Sources)
			out = append(out, p)
		}
	}
	return out
}

// both is what of a is in b too.
func both[T comparable](a, b []T) []T {
	return slices.DeleteFunc(slices.Clone(a), func(x T) bool { return !slices.Contains(b, x) })
}

// keepPins keeps what was learned of peers' keys.
func (a *Agent) keepPins(x *applying) error {
	if x.pinsLost || x.res.Pins == nil {
		return nil
	}
	a.mu.Lock()
	changed := !maps.Equal(a.pins, x.res.Pins)
	a.pins = x.res.Pins
	a.mu.Unlock()
	if !changed {
		return nil
	}
	return a.cfg.Store.SavePins(x.res.Pins)
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
		out = append(out, tunnel.NodePeer{Number: p.Number(), Name: p.Name, Key: p.Statement.WireGuardKey,
			AllowedIPs: p.Prefixes(), Sources: p.Sources, Candidates: elsewhere(p.Candidates), Direct: p.Direct})
	}
	return out
}

// elsewhere are those candidates that are another host's. A hub that names this host's own
// services has them asked no question.
func elsewhere(l []netip.AddrPort) []netip.AddrPort {
	return slices.DeleteFunc(slices.Clone(l), func(c netip.AddrPort) bool { return c.Addr().Unmap().IsLoopback() })
}
