package admin

import (
	"context"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/facts/incident"
)

type wantedIncidents struct {
	Node  string    `query:"node" maxLength:"63"`
	Site  string    `query:"site" maxLength:"63"`
	Since time.Time `query:"since"`
	Limit int       `query:"limit" default:"100" minimum:"1" maximum:"1000"`
}

func (s *Server) registerIncidents(a huma.API) {
	huma.Get(a, "/v1/incidents", func(_ context.Context, in *wantedIncidents) (*body[[]api.Incident], error) {
		st := s.cfg.Store.State()
		if in.Node != "" {
			if _, err := st.FindNode(in.Node); err != nil {
				return nil, problem(err)
			}
		}
		if in.Site != "" {
			if _, err := st.FindSite(in.Site); err != nil {
				return nil, problem(err)
			}
		}
		l := s.cfg.Incidents.List(incident.Filter{Node: in.Node, Site: in.Site, Since: in.Since})
		return answer(l[:min(len(l), in.Limit)], nil)
	})
	huma.Get(a, "/v1/incidents/{id}", func(_ context.Context, in *struct {
		ID string `path:"id" maxLength:"40"`
	}) (*body[api.Incident], error) {
		i, ok := s.cfg.Incidents.Get(in.ID)
		if !ok {
			return nil, huma.Error404NotFound("no incident " + in.ID + " is known; see 'causeway incidents'")
		}
		return answer(i, nil)
	})
}
