package admin

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"causeway/protocol"
)

// registerHubs has the hub list, as agents get it.
func (s *Server) registerHubs(a huma.API) {
	huma.Get(a, "/v1/hubs", func(context.Context, *struct{}) (*body[protocol.SignedHubList], error) {
		l := s.cfg.Store.State().HubList
		if l == nil {
			return nil, huma.Error503ServiceUnavailable("the hub has no hub list yet")
		}
		return answer(*l, nil)
	})
}
