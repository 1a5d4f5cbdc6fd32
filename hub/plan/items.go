package plan

import (
	"bytes"
	"slices"

	"causeway/hub/state"
	"causeway/protocol"
)

// items computes which node is told what of declared objects. An item that is as it was before is
// the one of before, so that netmaps are compared by pointers.
func items(s *state.State, before map[protocol.ItemKey]*protocol.Item) (all map[protocol.ItemKey]*protocol.Item, of map[protocol.NodeNumber][]*protocol.Item) {
	all, of = map[protocol.ItemKey]*protocol.Item{}, map[protocol.NodeNumber][]*protocol.Item{}
	for _, kind := range state.ObjectKinds() {
		for _, o := range s.ObjectsOf(kind) {
			body, nodes := o.Tells(s)
			if len(nodes) == 0 {
				continue
			}
			i := &protocol.Item{Kind: o.Kind, Name: o.Name, Generation: o.Generation, Body: body}
			if b := before[i.Key()]; b != nil && b.Generation == i.Generation && bytes.Equal(b.Body, i.Body) {
				i = b
			}
			all[i.Key()] = i
			for _, n := range nodes {
				of[n] = append(of[n], i) // kinds and names come in order
			}
		}
	}
	return all, of
}

// itemsOf are node n's items.
func (v *Netmaps) itemsOf(n protocol.NodeNumber) []protocol.Item {
	out := make([]protocol.Item, len(v.itemsBy[n]))
	for i, x := range v.itemsBy[n] {
		out[i] = *x
	}
	return out
}

// requires are the features without which node n may not go on with its items.
func (v *Netmaps) requires(n protocol.NodeNumber) (out []string) {
	for _, i := range v.itemsBy[n] { // by kind
		if k, err := state.FindKind(i.Kind); err == nil && k.Essential() {
			if f := protocol.ItemFeature(i.Kind); len(out) == 0 || out[len(out)-1] != f {
				out = append(out, f)
			}
		}
	}
	return out
}

// changedItems puts into u what differs in node n's items between held and v.
func (v *Netmaps) changedItems(held *Netmaps, n protocol.NodeNumber, u *Update) (changed bool) {
	u.Netmap.AllItems, u.Netmap.Items = false, nil
	old, now := held.itemsBy[n], v.itemsBy[n]
	for _, i := range now {
		if !slices.Contains(old, i) {
			u.Netmap.Items = append(u.Netmap.Items, *i)
		}
	}
	for _, i := range old {
		if !slices.ContainsFunc(now, func(x *protocol.Item) bool { return x.Key() == i.Key() }) {
			u.Netmap.RemovedItems = append(u.Netmap.RemovedItems, i.Key())
		}
	}
	return len(u.Netmap.Items)+len(u.Netmap.RemovedItems) > 0
}
