package protocol

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
)

// Limits of the items of one netmap.
const (
	MaxItems    = 4096
	MaxItemBody = 64 << 10 // bytes
)

// Item is a part of a netmap that operators declared: what follows from one declared object for
// one node. Names and bodies are the kind's own; an agent that does not know a kind leaves its items
// alone, unless the netmap requires ItemFeature of it.
type Item struct {
	Kind       string          `json:"kind"`
	Name       string          `json:"name"`
	Generation uint64          `json:"generation"` // transaction that changed the object last
	Body       json.RawMessage `json:"body"`
}

// ItemKey names an item.
type ItemKey struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// Key names the item.
func (i Item) Key() ItemKey { return ItemKey{i.Kind, i.Name} }

// ItemFeature is what a netmap requires, and an agent's Hello has, of a kind of items.
func ItemFeature(kind string) string { return "items/" + kind }

// CompareItems orders items by kind and name.
func CompareItems(a, b Item) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
}

// Check says what is wrong with an item, whatever its kind.
func (i Item) Check() error {
	if !ValidName(i.Kind) || !ValidName(i.Name) {
		return fmt.Errorf("%.40q %.40q names no item", i.Kind, i.Name)
	}
	if len(i.Body) > MaxItemBody {
		return fmt.Errorf("%s %s: %d bytes, at most %d", i.Kind, i.Name, len(i.Body), MaxItemBody)
	}
	return nil
}

// items are those that result from receiving n while holding held; see Apply.
func (n Netmap) items(held *Netmap) ([]Item, error) {
	all := map[ItemKey]Item{}
	if n.Base != nil && !n.AllItems {
		for _, i := range held.Items {
			all[i.Key()] = i
		}
		for _, k := range n.RemovedItems {
			delete(all, k)
		}
	}
	for _, i := range n.Items {
		if err := i.Check(); err != nil {
			return nil, err
		}
		all[i.Key()] = i
	}
	if len(all) > MaxItems {
		return nil, fmt.Errorf("netmap of %d items, at most %d", len(all), MaxItems)
	}
	var out []Item
	for _, i := range all {
		out = append(out, i)
	}
	slices.SortFunc(out, CompareItems)
	return out, nil
}
