package admin

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/protocol"
)

// Limits of asking what a change would cut.
const (
	cutsTimeout  = 2 * time.Second
	mostAsked    = 256 // nodes
	askedAtOnce  = 32
	cutsListed   = 200
	silentListed = 50
	sidesListed  = 20
)

// policyChange says what differs from what is in force where a draft of a state is taken. With ask the agents of nodes
// of which something closes are asked what would be cut.
func (s *Server) policyChange(ctx context.Context, base, draft *state.State, ask bool) (*api.PolicyChange, error) {
	p, err := s.cfg.Fleet.PolicyAt(ctx, base.Seq)
	if err != nil {
		return nil, huma.Error503ServiceUnavailable(err.Error())
	}
	after, err := policy.Compile(s.policyInput(draft), p.Compiled)
	if err != nil {
		return nil, huma.Error422UnprocessableEntity(err.Error())
	}
	c := policy.NewChange(p.Compiled.All(), after)
	d := c.Differences(api.MaxDifferences)
	out := &api.PolicyChange{Tag: policyDigest(base), Opens: d.Opens, Closes: d.Closes, Differences: []api.PolicyDifference{}, LeftOut: d.Pairs - len(d.List)}
	for _, x := range d.List {
		out.Differences = append(out.Differences, api.PolicyDifference{From: kindOf(c.Kinds[x.From]), To: kindOf(c.Kinds[x.To]),
			Opens: openings(x.Opens), Closes: openings(x.Closes), Stays: openings(x.Stays)})
	}
	if ask {
		out.Cuts = s.cuts(ctx, base, c, d)
	}
	return out, nil
}

func kindOf(k policy.Kind) api.PolicyKind {
	return api.PolicyKind{Text: k.String(), Segment: k.Segment, Sites: orEmpty(k.Sites), Nodes: len(k.At), Node: k.Node, Prefix: k.First, Prefixes: k.Prefixes,
		Sides: orEmpty(k.Sides[:min(len(k.Sides), sidesListed)])}
}

func orEmpty(l []string) []string { return append([]string{}, l...) }

func openings(l []policy.Allow) (out []api.PolicyOpening) {
	for _, a := range l {
		if x := (api.PolicyOpening{Ports: a.Ports.String(), Rule: a.Rule}); !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}

// told is what one agent told of the connections at its node.
type told struct {
	node state.Node
	protocol.Connections
	err string
}

// cuts asks the agents of the nodes of which something closes what crosses the tunnel there, and judges it by before and
// after. Both ends of a connection are asked, as one of them may be silent.
func (s *Server) cuts(ctx context.Context, st *state.State, c *policy.Change, d policy.Differences) *api.PolicyCuts {
	concerned := map[protocol.NodeNumber]bool{}
	for i, closing := range d.Closing {
		if closing {
			for _, n := range c.Kinds[i].At {
				concerned[n] = true
			}
		}
	}
	var answers []told
	for _, n := range st.LiveNodes() {
		if concerned[n.Number] {
			answers = append(answers, told{node: n})
		}
	}
	s.askConnections(ctx, answers)
	out := &api.PolicyCuts{List: []api.PolicyConnection{}}
	found := map[api.PolicyConnection]*api.PolicyConnection{}
	for _, t := range answers {
		if t.err != "" {
			if len(out.Silent) < silentListed {
				out.Silent = append(out.Silent, api.PolicySilent{Node: t.node.Name, Why: t.err})
			} else {
				out.MoreSilent++
			}
			continue
		}
		out.Asked++
		out.More += t.More
		for _, f := range t.Flows {
			rule, cut := cutBy(st, c, t.node.Number, f)
			if !cut {
				continue
			}
			ports := protocol.Ports{Proto: f.Proto, First: f.To.Port(), Last: f.To.Port()}
			x := api.PolicyConnection{From: f.From.Addr(), To: f.To.Addr(), Ports: ports.String(), Rule: rule}
			if had := found[x]; had == nil || had.Count < f.Count { // the other end may know some that this one does not
				y := x
				y.Count, y.Node = f.Count, t.node.Name
				found[x] = &y
			}
		}
	}
	pairs := map[[2]netip.Addr]bool{}
	for _, x := range found {
		out.Connections += x.Count
		pairs[[2]netip.Addr{x.From, x.To}] = true
		out.List = append(out.List, *x)
	}
	out.Pairs = len(pairs)
	slices.SortFunc(out.List, func(a, b api.PolicyConnection) int {
		return cmp.Or(b.Count-a.Count, a.From.Compare(b.From), a.To.Compare(b.To), strings.Compare(a.Ports, b.Ports))
	})
	out.List = out.List[:min(len(out.List), cutsListed)]
	return out
}

// askConnections asks agents, all within cutsTimeout.
func (s *Server) askConnections(ctx context.Context, of []told) {
	ctx, cancel := context.WithTimeout(ctx, cutsTimeout)
	defer cancel()
	slots := make(chan struct{}, askedAtOnce)
	var wg sync.WaitGroup
	for i := range of {
		t := &of[i]
		if i >= mostAsked {
			t.err = "there are too many nodes to ask all"
			continue
		}
		if s.cfg.Fleet.Info(t.node).Connected.IsZero() {
			t.err = "it is not connected"
			continue
		}
		wg.Go(func() {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			case <-ctx.Done():
				t.err = "it was not asked in time"
				return
			}
			err := s.ask(ctx, t.node, protocol.DebugConnections, protocol.ConnectionsQuestion{Most: protocol.MaxConnections}, &t.Connections, cutsTimeout)
			if err == nil {
				err = t.Check()
			}
			if err != nil {
				t.err = protocol.OneLine(err.Error(), 200)
			}
		})
	}
	wg.Wait()
}

// cutBy reports whether a connection that is open by a rule would be closed. What is at neither end at the node that
// told of it counts for nothing, what is no subject of policies neither, and no echo: a ping is nothing that is cut.
func cutBy(st *state.State, c *policy.Change, at protocol.NodeNumber, f protocol.Connection) (rule string, cut bool) {
	from, to := f.From.Addr(), f.To.Addr()
	if f.Proto == protocol.ProtoICMP || !c.Known(at, from) && !c.Known(at, to) || exempt(st, f) {
		return "", false
	}
	port := protocol.Ports{Proto: f.Proto, First: f.To.Port(), Last: f.To.Port()}
	ends := [2]policy.Met{{Addr: from, Node: at}, {Addr: to, Node: at}} // as they are met there
	was, err := c.Before.DecideAt(ends[0], ends[1], port)
	if err != nil || !was.Open {
		return "", false
	}
	if is, err := c.After.DecideAt(ends[0], ends[1], port); err == nil && is.Open {
		return "", false
	}
	// A host takes a connection up by its other end, too.
	back := protocol.Ports{Proto: f.Proto, First: f.From.Port(), Last: f.From.Port()}
	if is, err := c.After.DecideAt(ends[1], ends[0], back); f.Proto == protocol.ProtoTCP && err == nil && is.Open {
		return "", false
	}
	return was.Rule, true
}

// exempt reports whether a connection is one of those between nodes' own addresses that no policy judges.
func exempt(st *state.State, f protocol.Connection) bool {
	for _, a := range []netip.Addr{f.From.Addr(), f.To.Addr()} {
		if _, own := st.NodeByOverlay(a); !own {
			return false
		}
	}
	return f.To.Port() >= protocol.OverlayPortFirst && f.To.Port() <= protocol.OverlayPortLast
}
