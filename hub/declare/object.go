package declare

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"causeway/hub/api"
	"causeway/hub/state"
)

// object declares an object: its document without kind and name is the spec.
func (a *apply) object(kind, name string, document json.RawMessage) error {
	if err := checkName(kind, name); err != nil {
		return err
	}
	a.step.Object = kind + " " + name
	var spec map[string]json.RawMessage
	if err := json.Unmarshal(document, &spec); err != nil {
		return state.Errorf(state.Invalid, "%s", err)
	}
	delete(spec, "kind")
	delete(spec, "name")
	b, err := json.Marshal(spec)
	if err != nil {
		return state.Errorf(state.Invalid, "%s", err)
	}
	key := state.ObjectKey{Kind: kind, Name: name}
	before, there := a.d.Object(key)
	if !there {
		a.step.Action = "create"
		a.differs("name", "", name)
	}
	if err := Put(a.d, key, b, a.live); err != nil {
		return err
	}
	after, _ := a.d.Object(key)
	if bytes.Equal(before.Spec, after.Spec) {
		return nil
	}
	had, has := fields(before.Spec), fields(after.Spec)
	names := maps.Clone(has)
	maps.Copy(names, had)
	for _, f := range slices.Sorted(maps.Keys(names)) {
		if _, named := spec[f]; named || there { // and of a new one no defaults
			a.differs(f, had[f], has[f])
		}
	}
	return nil
}

// Put declares an object. What a site's nodes announce may be approved by its ranges.
func Put(d *state.Draft, key state.ObjectKey, spec json.RawMessage, live Live) error {
	if key.Kind == state.KindSite {
		for _, n := range d.LiveNodesOf(key.Name) {
			d.Announced(n, live.Announced(n))
		}
	}
	return state.PutObject(d, key.Kind, key.Name, spec)
}

// fields are a spec's fields as texts.
func fields(spec json.RawMessage) map[string]string {
	out := api.SpecFields(spec)
	for k, v := range out {
		var l []string
		if json.Unmarshal([]byte(v), &l) == nil && l != nil {
			out[k] = strings.Join(l, ", ")
		}
	}
	return out
}
