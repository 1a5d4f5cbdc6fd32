// Package items applies what operators declared, as far as it concerns this node: an Applier for
// each kind, a file each, run in the order of Appliers.
package items

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"causeway/protocol"
)

// Applier is a kind of items as this node has it. Apply and Text are called one at a time.
type Applier interface {
	Kind() string
	// Check says why this node does not take an item; nil: it does. It is pure.
	Check(protocol.Item) error
	// Apply makes the node as all items of the kind that were taken say: whole state, idempotent. Without
	// any it takes everything back.
	Apply(context.Context, []protocol.Item) error
	// Text words an item that was taken for whoever looks on the host.
	Text(protocol.Item) string
}

// appliers are all kinds that this agent knows, in the order in which they are applied.
var appliers = []Applier{limits{}}

// Appliers are all kinds that this agent knows, in the order in which they are applied.
func Appliers() []Applier { return slices.Clone(appliers) }

// Kinds are the names of the appliers' kinds.
func Kinds() (l []string) {
	for _, a := range Appliers() {
		l = append(l, a.Kind())
	}
	return l
}

// Held is an item that the node has taken, in words.
type Held struct {
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	Generation uint64 `json:"generation"`
	Text       string `json:"text"`
}

// Apply applies a netmap's items. What an applier refuses is told and the rest is applied; what
// failed is told by its kind. Items of kinds that this agent does not know are left alone: a netmap that
// cannot do without them says so by what it requires.
func Apply(ctx context.Context, all []protocol.Item) (held []Held, refused []protocol.RefusedPart, errs []string) {
	for _, a := range Appliers() {
		var taken []protocol.Item
		for _, i := range all {
			if i.Kind != a.Kind() {
				continue
			}
			if err := a.Check(i); err != nil {
				refused = append(refused, protocol.RefusedPart{Kind: i.Kind, Name: i.Name, Reason: err.Error()})
				continue
			}
			taken = append(taken, i)
		}
		if err := a.Apply(ctx, taken); err != nil {
			errs = append(errs, fmt.Sprintf("%s: %s", a.Kind(), err))
			continue
		}
		for _, i := range taken {
			held = append(held, Held{i.Kind, i.Name, i.Generation, protocol.OneLine(a.Text(i), 256)})
		}
	}
	return held, refused, errs
}

// bodyOf reads an item's body. Fields that this version does not know are left out: a kind that
// cannot bear that has another name.
func bodyOf[T any](i protocol.Item) (v T, err error) {
	if err := json.Unmarshal(i.Body, &v); err != nil {
		return v, fmt.Errorf("its body does not read: %w", err)
	}
	return v, nil
}
