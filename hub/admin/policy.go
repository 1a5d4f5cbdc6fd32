package admin

import (
	"context"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/explain"
	"causeway/hub/object"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/protocol"
)

func (s *Server) registerPolicy(a huma.API) {
	huma.Post(a, "/v1/policy/test", func(ctx context.Context, in *struct{ Body api.PolicyQuestion }) (*body[api.PolicyAnswer], error) {
		return answer(s.testPolicy(ctx, in.Body))
	})
	huma.Get(a, "/v1/policy", func(ctx context.Context, _ *struct{}) (*body[api.PolicyReport], error) {
		return answer(s.policyReport(ctx))
	})
	huma.Get(a, "/v1/policy/rules", func(ctx context.Context, in *struct {
		Policy string `query:"policy" maxLength:"63" doc:"Of this policy alone."`
	}) (*body[[]api.PolicyRuleState], error) {
		return answer(s.policyRules(ctx, in.Policy))
	})
	huma.Post(a, "/v1/policy/explain", func(ctx context.Context, in *struct{ Body api.PolicyExplain }) (*body[api.PolicyExplained], error) {
		return answer(s.explainPolicy(ctx, in.Body))
	})
	huma.Post(a, "/v1/policy/confirm", func(ctx context.Context, in *struct{ Body api.PolicyConfirm }) (*body[api.PolicyConfirmed], error) {
		return answer(s.confirmPolicy(ctx, in.Body.Back))
	})
}

// inForce is who may talk to whom by the newest state.
func (s *Server) inForce(ctx context.Context) (*policy.Compiled, error) {
	p, err := s.cfg.Fleet.PolicyAt(ctx, s.cfg.Store.State().Seq)
	if err != nil {
		return nil, huma.Error503ServiceUnavailable(err.Error())
	}
	return p.Compiled, nil
}

// compiled waits a moment until the newest state was compiled, so that what is told of policies is told of that. Where it cannot
// be, status says so.
func (s *Server) compiled(ctx context.Context) {
	_, _ = s.cfg.Fleet.PolicyAt(ctx, s.cfg.Store.State().Seq)
}

// testPolicy answers by what is declared now.
func (s *Server) testPolicy(ctx context.Context, q api.PolicyQuestion) (api.PolicyAnswer, error) {
	c, err := s.inForce(ctx)
	if err != nil {
		return api.PolicyAnswer{}, err
	}
	v, err := c.Ask(q.From, q.To, q.Port, "")
	if err != nil {
		return api.PolicyAnswer{}, huma.Error422UnprocessableEntity(err.Error())
	}
	return api.PolicyAnswer{Open: v.Open, Rule: v.Rule, Nearest: v.Nearest, Lacks: v.Lacks, Text: v.String()}, nil
}

// confirmPolicy has the change that waits stay, or go back.
func (s *Server) confirmPolicy(ctx context.Context, back bool) (out api.PolicyConfirmed, err error) {
	out.Result = "confirmed"
	why, decide := "policy confirmed", object.Confirm
	if back {
		out.Result, why, decide = "went-back", "policy goes back", object.GoBack
	}
	_, err = s.update(ctx, why, func(d *state.Draft) error {
		out.Objects = []string{}
		if p := pending(d.State); p != nil {
			out.Objects = p.Objects
		}
		if p := object.Confirming(d.State); back && p != nil && p.Overtaken(d.State) != "" {
			return state.Errorf(state.Conflict, "%s, so nothing can go back: 'causeway policy confirm' ends it", p.Overtaken(d.State))
		}
		return decide(d)
	})
	return out, err
}

// pending is the change of a state that waits to be confirmed; nil: none.
func pending(st *state.State) *api.PolicyPending {
	p := object.Confirming(st)
	if p == nil {
		return nil
	}
	out := &api.PolicyPending{Deadline: p.Deadline, Since: p.Since, By: p.Who}
	for _, k := range p.Objects {
		out.Objects = append(out.Objects, k.String())
	}
	return out
}

// closedBy is the verdict on a flow that policies close; nil: they do not, or nobody is known to have an address.
func (s *Server) closedBy(ctx context.Context, from, to explain.End, proto string, port uint16) *policy.Verdict {
	if !from.Addr.IsValid() || !to.Addr.IsValid() || port == 0 && proto != protocol.FlowICMP {
		return nil
	}
	c, err := s.inForce(ctx)
	if err != nil {
		return nil // status says so
	}
	at := func(e explain.End) policy.Met {
		if e.Node == nil {
			return policy.Met{Addr: e.Addr}
		}
		return policy.Met{Addr: e.Addr, Node: e.Node.Number}
	}
	v, err := c.DecideAt(at(from), at(to), flowPorts(proto, port))
	if err != nil || v.Open {
		return nil
	}
	return &v
}

// flowPorts are a flow's protocol and port as rules name them.
func flowPorts(proto string, port uint16) protocol.Ports {
	if proto == protocol.FlowICMP {
		return protocol.Ports{Proto: protocol.ProtoICMP}
	}
	return protocol.Ports{Proto: map[string]protocol.Proto{protocol.FlowTCP: protocol.ProtoTCP, protocol.FlowUDP: protocol.ProtoUDP}[proto], First: port, Last: port}
}

// maxDoubts bounds what status tells of doubts.
const maxDoubts = 20

// policyStatus is what is declared, and what of it is in force.
func (s *Server) policyStatus(st *state.State) api.PolicyStatus {
	out := api.PolicyStatus{Segments: len(st.ObjectsOf(object.SegmentKind)), Policies: len(st.ObjectsOf(object.PolicyKind))}
	out.Confirm = pending(st)
	p := s.cfg.Fleet.Policy()
	if p == nil {
		return out
	}
	if p.Err != nil {
		out.Error = p.Err.Error()
	}
	if p.Compiled != nil {
		l := p.Compiled.Doubts
		out.Doubts, out.MoreDoubts = l[:min(len(l), maxDoubts)], max(0, len(l)-maxDoubts)
	}
	return out
}

// policyInput is what policies would be compiled from where a state is taken.
func (s *Server) policyInput(st *state.State) policy.Input {
	in := object.PolicyInput(st, nil, time.Now())
	if policy.AsksPods(in.Policies) {
		for _, n := range in.Nodes {
			f, _ := s.cfg.Inventory.Get(n.Number)
			in.Pods = append(in.Pods, object.PodsOf(n.Number, f.Containers)...)
		}
	}
	return in
}
