package admin

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/facts/flow"
	"causeway/hub/object"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/protocol"
)

type wantedFlows struct {
	From   string    `query:"from" maxLength:"255"`
	To     string    `query:"to" maxLength:"255"`
	Rule   string    `query:"rule" maxLength:"127"`
	Denied bool      `query:"denied"`
	Since  time.Time `query:"since"`
	Limit  int       `query:"limit" default:"100" minimum:"1" maximum:"1000"`
}

type wantedSuggestion struct {
	Since time.Time `query:"since"`
	Name  string    `query:"name" maxLength:"63" default:"suggested"`
}

func (s *Server) registerFlows(a huma.API) {
	huma.Get(a, "/v1/flows", func(_ context.Context, in *wantedFlows) (*body[[]api.Flow], error) {
		q := api.FlowQuery{From: in.From, To: in.To, Rule: in.Rule, Denied: in.Denied, Since: in.Since}
		st := s.cfg.Store.State()
		for _, end := range []string{in.From, in.To} {
			if err := s.place(end); err != nil {
				return nil, problem(err)
			}
		}
		places := placesOf(st)
		out := []api.Flow{}
		for _, e := range s.cfg.Flows.List(in.Since) {
			if f := shownFlow(places, e); q.Matches(f) {
				out = append(out, f)
			}
		}
		return answer(out[max(0, len(out)-in.Limit):], nil)
	})
	huma.Get(a, "/v1/policy/suggest", func(_ context.Context, in *wantedSuggestion) (*body[api.PolicySuggestion], error) {
		if !protocol.ValidName(in.Name) {
			return nil, huma.Error422UnprocessableEntity("name: use 1 to 63 of a-z, 0-9 and '-'")
		}
		st := s.cfg.Store.State()
		var seen []policy.Seen
		for _, e := range s.cfg.Flows.List(in.Since) {
			seen = append(seen, policy.Seen{Node: e.Node, From: e.From, To: e.To, Proto: e.Proto, Port: e.Port, Refused: e.Refused, Midway: e.Midway, Count: e.Count})
		}
		now := time.Now()
		out, err := policy.Suggest(in.Name, object.PolicyInput(st, nil, now), object.PolicyNodes(st), seen, in.Since, now)
		if errors.Is(err, policy.ErrNothingSeen) {
			err = huma.Error404NotFound(err.Error())
		}
		return answer(out, err)
	})
}

// place says why what somebody wrote is no place: neither an address, nor a range, node or site.
func (s *Server) place(text string) error {
	if text == "" {
		return nil
	}
	if _, err := netip.ParseAddr(text); err == nil {
		return nil
	}
	if _, err := netip.ParsePrefix(text); err == nil {
		return nil
	}
	st := s.cfg.Store.State()
	if _, err := st.FindSite(strings.TrimSuffix(text, "/*")); err == nil {
		return nil
	}
	_, err := st.FindNode(text)
	return err
}

// newestFlows are the last changes of flows, as a watch has them.
func (s *Server) newestFlows() []api.Flow {
	places := placesOf(s.cfg.Store.State())
	out := []api.Flow{}
	for _, e := range s.cfg.Flows.News() {
		out = append(out, shownFlow(places, e))
	}
	return out
}

func placesOf(st *state.State) *policy.Places {
	return policy.NewPlaces(object.PolicyInput(st, nil, time.Now()), object.PolicyNodes(st))
}

func shownFlow(places *policy.Places, e flow.Entry) api.Flow {
	f := api.Flow{Sequence: e.Sequence, Node: e.Node, From: e.From, To: e.To, Port: e.PortText(), Verdict: api.FlowOpen, Rule: e.Rule, Midway: e.Midway, Count: e.Count, First: e.First, Last: e.Last}
	if e.Refused {
		f.Verdict = api.FlowRefused
	}
	if p, ok := places.Of(e.Node, e.From); ok {
		f.FromNode, f.FromSite = p.Node, p.Site
	}
	if p, ok := places.Of(e.Node, e.To); ok {
		f.ToNode, f.ToSite = p.Node, p.Site
	}
	return f
}
