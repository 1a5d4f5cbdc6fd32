package admin

import (
	"slices"

	"causeway/hub/api"
	"causeway/hub/state"
	"causeway/protocol"
)

// patchExpose changes where the outside reaches a service.
func patchExpose(s *protocol.Service, p api.ServicePatch) error {
	same := func(x protocol.ServiceExpose) func(protocol.ServiceExpose) bool {
		return func(y protocol.ServiceExpose) bool {
			return x.Site == y.Site && x.Node == y.Node && x.Listen == y.Listen && (x.Port == "" || x.Port == y.Port)
		}
	}
	s.Expose = slices.Clone(s.Expose)
	for _, x := range p.Unexpose {
		if !slices.ContainsFunc(s.Expose, same(x)) {
			return state.Errorf(state.NotFound, "it is not exposed at %s there; see 'causeway service show'", x.Listen)
		}
		s.Expose = slices.DeleteFunc(s.Expose, same(x))
	}
	for _, x := range p.Expose {
		if !slices.Contains(s.Expose, x) {
			s.Expose = append(s.Expose, x)
		}
	}
	return nil
}
