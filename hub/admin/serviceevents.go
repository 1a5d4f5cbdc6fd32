package admin

import (
	"context"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
)

func (s *Server) registerServiceEvents(a huma.API) {
	huma.Get(a, "/v1/service-events", func(_ context.Context, in *struct {
		Service string    `query:"service" maxLength:"63"`
		Node    string    `query:"node" maxLength:"63"`
		Since   time.Time `query:"since"`
		Limit   int       `query:"limit" default:"100" minimum:"1" maximum:"1000"`
	}) (*body[[]api.ServiceEvent], error) {
		if in.Node != "" {
			if _, err := s.cfg.Store.State().FindNode(in.Node); err != nil {
				return nil, problem(err)
			}
		}
		return answer(s.cfg.Switches.List(api.ServiceEventQuery{Service: in.Service, Node: in.Node, Since: in.Since, Limit: in.Limit}), nil)
	})
}

func watchedServiceEvent(v api.ServiceEvent) watched {
	return watched{name: strconv.FormatUint(v.Sequence, 10), object: v, shown: v.Sequence}
}

func (s *Server) whenServiceEvents(wake chan<- struct{}) source {
	return parts{read[uint64]{s.cfg.Switches.Notices(wake), anything[uint64]}}
}
