package onhost

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"causeway/agent/desired"
	"causeway/agent/health"
	"causeway/agent/items"
	"causeway/agent/netmapcheck"
	"causeway/netns"
	"causeway/netns/door"
	svc "causeway/netns/service"
	"causeway/protocol"
	"causeway/tunnel"
)

// hubWall keeps everybody but this process' user from what hubs and agents have inside the
// overlay.
func (k *Keeper) hubWall() netns.Wall {
	list := k.want.Now().Hubs
	w := netns.Wall{UID: uint32(os.Geteuid()), Overlay: list.Overlay}
	for _, h := range list.Hubs {
		w.Hubs = append(w.Hubs, list.Addrs(h.Number)...)
	}
	return w
}

// hostConfig is the plan's input for these routes and the peers behind them.
func (k *Keeper) hostConfig(routes, local []netip.Prefix, peers []protocol.Peer) netns.Config {
	c := netns.Config{MTU: k.defaultMTU(), Mark: netns.DefaultMark, Table: netns.DefaultTable,
		Overlay: slices.Clone(k.own.Now().Overlay), Routes: routes, Local: local, Shields: k.Shields(), Wall: k.hubWall()}
	k.setDevice(&c)
	k.setMTUs(&c, peers)
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
	wish    desired.Wish
	in      netmapcheck.Input
	res     netmapcheck.Result
	last    netmapcheck.Result // of the apply before
	foreign []netns.Foreign
	blind   bool // the host's own routes are not known

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
	if x.wish.Revoked() || x.wish.Expired {
		return nil
	}
	return x.in.Netmap.Items
}

// services are those of the netmap that this node takes. Of a netmap that is too old they stay: a name leads to an address that is
// closed then, as a route does.
func (x *applying) services(v items.View) []items.Service {
	if x.wish.Revoked() {
		return nil
	}
	return items.TakeServices(v, x.in.Netmap.Items)
}

// withInside are parts of which services' knows the interfaces that lead to this host's containers alone, where any is exposed.
func (x *applying) withInside(parts []netns.Part, services []items.Service, inside []string) []netns.Part {
	if !slices.ContainsFunc(services, func(s items.Service) bool { return len(s.Expose) > 0 }) {
		return parts
	}
	parts = slices.Clone(parts)
	for i, p := range parts {
		old, is := p.(*svc.Part)
		if !is {
			continue
		}
		c := old.Config()
		c.Inside = inside
		next, err := svc.NewPart(c, old.Live())
		if err != nil {
			x.fail(err)
			continue
		}
		parts[i] = next
	}
	return parts
}

// withDoor are parts with the door to the address of names, where there is one.
func (x *applying) withDoor(parts []netns.Part, at netip.Addr, inside []string) []netns.Part {
	if !at.IsValid() {
		return parts
	}
	p, err := door.NewPart(door.Config{Address: at, UID: uint32(os.Geteuid()), Inside: inside})
	if err != nil {
		x.fail(err)
		return parts
	}
	return append(slices.Clone(parts), p)
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
// route. k.mu is held.
func (k *Keeper) apply(ctx context.Context) protocol.NetmapAck {
	x := k.decide(ctx)
	c := k.hostConfig(slices.Concat(x.in.Hubs.Overlay, x.res.Routes), x.res.Local, x.res.Peers)
	next, apart := k.close(&c, x)
	view := items.View{Items: x.items(), Classes: x.in.Netmap.Self.Classes, Own: c.Overlay, Peers: x.res.Peers, Interface: c.Interface, Overlay: c.Wall.Overlay, Hubs: c.Wall.Hubs, Local: x.res.Local, Services: k.services}
	taken, services := items.Take(view, k.Facts().Plan.Parts), x.services(view)
	if d := k.live.Now().DNS; !d.Off && len(services) > 0 {
		c.Names = d.Address
	}
	if taken.Refuses() {
		c.Refused = refused(next)
	}
	c.Parts = taken.Parts
	uses, err := k.host.Uses(ctx, c)
	if err != nil { // as it was
		x.fail(err)
		uses = k.Facts().Plan.Uses
	}
	c.Uses, c.Parts = uses, x.withDoor(x.withInside(taken.Parts, services, uses.Inside), c.Names, uses.Inside)
	plan, err := netns.NewPlan(c)
	if err != nil {
		// The host keeps what it has, and so nothing is reached that it has no plan for.
		x.cause("the host's network stays as it is, and nobody and nothing is reached that was not before: ", fmt.Errorf("plan it: %w", err))
		x.res.Peers, x.res.Routes, x.res.Local = known(x.res.Peers, x.last.Peers), both(x.res.Routes, x.last.Routes), both(x.res.Local, x.last.Local)
		plan = k.Facts().Plan
		k.setUp(x, nil)
	} else {
		x.fail(k.keepBook(next))
		k.setUp(x, &plan)
	}
	held, errs := taken.Apply(ctx)
	x.errs = append(x.errs, errs...)
	x.res.Refused = slices.Concat(x.res.Refused, taken.Refused)
	ack := protocol.NetmapAck{NetmapVersion: x.in.Netmap.NetmapVersion, Refused: x.res.Refused}
	if ctx.Err() != nil {
		ack.Errors = x.errs
		return ack
	}
	k.noteName()
	k.learn(func(f *Facts) {
		f.Result, f.Plan, f.Ranges, f.Errors, f.Expired, f.Apart, f.Items = x.res, plan, rangesOf(plan), x.errs, x.wish.Expired, apart, held
		f.Services, f.Site, f.Serial = services, x.in.Netmap.Self.Site, f.Serial+1
		if !x.blind {
			f.Owned = netmapcheck.NewOwned(x.foreign, x.in.Kept, x.in.Ways)
		}
	})
	k.setRoutes(strings.Join(x.causes, "; "), x.note)
	k.askFirewall()
	k.tellClosed()
	x.fail(k.want.Learn(x.res.Pins))
	k.board.Set(health.Netmap, k.want.Cause(x.wish.Expired, x.res.Refused))
	ack.Errors = x.errs
	return ack
}

// decide is what shall be routed, and by which peers. k.mu is held.
func (k *Keeper) decide(ctx context.Context) *applying {
	foreign, foreignErr := k.host.ForeignRoutes(ctx, k.hostConfig(nil, nil, nil))
	x := &applying{ctx: ctx, wish: k.want.Wish(), foreign: foreign, blind: foreignErr != nil}
	set := k.live.Now()
	id := k.own.Now()
	x.last = k.Facts().Result
	x.in = netmapcheck.Input{Self: id.Number, SelfKeys: id.PublicKeys(), Hubs: x.wish.Hubs, Netmap: x.wish.Netmap(), Announced: set.Routes, Granted: id.Granted,
		Accept: set.Accept, Named: set.Named, Foreign: foreign, Pins: x.wish.Pins, Gone: x.wish.Gone, Last: x.last.Peers, Features: desired.Features(set)}
	k.bound(ctx, &x.in)
	x.res = netmapcheck.Check(x.in)
	closed := x.wish.Revoked() || x.wish.Expired || x.wish.PinsLost != nil || len(x.in.Netmap.Requires) > 0 && len(x.res.Peers) == 0
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
// routes go on leading into the tunnel, where nobody takes the packets. k.mu is held.
func (k *Keeper) setUp(x *applying, plan *netns.Plan) {
	k.tunnel.SetLocal(netns.OwnDestinations(k.own.Now().Overlay, x.res.Local))
	x.cause("", k.reach(x.res.Peers))
	if plan != nil {
		walled := k.walled
		err := k.host.Apply(x.ctx, *plan)
		k.walled = !errors.Is(err, netns.ErrNoWalls) && (walled || x.ctx.Err() == nil)
		k.repairs.noteMended(k.host.PutRight())
		if k.walled != walled {
			x.cause("", k.reach(x.res.Peers))
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
// and again. k.mu is held.
func (k *Keeper) reach(l []protocol.Peer) error {
	if !k.walled || k.fought {
		l = nil
	}
	if err := k.tunnel.SetPeers(nodePeers(l)); err != nil {
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

// Shields are those of the configuration, or what the identity says where that is silent. The
// port of /metrics is open where the configuration has it at an overlay address.
func (k *Keeper) Shields() netns.Shields {
	s := k.live.Now().Shields.On(k.own.Now().Shields)
	if m, err := netip.ParseAddrPort(k.live.Now().Debug.Metrics); err == nil && slices.Contains(k.own.Now().Overlay, m.Addr()) {
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
