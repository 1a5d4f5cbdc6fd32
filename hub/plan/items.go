package plan

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"causeway/hub/state"
	"causeway/protocol"
)

// item is an item with its JSON, which is made once: Netmaps in which the item is the same share it, and so are
// compared by pointers. It is never changed.
type item struct {
	protocol.Item
	json []byte
}

func newItem(i protocol.Item) *item {
	b, err := json.Marshal(i)
	if err != nil { // its body is JSON that a kind wrote
		panic(fmt.Sprintf("encode item %s %s: %v", i.Kind, i.Name, err))
	}
	return &item{i, b}
}

// allItems computes which node is told what of declared objects, and what it may not go on without. An item that is as
// it was before is the one of before.
func (v *Netmaps) allItems(s *state.State, before map[protocol.ItemKey]*item) {
	v.items, v.itemsBy, v.requires = map[protocol.ItemKey]*item{}, map[protocol.NodeNumber][]*item{}, map[protocol.NodeNumber][]string{}
	for _, kind := range state.ObjectKinds() {
		k, err := state.FindKind(kind)
		teller, tells := k.(state.Teller)
		if err != nil || !tells {
			continue
		}
		feature := protocol.ItemFeature(kind)
		for _, o := range s.ObjectsOf(kind) {
			if !o.Known() {
				continue
			}
			body, nodes := teller.Tells(s, o)
			if len(nodes) == 0 {
				continue
			}
			i := before[protocol.ItemKey{Kind: kind, Name: o.Name}]
			if i == nil || i.Generation != o.Generation || !bytes.Equal(i.Body, body) {
				i = newItem(protocol.Item{Kind: kind, Name: o.Name, Generation: o.Generation, Body: body})
			}
			v.items[i.Key()] = i
			for _, n := range nodes {
				v.itemsBy[n] = append(v.itemsBy[n], i) // kinds and names come in order
				if l := v.requires[n]; k.Essential() && (len(l) == 0 || l[len(l)-1] != feature) {
					v.requires[n] = append(l, feature)
				}
			}
		}
	}
}

// itemsOf are node n's items.
func (v *Netmaps) itemsOf(n protocol.NodeNumber) []protocol.Item {
	out := make([]protocol.Item, len(v.itemsBy[n]))
	for i, x := range v.itemsBy[n] {
		out[i] = x.Item
	}
	return out
}

// changedItems puts into u what differs in node n's items between held and v.
func (v *Netmaps) changedItems(held *Netmaps, n protocol.NodeNumber, u *Update) (changed bool) {
	old, now := held.itemsBy[n], v.itemsBy[n]
	if slices.Equal(old, now) {
		return false
	}
	for _, i := range now {
		if !slices.Contains(old, i) {
			u.items = append(u.items, i)
		}
	}
	for _, i := range old {
		if !slices.ContainsFunc(now, func(x *item) bool { return x.Key() == i.Key() }) {
			u.Netmap.RemovedItems = append(u.Netmap.RemovedItems, i.Key())
		}
	}
	return len(u.items)+len(u.Netmap.RemovedItems) > 0
}
