// Package object has the kinds of objects that operators declare, a file each. A kind says how
// its documents are read and what forbids one (state.ObjectKind), and what follows from all that are
// declared; it has no I/O. Importing it makes them known.
package object

import (
	"fmt"

	"causeway/hub/state"
)

func init() {
	state.RegisterKind(limits{})
	state.RegisterKind(segments{})
	state.RegisterKind(policies{})
	state.RegisterKind(confirmations{})
	state.RegisterKind(flowLogs{})
	state.RegisterKind(services{})
}

// specOf reads what is stored of an object, which its kind has written.
func specOf[T any](o state.Object) (T, error) {
	var v T
	if err := state.ReadStrictly(o.Spec, &v); err != nil {
		return v, fmt.Errorf("%s: %w", o.Key(), err)
	}
	return v, nil
}
