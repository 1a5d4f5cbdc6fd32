// Package declare turns the documents of 'causeway apply' into changes of a draft, with what
// they differ in: a file for each kind that has rules of its own, one for declared objects and one
// for what is pruned.
// It has no I/O.
package declare

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"causeway/hub/api"
	"causeway/hub/state"
	"causeway/protocol"
)

// Live is what a decision needs beside the state.
type Live struct {
	Who string // who decides, as in the audit
	// Announced are the routes that a node announces and nobody decided on; see state.Waiting.
	Announced func(protocol.NodeNumber) []netip.Prefix
}

// apply is one Apply under way.
type apply struct {
	d    *state.Draft
	live Live
	step *api.ApplyStep
}

// Apply makes the changes that documents ask for, in their order, and takes away what prune selects and
// no document is of. An error names the document, and leaves a draft that is of no use.
func Apply(d *state.Draft, docs []api.ApplyDocument, prune []string, live Live) ([]api.ApplyStep, error) {
	going, err := pruned(d.State, docs, prune)
	if err != nil {
		return nil, err
	}
	// First what nothing names, so that its place is free for what is declared; then what is named
	// by objects that a document changes.
	later := going.take(d)
	steps := make([]api.ApplyStep, len(docs), len(docs)+len(going))
	for i, doc := range docs {
		steps[i] = api.ApplyStep{At: doc.At, Action: "none"}
		a := &apply{d: d, live: live, step: &steps[i]}
		if err := a.document(doc.Document); err != nil {
			return nil, located(doc.At, i, err)
		}
		if a.step.Action == "none" && len(a.step.Diff) > 0 {
			a.step.Action = "change"
		}
	}
	if later = later.take(d); len(later) > 0 {
		return nil, fmt.Errorf("%s cannot be pruned: %w", later[0].key, later[0].err)
	}
	for _, g := range going {
		steps = append(steps, api.ApplyStep{Object: g.key.String(), Action: "delete", Diff: []string{"- name: " + g.key.Name}})
	}
	return steps, nil
}

// located says where a document stands that is refused; the kind of the error stays.
func located(at string, i int, err error) error {
	if at == "" {
		at = fmt.Sprintf("document %d", i+1)
	}
	kind := state.Invalid
	var e *state.Error
	if errors.As(err, &e) {
		kind = e.Kind
	}
	return state.Errorf(kind, "%s: %s", protocol.OneLine(at, 256), err)
}

func (a *apply) document(b json.RawMessage) error {
	var head struct {
		Kind string `json:"kind"`
		Name string `json:"name"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return state.Errorf(state.Invalid, "it is no document: %s", err)
	}
	switch kind := strings.ToLower(head.Kind); kind {
	case "":
		return state.Errorf(state.Invalid, "kind is missing; use %s", Kinds())
	case "node":
		return read(b, a.node)
	case "route":
		return read(b, a.route)
	default:
		if _, err := state.FindKind(kind); err != nil {
			return state.Errorf(state.Invalid, "kind %.40q is not known; use %s", head.Kind, Kinds())
		}
		return a.object(kind, head.Name, b)
	}
}

// Kinds lists what kinds of documents there are, for a person.
func Kinds() string {
	l := api.DocumentKinds()
	return strings.Join(l[:len(l)-1], ", ") + " or " + l[len(l)-1]
}

// read decodes a document strictly and goes on with it.
func read[T any](b []byte, do func(T) error) error {
	var v T
	if err := state.ReadStrictly(b, &v); err != nil {
		return err
	}
	return do(v)
}

// differs notes a field that is not as the document has it; empty is none.
func (a *apply) differs(field, have, want string) {
	if have == want {
		return
	}
	if have != "" {
		a.step.Diff = append(a.step.Diff, "- "+field+": "+have)
	}
	if want != "" {
		a.step.Diff = append(a.step.Diff, "+ "+field+": "+want)
	}
}

func checkName(what, name string) error {
	if !protocol.ValidName(name) {
		return state.Errorf(state.Invalid, "name: %.80q cannot name a %s: use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'", name, what)
	}
	return nil
}

func checkPrefix(field string, p netip.Prefix) error {
	if !p.IsValid() {
		return state.Errorf(state.Invalid, "%s: not a CIDR such as 10.1.0.0/16", field)
	}
	if p != p.Masked() {
		return state.Errorf(state.Invalid, "%s: %s has host bits set, write %s", field, p, p.Masked())
	}
	return nil
}
