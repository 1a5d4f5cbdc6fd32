package admin

import (
	"context"
	"net/netip"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/object"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/protocol"
)

func (s *Server) registerPolicy(a huma.API) {
	huma.Post(a, "/v1/policy/test", func(_ context.Context, in *struct{ Body api.PolicyQuestion }) (*body[api.PolicyAnswer], error) {
		return answer(s.testPolicy(in.Body))
	})
}

// testPolicy answers by what is declared now.
func (s *Server) testPolicy(q api.PolicyQuestion) (api.PolicyAnswer, error) {
	c, err := compiled(s.cfg.Store.State())
	if err != nil {
		return api.PolicyAnswer{}, err
	}
	v, err := c.Ask(q.From, q.To, q.Port, "")
	if err != nil {
		return api.PolicyAnswer{}, huma.Error422UnprocessableEntity(err.Error())
	}
	return api.PolicyAnswer{Open: v.Open, Rule: v.Rule, Nearest: v.Nearest, Lacks: v.Lacks, Text: v.String()}, nil
}

func compiled(st *state.State) (*policy.Compiled, error) {
	return policy.Compile(object.PolicyInput(st, nil, time.Now()), nil)
}

// closedBy is the verdict on a flow that policies close; nil: they do not, or nobody is known to have an address.
func closedBy(st *state.State, from, to netip.Addr, proto string, port uint16) *policy.Verdict {
	if !from.IsValid() || !to.IsValid() || port == 0 && proto != protocol.FlowICMP {
		return nil
	}
	c, err := compiled(st)
	if err != nil {
		return nil // the loop says so
	}
	p := protocol.Ports{Proto: map[string]protocol.Proto{protocol.FlowTCP: protocol.ProtoTCP, protocol.FlowUDP: protocol.ProtoUDP}[proto], First: port, Last: port}
	if proto == protocol.FlowICMP {
		p = protocol.Ports{Proto: protocol.ProtoICMP}
	}
	v, err := c.Decide(from, to, p)
	if err != nil || v.Open {
		return nil
	}
	return &v
}
