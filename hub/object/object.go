// Package object has the kinds of objects that operators declare, a file each. A kind says how
// its documents are read and what forbids one (state.ObjectKind), and what follows from all that are
// declared; it has no I/O. Importing it makes them known.
package object

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"causeway/hub/state"
)

func init() {
	state.RegisterKind(limits{})
}

// read decodes a spec strictly: one JSON object, with no other fields than v's.
func read(spec json.RawMessage, v any) error {
	d := json.NewDecoder(bytes.NewReader(spec))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the object")
	}
	return nil
}

// specOf reads what is stored of an object, which its kind has written.
func specOf[T any](o state.Object) (T, error) {
	var v T
	if err := read(o.Spec, &v); err != nil {
		return v, fmt.Errorf("%s: %w", o.Key(), err)
	}
	return v, nil
}
