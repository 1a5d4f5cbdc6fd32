package admin

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/fleet"
	"causeway/hub/object"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/protocol"
)

const (
	lackListed  = 100
	meantListed = 50
	// endsSoon is how long before its end a rule is named.
	endsSoon = 14 * 24 * time.Hour
)

// policyReport is what is in force, and what is to be said of it.
func (s *Server) policyReport(ctx context.Context) (api.PolicyReport, error) {
	st := s.cfg.Store.State()
	c, err := s.inForce(ctx)
	if err != nil {
		return api.PolicyReport{}, err
	}
	out := api.PolicyReport{PolicyStatus: s.policyStatus(st), Lack: []api.PolicyLack{}, Stale: []api.PolicyRuleNote{}, Ending: []api.PolicyRuleNote{}, Failing: orEmpty(c.Failing())}
	var newest uint64
	for _, o := range object.Talk(st) {
		newest = max(newest, o.Generation)
		if o.Changed.After(out.Changed) {
			out.Changed = o.Changed
		}
	}
	if newest > 0 {
		s.acknowledged(st, newest, &out)
	}
	now := time.Now()
	for _, r := range c.Rules() {
		switch {
		case r.Ended:
			out.Ending = append(out.Ending, api.PolicyRuleNote{Rule: r.Name, Why: "ended with " + r.LastDay()})
		case r.Why != "":
			out.Stale = append(out.Stale, api.PolicyRuleNote{Rule: r.Name, Why: r.Why})
		}
		if !r.Ended && !r.Until.IsZero() && r.Until.Sub(now) < endsSoon {
			out.Ending = append(out.Ending, api.PolicyRuleNote{Rule: r.Name, Why: "ends with " + r.LastDay()})
		}
	}
	return out, nil
}

// acknowledged counts the nodes that have what is in force, of which newest is the last transaction.
func (s *Server) acknowledged(st *state.State, newest uint64, out *api.PolicyReport) {
	snapshot, standings := s.cfg.Fleet.Snapshot(), s.cfg.Fleet.Standings(st)
	for _, n := range st.LiveNodes() {
		out.Nodes++
		why := lacks(st, snapshot.Node(n.Number), standings[n.Number], newest)
		switch {
		case why == "":
			out.Have++
		case len(out.Lack) < lackListed:
			out.Lack = append(out.Lack, api.PolicyLack{Node: n.Name, Why: why})
		default:
			out.MoreLack++
		}
	}
}

// lacks says why a node has not acknowledged what is in force; empty: it has.
func lacks(st *state.State, x fleet.Node, standing fleet.Standing, newest uint64) string {
	held := x.Acked.Epoch == st.Epoch && x.Acked.Version >= newest
	for _, r := range x.Refused {
		if r.Kind == protocol.ItemPolicy || r.Kind == protocol.ItemSegment {
			return fmt.Sprintf("it refuses %s %s: %s", r.Kind, r.Name, r.Reason)
		}
	}
	switch {
	case x.Session == nil && held:
		return ""
	case x.Session == nil:
		return "it is not connected"
	case !slices.Contains(x.Hello.Features, protocol.ItemFeature(protocol.ItemPolicy)):
		return fmt.Sprintf("its agent %s knows no policies, and so has no peers", x.Hello.AgentVersion)
	case len(x.Errors) > 0:
		return "its host does not take all of it: " + x.Errors[0]
	case standing.Behind > 0:
		return fmt.Sprintf("it has not acknowledged the newest netmap for %s", standing.Behind.Round(time.Second))
	}
	return ""
}

// ruleState is a rule with who it means. tests are those that want something open by it.
func ruleState(m policy.Meaning, tests map[string]int) api.PolicyRuleState {
	out := api.PolicyRuleState{Rule: m.Name, Across: m.Across, From: meant(m.Rule.From, m.From), To: meant(m.Rule.To, m.To), Until: m.LastDay(), Ended: m.Ended, Why: m.Why, Tests: tests[m.Name]}
	for _, p := range m.Allow {
		out.Allow = append(out.Allow, p.String())
	}
	return out
}

func meant(side string, m policy.Meant) api.PolicyMeant {
	return api.PolicyMeant{Side: side, Segments: orEmpty(m.Segments), Classes: m.Classes, Nodes: len(m.Nodes), Names: orEmpty(m.Nodes[:min(len(m.Nodes), meantListed)]),
		Count: len(m.Prefixes), Prefixes: slices.Concat(m.Prefixes[:0:0], m.Prefixes[:min(len(m.Prefixes), meantListed)])}
}

// policyRules lists the rules of all policies, or of one.
func (s *Server) policyRules(ctx context.Context, of string) ([]api.PolicyRuleState, error) {
	st, out := s.cfg.Store.State(), []api.PolicyRuleState{}
	if of != "" {
		if _, err := st.FindObject(state.ObjectKey{Kind: object.PolicyKind, Name: of}); err != nil {
			return nil, problem(err)
		}
	}
	c, err := s.inForce(ctx)
	if err != nil {
		return nil, err
	}
	tests := c.Tested()
	for _, m := range c.Rules() {
		if name, _, _ := strings.Cut(m.Name, "/"); of == "" || name == of {
			out = append(out, ruleState(m, tests))
		}
	}
	return out, nil
}

// explainPolicy says what a rule means, or why something is open between two ends.
func (s *Server) explainPolicy(ctx context.Context, q api.PolicyExplain) (out api.PolicyExplained, err error) {
	c, err := s.inForce(ctx)
	if err != nil {
		return out, err
	}
	if q.Rule != "" {
		m, err := c.Rule(q.Rule)
		if err != nil {
			return out, huma.Error404NotFound(err.Error())
		}
		r := ruleState(m, c.Tested())
		out.Rule = &r
		return out, nil
	}
	a, err := c.End(q.From, q.To)
	b, berr := c.End(q.To, q.From)
	if err = cmp.Or(err, berr); err != nil {
		return out, huma.Error422UnprocessableEntity(err.Error())
	}
	if !c.Open && a.Prefix.Addr().Is4() != b.Prefix.Addr().Is4() {
		return out, huma.Error422UnprocessableEntity(fmt.Sprintf("%s and %s are not of one family", q.From, q.To))
	}
	out.From, out.To = endOf(q.From, a), endOf(q.To, b)
	out.Opens, out.Back = openings(c.Opened(a, b)), openings(c.Opened(b, a))
	if q.Port != "" {
		v, err := s.testPolicy(ctx, api.PolicyQuestion{From: q.From, To: q.To, Port: q.Port})
		if err != nil {
			return out, err
		}
		out.Verdict = &v
	}
	return out, nil
}

func endOf(asked string, e policy.End) *api.PolicyEnd {
	return &api.PolicyEnd{Asked: asked, Prefix: e.Prefix, Segment: e.Segment, Sites: orEmpty(e.Sites), Nodes: orEmpty(e.Nodes), Sides: orEmpty(e.Sides)}
}
