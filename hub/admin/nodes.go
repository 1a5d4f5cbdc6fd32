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
	"causeway/hub/state"
	"causeway/protocol"
)

// shownNodes lists the nodes that an operator thinks of: for every name the
// live one or else the last one that had it, by site and name.
func shownNodes(st *state.State) []state.Node {
	last := map[string]state.Node{}
	for _, n := range st.Nodes.All() {
		if o, ok := last[n.Name]; !ok || n.Live() || !o.Live() && n.Number > o.Number {
			last[n.Name] = n
		}
	}
	out := make([]state.Node, 0, len(last))
	for _, n := range last {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b state.Node) int { return cmp.Or(cmp.Compare(a.Site, b.Site), cmp.Compare(a.Name, b.Name)) })
	return out
}

func (s *Server) toNode(st *state.State, n state.Node) api.Node {
	i := s.cfg.Fleet.Info(n)
	st = s.cfg.Fleet.Shown(st)
	out := api.Node{
		Name: n.Name, Site: n.Site, Number: n.Number, State: i.State, StateSince: i.Since, Reasons: i.Reasons, Paths: slices.Clone(i.Status.Paths),
		AgentVersion: i.Hello.AgentVersion, Engine: i.Hello.Engine, Joined: n.Joined, Netmap: i.Acked, Refused: i.Refused,
		Conditions: i.Conditions, WireGuardKey: n.WireGuardKey.String(), KeyEpoch: n.KeyEpoch(), KeySince: n.KeySince, Underlay: s.cfg.Bound(n.Number), Routes: []api.Route{},
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
	for _, r := range st.NodeRoutes(n.Number) {
		out.Routes = append(out.Routes, s.toRoute(st, r))
	}
	if i.Connected.IsZero() {
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
	out := api.Route{Node: n.Name, Site: n.Site, Prefix: r.Prefix, State: r.State, By: r.By, ETag: tag(r)}
	owner := s.cfg.Fleet.Owner(r.Prefix)
	out.Owner = owner == r.Node && r.Carried()
	switch {
	case r.State == protocol.RouteRejected && r.By == state.ByRule:
		if err := state.CheckPrefix(r.Prefix, st.Overlay); err != nil {
			out.Why = err.Error()
		}
	case r.State == protocol.RoutePending:
		out.Why = state.NewClaims(st).Why(r.Node, r.Prefix)
	case out.Owner && s.cfg.Fleet.Info(n).State == api.NodeUnreachable: // and no other node could take it over
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
	st := s.cfg.Fleet.State()
	out := []api.Node{}
	for _, n := range shownNodes(st) {
		out = append(out, s.toNode(st, n))
	}
	return out
}

func (s *Server) allRoutes() []api.Route {
	st := s.cfg.Fleet.State()
	nodes := map[protocol.NodeNumber]bool{}
	for _, n := range st.LiveNodes() {
		nodes[n.Number] = true
	}
	routes := make([]state.Route, 0, st.Routes.Len())
	for _, r := range st.Routes.All() {
		if nodes[r.Node] {
			routes = append(routes, r)
		}
	}
	state.SortRoutes(routes)
	out := []api.Route{}
	for _, r := range routes {
		out = append(out, s.toRoute(st, r))
	}
	slices.SortStableFunc(out, func(a, b api.Route) int { return cmp.Or(cmp.Compare(a.Site, b.Site), cmp.Compare(a.Node, b.Node)) })
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
			return tag(s.cfg.Fleet.Shown(st).Routes.Get(state.RouteKey{Node: n.Number, Prefix: in.Body.Prefix})), err
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
