package plan

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"causeway/hub/policy"
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
func (v *Netmaps) allItems(s *state.State, who *policy.Enforcement, before *Netmaps) {
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
			i := before.items[protocol.ItemKey{Kind: kind, Name: o.Name}]
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
	v.talkItems(who, before)
}

// talkItems adds what nodes are told of who may talk to whom: other items of the same objects for each group.
func (v *Netmaps) talkItems(who *policy.Enforcement, before *Netmaps) {
	v.talk = map[string]*item{}
	if who == nil {
		return
	}
	groups := make([][]*item, who.Len())
	for g := range groups {
		for _, x := range who.Items[g] {
			key := fmt.Sprintf("%s/%s/%d/%s", x.Kind, x.Name, x.Generation, x.Body)
			i := cmp.Or(v.talk[key], before.talk[key])
			if i == nil {
				i = newItem(x)
			}
			v.talk[key], groups[g] = i, append(groups[g], i)
		}
	}
	for n, g := range who.Nodes {
		l := slices.Concat(v.itemsBy[n], groups[g])
		slices.SortFunc(l, func(a, b *item) int { return protocol.CompareItems(a.Item, b.Item) })
		v.itemsBy[n] = l
		for _, kind := range []string{protocol.ItemPolicy, protocol.ItemSegment} {
			if slices.ContainsFunc(groups[g], func(i *item) bool { return i.Kind == kind }) {
				v.requires[n] = append(v.requires[n], protocol.ItemFeature(kind))
			}
		}
	}
}

// itemsOf are node n's items.
func (v *Netmaps) itemsOf(n protocol.NodeNumber) []protocol.Item {
	var out []protocol.Item
	for _, x := range v.allItemsOf(n) {
		out = append(out, x.Item)
	}
	return out
}

// allItemsOf are node n's items, by kind and name but for services, which come last.
func (v *Netmaps) allItemsOf(n protocol.NodeNumber) []*item {
	own, set := v.itemsBy[n], v.services.of(n)
	if len(set.items) == 0 {
		return own
	}
	return slices.Concat(own, set.items)
}

// changedItems puts into u what differs in node n's items between held and v.
func (v *Netmaps) changedItems(held *Netmaps, n protocol.NodeNumber, u *Update) (changed bool) {
	if old, now := held.itemsBy[n], v.itemsBy[n]; !slices.Equal(old, now) {
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
	}
	d := v.services.of(n).since(held.services.of(n))
	u.items, u.Netmap.RemovedItems = append(u.items, d.changed...), append(u.Netmap.RemovedItems, d.removed...)
	return len(u.items)+len(u.Netmap.RemovedItems) > 0
}
