package admin

import (
	"context"
	"net/netip"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/object"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/protocol"
)

func (s *Server) registerPolicy(a huma.API) {
	huma.Post(a, "/v1/policy/test", func(ctx context.Context, in *struct{ Body api.PolicyQuestion }) (*body[api.PolicyAnswer], error) {
		return answer(s.testPolicy(ctx, in.Body))
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

// closedBy is the verdict on a flow that policies close; nil: they do not, or nobody is known to have an address.
func (s *Server) closedBy(ctx context.Context, from, to netip.Addr, proto string, port uint16) *policy.Verdict {
	if !from.IsValid() || !to.IsValid() || port == 0 && proto != protocol.FlowICMP {
		return nil
	}
	c, err := s.inForce(ctx)
	if err != nil {
		return nil // status says so
	}
	v, err := c.Decide(from, to, flowPorts(proto, port))
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
