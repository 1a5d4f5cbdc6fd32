package declare

import (
	"encoding/json"
	"maps"
	"path"
	"slices"
	"strings"

	"causeway/hub/api"
	"causeway/hub/state"
)

// gone is something that is to be taken away.
type gone struct {
	key state.ObjectKey
	err error // why it cannot be now
}

type goners []gone

// pruned lists what the selectors select and no document is of, by kind and name.
func pruned(s *state.State, docs []api.ApplyDocument, selectors []string) (goners, error) {
	keep := map[state.ObjectKey]bool{}
	for _, doc := range docs {
		var head struct{ Kind, Name string }
		_ = json.Unmarshal(doc.Document, &head) // what does not read is refused when it is applied
		keep[state.ObjectKey{Kind: strings.ToLower(head.Kind), Name: head.Name}] = true
	}
	found := map[state.ObjectKey]bool{}
	for _, sel := range selectors {
		kind, pattern, named := strings.Cut(sel, "/")
		if !named {
			pattern = "*"
		}
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
			return nil, state.Errorf(state.Invalid, "prune %.80q: write KIND, or KIND/PATTERN such as limit/sh-*", sel)
		}
		names, err := namesOf(s, kind)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			key := state.ObjectKey{Kind: kind, Name: name}
			if ok, _ := path.Match(pattern, name); ok && !keep[key] {
				found[key] = true
			}
		}
	}
	var out goners
	for _, key := range slices.SortedFunc(maps.Keys(found), state.CompareKeys) {
		out = append(out, gone{key: key})
	}
	return out, nil
}

func namesOf(s *state.State, kind string) (names []string, err error) {
	if _, err := state.FindKind(kind); err != nil {
		return nil, state.Errorf(state.Invalid, "prune: kind %.40q is not known, or cannot be pruned; use %s", kind, strings.Join(state.ObjectKinds(), ", "))
	}
	for _, o := range s.ObjectsOf(kind) {
		names = append(names, o.Name)
	}
	return names, nil
}

// take takes away what it can, the ones that name others first, and returns what it cannot.
func (l goners) take(d *state.Draft) (left goners) {
	for before := -1; len(l) != before; l = left {
		before, left = len(l), nil
		for _, g := range l {
			if g.err = d.Add(state.ObjectDeleted(g.key)); g.err != nil {
				left = append(left, g)
			}
		}
	}
	return left
}
