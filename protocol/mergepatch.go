package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
)

// JSON merge patches (RFC 7396), by which deltas of the inventory say what changed. In
// a patch null takes a member away, an object is merged, and anything else replaces what
// was there. So a document whose members are null cannot be expressed, and
// Inventory has none.

// maxPatchDepth bounds the nesting of documents; an Inventory has four levels.
const maxPatchDepth = 16

var (
	errNoObject = errors.New("not a JSON object")
	errTooDeep  = errors.New("JSON nested too deeply")
)

// MergePatch returns doc with patch applied; both are JSON objects.
func MergePatch(doc, patch []byte) ([]byte, error) {
	d, err := decodeObject(doc)
	if err != nil {
		return nil, err
	}
	p, err := decodeObject(patch)
	if err != nil {
		return nil, err
	}
	return json.Marshal(merge(d, p))
}

// DiffPatch returns the patch that turns from into to, and false if there is
// nothing to change. Both are JSON objects without null members.
func DiffPatch(from, to []byte) ([]byte, bool, error) {
	f, err := decodeObject(from)
	if err != nil {
		return nil, false, err
	}
	t, err := decodeObject(to)
	if err != nil {
		return nil, false, err
	}
	d := diff(f, t)
	if len(d) == 0 {
		return nil, false, nil
	}
	b, err := json.Marshal(d)
	return b, true, err
}

// decodeObject keeps numbers as they are written: sizes in bytes do not fit a float64.
func decodeObject(b []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v map[string]any
	if err := dec.Decode(&v); err != nil || v == nil {
		return nil, errNoObject
	}
	if dec.More() {
		return nil, errNoObject
	}
	if depth(v) > maxPatchDepth {
		return nil, errTooDeep
	}
	return v, nil
}

// depth is how deeply v is nested, looked at no further than it matters.
func depth(v any) int {
	d := 0
	switch v := v.(type) {
	case map[string]any:
		for _, x := range v {
			d = max(d, depth(x))
		}
	case []any:
		for _, x := range v {
			d = max(d, depth(x))
		}
	default:
		return 0
	}
	return d + 1
}

func merge(doc, patch map[string]any) map[string]any {
	if doc == nil {
		doc = map[string]any{}
	}
	for k, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(doc, k)
		case map[string]any:
			under, _ := doc[k].(map[string]any)
			doc[k] = merge(under, v)
		default:
			doc[k] = v
		}
	}
	return doc
}

func diff(from, to map[string]any) map[string]any {
	out := map[string]any{}
	for k := range from {
		if _, ok := to[k]; !ok {
			out[k] = nil
		}
	}
	for k, t := range to {
		f, ok := from[k]
		fm, fo := f.(map[string]any)
		tm, to := t.(map[string]any)
		switch {
		case ok && fo && to:
			if d := diff(fm, tm); len(d) > 0 {
				out[k] = d
			}
		case ok && reflect.DeepEqual(f, t):
		case ok && to: // what was no object is replaced by one: merging does that
			out[k] = tm
		default:
			out[k] = t
		}
	}
	return out
}
