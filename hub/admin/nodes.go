package admin

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/plan"
	"causeway/hub/state"
	"causeway/protocol"
)

// shownNodes lists the nodes that an operator thinks of: for every name the
// live one or else the last one that had it, by site and name.
func shownNodes(st *state.State) []*state.Node {
	out := make([]*state.Node, 0, st.Nodes.Len())
	last := make(map[string]int, st.Nodes.Len())
	for _, n := range st.Nodes.All() { // by number
		if i, ok := last[n.Name]; !ok {
			last[n.Name] = len(out)
			out = append(out, &n)
		} else if n.Live() || !out[i].Live() {
			out[i] = &n
		}
	}
	slices.SortFunc(out, func(a, b *state.Node) int { return cmp.Or(cmp.Compare(a.Site, b.Site), cmp.Compare(a.Name, b.Name)) })
	return out
}

// view is what nodes and routes are shown by: a state with what nodes announce beyond it, and netmaps.
type view struct {
	s  *Server
	st *state.State
	v  *plan.Netmaps // nil: none yet
}

func (s *Server) view(st *state.State) view {
	return view{s, s.cfg.Fleet.Shown(st), s.cfg.Fleet.Netmaps()}
}

// now is the view of the newest state.
func (s *Server) now() view { return view{s, s.cfg.Fleet.State(), s.cfg.Fleet.Netmaps()} }

// allRoutes are the routes of a state by node, in the order of prefixes.
func (w view) allRoutes() map[protocol.NodeNumber][]state.Route {
	all := make([]state.Route, 0, w.st.Routes.Len())
	out := make(map[protocol.NodeNumber][]state.Route, w.st.Nodes.Len())
	for _, r := range w.st.Routes.All() {
		first := len(all)
		if before, ok := out[r.Node]; ok {
			first -= len(before)
		}
		all = append(all, r)
		out[r.Node] = all[first:]
	}
	return out
}

func (s *Server) toNode(st *state.State, n state.Node) api.Node {
	w := s.view(st)
	return w.node(n, w.st.NodeRoutes(n.Number))
}

// node shows a node with its routes.
func (w view) node(n state.Node, routes []state.Route) api.Node {
	s, st := w.s, w.st
	i := s.cfg.Fleet.Info(n)
	out := api.Node{
		Name: n.Name, Site: n.Site, Number: n.Number, State: i.State, StateSince: i.Since, Reasons: i.Reasons, Paths: slices.Clone(i.Status.Paths),
		AgentVersion: i.Hello.AgentVersion, Engine: i.Hello.Engine, Joined: n.Joined, Netmap: i.Acked, Refused: i.Refused,
		Conditions: i.Conditions, WireGuardKey: n.WireGuardKey.String(), KeyEpoch: n.KeyEpoch(), KeySince: n.KeySince, Underlay: s.cfg.Bound(n.Number), Routes: make([]api.Route, 0, len(routes)),
		ETag: nodeTag(n),
	}
	out.Drained, out.Connected = n.Drained, i.Connected
	out.Unproven = n.Live() && n.Proven.IsZero()
	if u := i.Status.Upgrade; u != nil {
		out.Upgrade = &api.NodeUpgrade{Version: u.Version, State: u.State, Error: u.Error}
	}
	if n.KeyWanted > out.KeyEpoch {
		out.KeyWanted = n.KeyWanted
	}
	out.Overlay, _ = st.OverlayOf(n.Number)
	if d, ok := s.cfg.Inventory.DroppedOf(n.Number); ok {
		out.Dropped = &d
	}
	out.Labels = map[string]string{}
	for k, v := range i.Hello.Labels {
		out.Labels[k] = v
	}
	for k, v := range n.Labels { // what an admin or the token says wins
		out.Labels[k] = v
	}
	for _, r := range routes {
		out.Routes = append(out.Routes, w.route(n, i.State, r))
	}
	if i.Connected.IsZero() || !n.Live() {
		out.Paths = nil // of the past
	}
	for p := range out.Paths {
		out.Paths[p].Name = st.Nodes.Get(out.Paths[p].Peer).Name
		if st.HubNumbers.Get(out.Paths[p].Peer) {
			out.Paths[p].Name = "hub"
		}
	}
	if out.Paths == nil {
		out.Paths = []protocol.PathStatus{}
	}
	if out.Reasons == nil {
		out.Reasons = []string{}
	}
	if out.Conditions == nil {
		out.Conditions = []protocol.Condition{}
	}
	if out.Underlay == nil {
		out.Underlay = []netip.AddrPort{}
	}
	return out
}

func (s *Server) toRoute(st *state.State, r state.Route) api.Route {
	n := st.Nodes.Get(r.Node)
	return s.view(st).route(n, s.cfg.Fleet.Is(n), r)
}

// route shows a route of node n, which is in state is.
func (w view) route(n state.Node, is string, r state.Route) api.Route {
	st := w.st
	out := api.Route{Node: n.Name, Site: n.Site, Segment: st.SegmentName(st.PlaceOf(n).Segment), Prefix: r.Prefix, State: r.State, By: r.By, ETag: routeTag(r)}
	var owner protocol.NodeNumber
	if w.v != nil {
		owner = w.v.Owner(r.Node, r.Prefix)
	}
	out.Owner = owner == r.Node && r.Carried()
	switch {
	case r.State == protocol.RouteRejected && r.By == state.ByRule:
		if err := state.CheckPrefix(r.Prefix, st.Overlay); err != nil {
			out.Why = err.Error()
		}
	case r.State == protocol.RoutePending:
		out.Why = state.NewClaims(st).Why(r.Node, r.Prefix)
	case out.Owner && is == api.NodeUnreachable: // and no other node could take it over
		out.Why = "the node is unreachable"
	case r.State != protocol.RouteApproved || out.Owner:
	case !r.Carried():
		out.Why = "the node does not announce it now"
	case n.Statement == nil:
		out.Why = "the node's agent was never seen"
	case owner != 0:
		out.Why = "node " + st.Nodes.Get(owner).Name + " carries it"
	default:
		out.Why = "the next netmap brings it"
	}
	return out
}

// revocation tells of the last node of that name that was revoked.
func (s *Server) revocation(name string) (out api.Revocation, err error) {
	st := s.cfg.Store.State()
	var n state.Node
	for _, x := range st.Nodes.All() {
		if x.Name == name && x.Gone == state.GoneRevoked && x.Number > n.Number {
			n = x
		}
	}
	if n.Number == 0 {
		return out, huma.Error404NotFound("no node " + name + " was revoked")
	}
	r := s.cfg.Reconcile.Revocation(n)
	out = api.Revocation{Node: name, Number: n.Number, Revoked: r.At, Cut: r.Cut >= 0, CutAfter: api.Duration(max(0, r.Cut)),
		Confirmed: []api.Confirmed{}, Waiting: []api.Unconfirmed{}}
	for _, c := range r.Nodes {
		if c.After >= 0 {
			out.Confirmed = append(out.Confirmed, api.Confirmed{Node: st.Nodes.Get(c.Node).Name, After: api.Duration(c.After)})
		} else {
			out.Waiting = append(out.Waiting, api.Unconfirmed{Node: st.Nodes.Get(c.Node).Name, Why: c.Why})
		}
	}
	return out, nil
}

func (s *Server) nodes() []api.Node {
	w := s.now()
	routes, nodes := w.allRoutes(), shownNodes(w.st)
	out := make([]api.Node, 0, len(nodes))
	for _, n := range nodes {
		out = append(out, w.node(*n, routes[n.Number]))
	}
	return out
}

func (s *Server) allRoutes() []api.Route {
	w := s.now()
	routes := w.allRoutes()
	out := make([]api.Route, 0, w.st.Routes.Len())
	for _, n := range shownNodes(w.st) {
		of := routes[n.Number]
		if len(of) == 0 || !n.Live() {
			continue
		}
		is := s.cfg.Fleet.Is(*n)
		for _, r := range of {
			out = append(out, w.route(*n, is, r))
		}
	}
	return out
}

func (s *Server) registerNodes(a huma.API) {
	huma.Get(a, "/v1/nodes", func(context.Context, *struct{}) (*body[[]api.Node], error) { return answer(s.nodes(), nil) })
	huma.Get(a, "/v1/nodes/{name}", func(_ context.Context, in *named) (*tagged[api.Node], error) {
		st := s.cfg.Store.State()
		n, ok := st.NodeByName(in.Name)
		if !ok {
			_, err := st.FindNode(in.Name)
			return nil, problem(err)
		}
		return withTag(nodeTag(n), s.toNode(st, n))
	})
	huma.Delete(a, "/v1/nodes/{name}", func(ctx context.Context, in *namedChange) (*struct{}, error) {
		_, err := s.change(ctx, in.IfMatch, "node revoke "+in.Name, "node "+in.Name, nodeNow(in.Name), func(d *state.Draft) error {
			n, err := d.FindNode(in.Name)
			if err != nil {
				return err
			}
			return state.Remove(d, n.Number, state.GoneRevoked)
		})
		return nil, err
	}, changes)
	huma.Patch(a, "/v1/nodes/{name}", func(ctx context.Context, in *struct {
		Name string `path:"name" maxLength:"63"` // huma does not fill an embedded struct of an unexported type
		IfMatch
		Body api.NodePatch
	}) (*tagged[api.Node], error) {
		st, err := s.change(ctx, in.IfMatch, "node label "+in.Name, "node "+in.Name, nodeNow(in.Name), func(d *state.Draft) error { return state.Label(d, in.Name, in.Body.Labels) })
		if err != nil {
			return nil, err
		}
		n, _ := st.NodeByName(in.Name)
		return withTag(nodeTag(n), s.toNode(st, n))
	}, changes)

	huma.Post(a, "/v1/nodes/{name}/rotate-key", func(ctx context.Context, in *struct {
		Name string `path:"name" maxLength:"63"`
		IfMatch
		Body api.KeyRotation
	}) (*tagged[api.Node], error) {
		st, err := s.change(ctx, in.IfMatch, "node rotate-key "+in.Name, "node "+in.Name, nodeNow(in.Name), func(d *state.Draft) error {
			return state.WantKey(d, in.Name, time.Duration(in.Body.Overlap))
		})
		if err != nil {
			return nil, err
		}
		n, _ := st.NodeByName(in.Name)
		return withTag(nodeTag(n), s.toNode(st, n))
	}, changes)
	huma.Post(a, "/v1/nodes/{name}/release", func(ctx context.Context, in *namedChange) (*tagged[api.Node], error) {
		st, err := s.change(ctx, in.IfMatch, "node release "+in.Name, "node "+in.Name, nodeNow(in.Name), func(d *state.Draft) error { return state.Release(d, in.Name) })
		if err != nil {
			return nil, err
		}
		n, _ := st.NodeByName(in.Name)
		s.cfg.Fleet.Released(n.Number)
		return withTag(nodeTag(n), s.toNode(st, n))
	}, changes)
	huma.Get(a, "/v1/nodes/{name}/revocation", func(_ context.Context, in *named) (*body[api.Revocation], error) {
		return answer(s.revocation(in.Name))
	})

	huma.Get(a, "/v1/routes", func(context.Context, *struct{}) (*body[[]api.Route], error) { return answer(s.allRoutes(), nil) })
	huma.Post(a, "/v1/routes/decide", func(ctx context.Context, in *struct {
		IfMatch
		Body api.RouteDecision
	}) (*tagged[api.Route], error) {
		verb := "reject"
		if in.Body.Approve {
			verb = "approve"
		}
		current := func(st *state.State) (string, error) {
			n, err := st.FindNode(in.Body.Node)
			return routeTag(s.cfg.Fleet.Shown(st).Routes.Get(state.RouteKey{Node: n.Number, Prefix: in.Body.Prefix})), err
		}
		st, err := s.change(ctx, in.IfMatch, fmt.Sprintf("route %s %s %s", verb, in.Body.Node, in.Body.Prefix), fmt.Sprintf("route %s of node %s", in.Body.Prefix, in.Body.Node), current, func(d *state.Draft) error {
			if n, err := d.FindNode(in.Body.Node); err == nil {
				d.Announced(n.Number, s.cfg.Fleet.Announced(n.Number))
			}
			return state.DecideRoute(d, in.Body.Node, in.Body.Prefix, in.Body.Approve, who(ctx))
		})
		if err != nil {
			return nil, err
		}
		n, _ := st.NodeByName(in.Body.Node)
		out := s.toRoute(st, st.Routes.Get(state.RouteKey{Node: n.Number, Prefix: in.Body.Prefix}))
		return withTag(out.ETag, out)
	}, changes)
}
