package object

import (
	"bytes"

	"causeway/hub/api"
	"causeway/hub/state"
	"causeway/protocol"
)

// doorsFree is an error if another service is exposed where this one is to be. Of a node and its site the hub does not say so: the
// node does.
func doorsFree(st *state.State, name string, s protocol.Service) error {
	if len(s.Expose) == 0 {
		return nil
	}
	for _, o := range st.ObjectsOf(ServiceKind) {
		if o.Name == name || !bytes.Contains(o.Spec, []byte(`"expose"`)) {
			continue
		}
		other, err := specOf[api.ServiceSpec](o)
		if err != nil {
			continue
		}
		for _, x := range s.Expose {
			p, _ := s.PortOf(x)
			for _, y := range other.Expose {
				if q, has := other.PortOf(y); has && x.Meets(p, y, q) {
					return state.Errorf(state.Conflict, "expose: service %s is at %s there already", o.Name, y.Listen)
				}
			}
		}
	}
	return nil
}
