package admin

import (
	"context"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/state"
	"causeway/protocol"
)

// registerLifecycle has what an operator does to a node that stays.
func (s *Server) registerLifecycle(a huma.API) {
	drain := func(verb string, on bool) func(context.Context, *namedChange) (*body[api.Drain], error) {
		return func(ctx context.Context, in *namedChange) (*body[api.Drain], error) {
			_, err := s.change(ctx, in.IfMatch, "node "+verb+" "+in.Name, "node "+in.Name, nodeNow(in.Name), func(d *state.Draft) error { return state.Drain(d, in.Name, on) })
			if err != nil {
				return nil, err
			}
			return answer(s.drainOf(in.Name))
		}
	}
	huma.Post(a, "/v1/nodes/{name}/drain", drain("drain", true), changes)
	huma.Post(a, "/v1/nodes/{name}/undrain", drain("undrain", false), changes)
	huma.Get(a, "/v1/nodes/{name}/drain", func(_ context.Context, in *named) (*body[api.Drain], error) {
		return answer(s.drainOf(in.Name))
	})
	huma.Post(a, "/v1/nodes/{name}/rename", func(ctx context.Context, in *struct {
		Name string `path:"name" maxLength:"63"`
		IfMatch
		Body api.NodeRename
	}) (*tagged[api.Node], error) {
		why := "node rename " + in.Name + " " + protocol.OneLine(in.Body.Name, 64)
		st, err := s.change(ctx, in.IfMatch, why, "node "+in.Name, nodeNow(in.Name), func(d *state.Draft) error {
			return state.Rename(d, in.Name, in.Body.Name)
		})
		if err != nil {
			return nil, err
		}
		n, _ := st.NodeByName(in.Body.Name)
		return withTag(nodeTag(n), s.toNode(st, n))
	}, changes)
}

// drainOf tells how far a node's routes have moved to others.
func (s *Server) drainOf(name string) (api.Drain, error) {
	st := s.cfg.Store.State()
	n, err := st.FindNode(name)
	if err != nil {
		return api.Drain{}, problem(err)
	}
	h := s.cfg.Reconcile.Handover(n.Number)
	out := api.Drain{Node: n.Name, Drained: !n.Drained.IsZero(), Since: n.Drained, Pending: h.Pending, Moved: []api.MovedRoute{}, Kept: []api.KeptRoute{},
		Confirmed: names(st, h.Confirmed), Waiting: names(st, h.Waiting), Away: names(st, h.Away)}
	for p, o := range h.Owners {
		switch {
		case o != n.Number:
			out.Moved = append(out.Moved, api.MovedRoute{Prefix: p, To: st.Nodes.Get(o).Name})
		case out.Drained && !h.Pending:
			out.Kept = append(out.Kept, api.KeptRoute{Prefix: p, Why: "no other node of site " + n.Site + " that is connected announces it"})
		default:
			out.Kept = append(out.Kept, api.KeptRoute{Prefix: p})
		}
	}
	slices.SortFunc(out.Moved, func(a, b api.MovedRoute) int { return a.Prefix.Compare(b.Prefix) })
	slices.SortFunc(out.Kept, func(a, b api.KeptRoute) int { return a.Prefix.Compare(b.Prefix) })
	return out, nil
}

func names(st *state.State, nodes []protocol.NodeNumber) []string {
	out := make([]string, len(nodes))
	for i, n := range nodes {
		out[i] = st.Nodes.Get(n).Name
	}
	return out
}
