package admin

import (
	"context"
	"net/netip"
	"slices"

	"go4.org/netipx"

	"causeway/hub/api"
	"causeway/hub/fleet"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/protocol"
)

// Bounds of a trial.
const (
	mostSpots    = 16 // of a class, in each family
	spotsOfNode  = 2  // of these, at one node
	mostControls = 500
	proveTries   = 3 // of a pair, where the first shows nothing
)

// prover tries what policies close with packets.
type prover struct {
	s  *Server
	in api.ProveRequest
	st *state.State
	c  *policy.Compiled

	snap  fleet.Snapshot
	spots map[policy.ClassID]*[2][]spot // of IPv4 and IPv6
	fails map[protocol.NodeNumber]int
	bad   map[protocol.NodeNumber]string // that failed too often, and why
	tasks []*task
	proof protocol.PolicyProof
}

// spot is where addresses of a class are met.
type spot struct {
	node  state.Node
	own   bool         // an address of the node itself
	addrs []netip.Addr // that a packet may be from or to
}

// task is one probe, and the pair that it becomes.
type task struct {
	policy.Try
	pair     protocol.ProofPair
	from, to spot
	toNode   protocol.NodeNumber // 0: any
	shift    int
	tries    int
	settled  bool

	packet protocol.ProvePacket // of a round
}

// plan chooses what to try.
func (p *prover) plan() {
	p.snap, p.fails, p.bad = p.s.cfg.Fleet.Snapshot(), map[protocol.NodeNumber]int{}, map[protocol.NodeNumber]string{}
	p.findSpots()
	closed, open, left := p.c.Tries(p.in.Pairs)
	p.proof.Left = left
	for i, x := range closed {
		p.add(&task{Try: x, shift: i + i/6})
	}
	if p.in.Open {
		for i, x := range open[:min(len(open), p.in.Pairs)] {
			p.add(&task{Try: x, shift: i})
		}
	}
	p.controls(open)
}

// controls adds for each node that shall receive something closed a probe to it that is open, if there is one: what
// arrives nowhere shows nothing.
func (p *prover) controls(open []policy.Try) {
	want, n := map[protocol.NodeNumber]bool{}, 0
	for _, t := range p.tasks {
		if !t.settled && !t.Open {
			want[t.to.node.Number] = true
		}
	}
	for _, t := range p.tasks {
		if !t.settled && t.Open {
			delete(want, t.to.node.Number)
		}
	}
	for _, x := range open {
		for _, sp := range p.of(x.To, x.V6) {
			if t := (&task{Try: x, toNode: sp.node.Number}); want[sp.node.Number] && n < mostControls && p.pick(t) == "" {
				delete(want, sp.node.Number)
				p.add(t)
				n++
			}
		}
	}
}

// add takes a task on, or says why it is none.
func (p *prover) add(t *task) {
	t.pair = protocol.ProofPair{From: uint32(t.From), To: uint32(t.To), Probe: t.Port.String(), Rule: t.Rule, Want: protocol.ProofClosed}
	if t.Open {
		t.pair.Want = protocol.ProofOpen
	}
	p.tasks = append(p.tasks, t)
	if why := p.pick(t); why != "" {
		p.unable(t, why)
	}
}

// unable settles a task that cannot be tried.
func (p *prover) unable(t *task, why string) {
	t.settled, t.pair.Result, t.pair.Why = true, protocol.ProofNotTried, why
	if why == onlyAtOne || why == noSubject || why == twice {
		t.pair.Result = protocol.ProofOutside
	}
}

// Why a pair is outside of what policies are about.
const (
	onlyAtOne = "both are at one node alone, and no tunnel is between them"
	twice     = "both segments have these addresses, and a packet to them stays in its own"
	noSubject = "echo between nodes' own addresses is no subject of rules"
)

func (p *prover) of(k policy.ClassID, v6 bool) []spot {
	x := p.spots[k]
	switch {
	case x == nil:
		return nil
	case v6:
		return x[1]
	}
	return x[0]
}

// pick chooses between whom a task is tried, another pair for each shift; or says why there is none.
func (p *prover) pick(t *task) (why string) {
	a, b := p.of(t.From, t.V6), p.of(t.To, t.V6)
	why = onlyAtOne
	for k := range len(a) * len(b) {
		from, to := a[(t.shift+k)%len(a)], b[((t.shift+k)/len(a))%len(b)]
		switch {
		case from.node.Number == to.node.Number || t.toNode != 0 && t.toNode != to.node.Number:
			continue
		case from.own && to.own && t.Port.Proto == protocol.ProtoICMP:
			if why == onlyAtOne {
				why = noSubject
			}
			continue
		}
		if p.elsewhere(from, to) {
			if why == onlyAtOne {
				why = twice
			}
			continue
		}
		if off := p.off(from, to); off != "" {
			why = off
			continue
		}
		t.from, t.to = from, to
		t.pair.Tried = protocol.ProofEnds{FromNode: from.node.Name, ToNode: to.node.Name, From: from.addrs[0], To: to.addrs[0]}
		return ""
	}
	return why
}

// elsewhere reports whether packets between two spots are for others: those that have the addresses in the other's segment.
func (p *prover) elsewhere(from, to spot) bool {
	a, b := from.node.Number, to.node.Number
	if p.c.RealmOf(a) == p.c.RealmOf(b) {
		return false
	}
	_, there := p.c.UnitAt(a, to.addrs[0])
	_, here := p.c.UnitAt(b, from.addrs[0])
	return there || here
}

// off says which of two nodes cannot take part.
func (p *prover) off(l ...spot) string {
	for _, x := range l {
		if why := p.bad[x.node.Number]; why != "" {
			return why
		}
		if p.snap.Node(x.node.Number).Session == nil {
			return "node " + x.node.Name + " is not connected"
		}
	}
	return ""
}

// findSpots finds where addresses of each class are met.
func (p *prover) findSpots() {
	p.spots = map[policy.ClassID]*[2][]spot{}
	sites := map[policy.ClassID]map[string]bool{}
	at := map[policy.ClassID]map[protocol.NodeNumber]int{}
	for _, u := range p.c.Units {
		n := p.carrier(u)
		node, ok := p.st.Nodes.Find(n)
		if !ok {
			continue
		}
		if p.spots[u.Class] == nil {
			p.spots[u.Class], sites[u.Class], at[u.Class] = &[2][]spot{}, map[string]bool{}, map[protocol.NodeNumber]int{}
		}
		sites[u.Class][node.Site] = true
		l := &p.spots[u.Class][0]
		if u.Prefix.Addr().Is6() {
			l = &p.spots[u.Class][1]
		}
		addrs := p.inside(u, n)
		if len(addrs) == 0 || len(*l) >= mostSpots || at[u.Class][n] >= 2*spotsOfNode {
			continue
		}
		at[u.Class][n]++
		overlay, _ := p.st.OverlayOf(n)
		*l = append(*l, spot{node, slices.Contains(overlay, u.Prefix.Addr()), addrs})
	}
	for _, k := range p.c.Classes {
		x := protocol.ProofClass{Class: uint32(k.ID), Segment: k.Segment, Sides: k.Sides}
		for site := range sites[k.ID] {
			x.Sites = append(x.Sites, site)
		}
		slices.Sort(x.Sites)
		p.proof.Classes = append(p.proof.Classes, x)
	}
}

// carrier is the node to which packets for a unit go.
func (p *prover) carrier(u policy.Unit) protocol.NodeNumber {
	if len(u.At) > 1 {
		for bits := u.Prefix.Bits(); bits > 0; bits-- {
			around := netip.PrefixFrom(u.Prefix.Addr(), bits).Masked()
			if n := p.s.cfg.Fleet.Owner(u.At[0], around); n != 0 && slices.Contains(u.At, n) {
				return n
			}
		}
	}
	return u.At[0]
}

// inside are addresses of a unit that a packet may be from or to: pods that the node tells of, and some others.
func (p *prover) inside(u policy.Unit, n protocol.NodeNumber) (out []netip.Addr) {
	add := func(a netip.Addr) {
		if x, ok := p.c.UnitAt(n, a); ok && x.Prefix == u.Prefix && len(out) < protocol.MaxProveFrom && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	first, last := u.Prefix.Addr(), netipx.PrefixLastIP(u.Prefix)
	if first == last {
		add(first)
		return out
	}
	facts, _ := p.s.cfg.Inventory.Get(n)
	for _, c := range facts.Containers {
		for _, a := range c.Addresses {
			if c.State == protocol.ContainerRunning && len(out) < protocol.MaxProveFrom/2 {
				add(a)
			}
		}
	}
	a := first.Next().Next() // the first is often the host's own
	for range 16 {
		if a.IsValid() && a.Less(last) {
			add(a)
			a = a.Next()
		}
	}
	add(last.Prev())
	add(first.Next())
	return out
}

// run tries all, a round after the other.
func (p *prover) run(ctx context.Context, told func(done, of int)) {
	for ctx.Err() == nil {
		round := p.next()
		if len(round) == 0 {
			break
		}
		p.round(ctx, round)
		done := 0
		for _, t := range p.tasks {
			if t.settled {
				done++
			}
		}
		told(done, len(p.tasks))
	}
	for _, t := range p.tasks {
		if !t.settled {
			p.proof.Broken = "the time was over"
			if t.pair.Result == "" {
				p.unable(t, p.proof.Broken)
			}
		}
		p.proof.Pairs = append(p.proof.Pairs, t.pair)
	}
}

// mostPairs bounds the packets of a round.
const mostPairs = 256

// next are the tasks of a round: as many as fit.
func (p *prover) next() (out []*task) {
	sends, receives := map[protocol.NodeNumber]int{}, map[protocol.NodeNumber]int{}
	for _, t := range p.tasks {
		if t.settled || len(out) == mostPairs {
			continue
		}
		if why := p.off(t.from, t.to); why != "" {
			if why = p.pick(t); why != "" {
				p.unable(t, why)
				continue
			}
		}
		a, b := t.from.node.Number, t.to.node.Number
		if sends[a] == protocol.MaxProvePackets || receives[b] == protocol.MaxProvePackets {
			continue
		}
		sends[a]++
		receives[b]++
		out = append(out, t)
	}
	return out
}
