package object

import (
	"bytes"

	"causeway/hub/api"
	"causeway/hub/state"
	"causeway/protocol"
)

// MaxPublicNames is how many services of a cluster have a public name.
const MaxPublicNames = 1024

// publicFree is an error if a service cannot have a public name: another one has it, or there are too many.
func publicFree(st *state.State, name string, p protocol.ServicePublic) error {
	if !p.Said() {
		return nil
	}
	n := 0
	for _, o := range st.ObjectsOf(ServiceKind) {
		if o.Name == name || !bytes.Contains(o.Spec, []byte(`"public"`)) {
			continue
		}
		s, err := specOf[api.ServiceSpec](o)
		if err != nil || !s.Public.Said() {
			continue
		}
		if s.Public.Name == p.Name {
			return state.Errorf(state.Conflict, "public: name: service %s is called %s already", o.Name, p.Name)
		}
		if n++; n >= MaxPublicNames {
			return state.Errorf(state.Full, "public: %d services have a public name, which is all that the hub answers", MaxPublicNames)
		}
	}
	return nil
}
