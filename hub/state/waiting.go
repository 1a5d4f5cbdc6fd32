package state

import (
	"net/netip"
	"slices"

	"causeway/protocol"
)

// What a node announces and nobody decided on is no state, or a node could fill the log: the hub knows
// it while it knows the node, and shows it as if it were. It becomes state when a range or an
// admin approves it, or an admin rejects it.

// Waiting lists what is not state of what node n announces, by prefix.
func (s *State) Waiting(n protocol.NodeNumber, announced []netip.Prefix) []Route {
	if node, ok := s.Nodes.Find(n); !ok || !node.Live() {
		return nil
	}
	var out []Route
	for _, p := range announced {
		k := RouteKey{n, p}
		if _, ok := s.Routes.Find(k); ok || !p.IsValid() {
			continue
		}
		r := Route{RouteKey: k, State: protocol.RoutePending, Announced: true}
		if CheckPrefix(p, s.Overlay) != nil {
			r.State, r.By = protocol.RouteRejected, ByRule
		}
		out = append(out, r)
	}
	SortRoutes(out)
	return slices.CompactFunc(out, func(a, b Route) bool { return a.RouteKey == b.RouteKey })
}

// AllWaiting lists what is not state of what nodes announce, by node and prefix.
func (s *State) AllWaiting(announced map[protocol.NodeNumber][]netip.Prefix) []Route {
	var all []Route
	for n, ps := range announced {
		if len(ps) == 0 {
			continue
		}
		all = append(all, s.Waiting(n, ps)...)
	}
	SortRoutes(all)
	return all
}

// WithWaiting is s and what nodes announce beyond it. Nothing may be decided on it.
func (s *State) WithWaiting(announced map[protocol.NodeNumber][]netip.Prefix) *State {
	if all := s.AllWaiting(announced); len(all) > 0 {
		return s.With(all)
	}
	return s
}

// With is s and routes that wait. Nothing may be decided on it.
func (s *State) With(waiting []Route) *State {
	c := *s
	for _, r := range waiting {
		c.Routes.Set(r.RouteKey, r)
	}
	return &c
}

// SameRoutes reports whether s has the routes, the nodes by name and the overlay that o has, by a look that costs nothing:
// then what waits is the same.
func (s *State) SameRoutes(o *State) bool {
	return s.Routes.m == o.Routes.m && s.names.m == o.names.m && slices.Equal(s.Overlay, o.Overlay)
}

// Announced tells the draft what node n announces, beyond what is state: DecideRoute may decide on it.
func (d *Draft) Announced(n protocol.NodeNumber, announced []netip.Prefix) {
	if d.announced == nil {
		d.announced = map[protocol.NodeNumber][]netip.Prefix{}
	}
	d.announced[n] = announced
}

// waiting makes state of what node n announces as p, if it does, so that it can be decided on.
func (d *Draft) waiting(n Node, p netip.Prefix, approve bool) error {
	for _, r := range d.Waiting(n.Number, d.announced[n.Number]) {
		if r.Prefix == p {
			if err := d.refuses(n.claimant(), p); approve && err != nil {
				return err
			}
			return d.Add(RouteAnnounced{Node: n.Number, Prefix: p, State: r.State, By: r.By})
		}
	}
	return nil
}
