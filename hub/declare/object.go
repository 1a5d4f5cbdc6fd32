package declare

import (
	"encoding/json"
	"maps"
	"slices"

	"causeway/hub/api"
	"causeway/hub/state"
)

// object declares an object: its document without kind and name is the spec, and what it leaves
// out is none.
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
	before, there := a.d.Objects.Find(key)
	if !there {
		a.step.Action = "create"
		a.differs("name", "", name)
	}
	if err := state.PutObject(a.d, kind, name, b); err != nil {
		return err
	}
	had, has := api.SpecFields(before.Spec), api.SpecFields(a.d.Objects.Get(key).Spec)
	names := maps.Clone(has)
	maps.Copy(names, had)
	for _, f := range slices.Sorted(maps.Keys(names)) {
		a.differs(f, had[f], has[f])
	}
	return nil
}
