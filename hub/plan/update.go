package plan

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"causeway/protocol"
)

// entry is a peer with its JSON, which is made once: Netmaps in which
// the peer is the same share the entry. So what a change costs grows with the
// number of nodes and that of changed peers, and not with the product of nodes
// and nodes. It is never changed.
type entry struct {
	peer protocol.Peer
	json []byte
	sum  protocol.PeersSum
}

func newEntry(p protocol.Peer) *entry {
	b, err := json.Marshal(p)
	if err != nil { // a Peer holds nothing that does not encode
		panic(fmt.Sprintf("encode peer %d: %v", p.Number(), err))
	}
	return &entry{p, b, protocol.SumPeer(b)}
}

func (e *entry) number() protocol.NodeNumber { return e.peer.Number() }

// entry is p's, the one of v if it is the same.
func (v *Netmaps) entry(p protocol.Peer) *entry {
	if e, ok := (&row{peers: v.peers}).find(p.Number()); ok && samePeer(&e.peer, &p) {
		return e
	}
	return newEntry(p)
}

// hidden lists the peers that carry a prefix which node n announces itself.
func (v *Netmaps) hidden(n protocol.NodeNumber) (out []protocol.NodeNumber) {
	for _, p := range v.own[n] {
		if o := v.Owner(n, p); o != 0 && o != n && !slices.Contains(out, o) {
			out = append(out, o)
		}
	}
	return out
}

// owns reports whether node n announces p, approved.
func (v *Netmaps) owns(n protocol.NodeNumber, p netip.Prefix) bool {
	_, ok := slices.BinarySearchFunc(v.own[n], p, comparePrefixes)
	return ok
}

// without is e without the routes that node n announces itself.
func (v *Netmaps) without(n protocol.NodeNumber, e *entry) *entry {
	p := e.peer
	p.Routes = slices.DeleteFunc(slices.Clone(p.Routes), func(r netip.Prefix) bool { return v.owns(n, r) })
	if len(p.Routes) == 0 {
		p.Routes = nil // as of one that never had any: the same in JSON, too
	}
	return newEntry(p)
}

// walk goes over the peers in one node's netmap by number. It looks into an entry
// only where it has to: there are nodes times nodes of these steps.
type walk struct {
	v      *Netmaps
	node   protocol.NodeNumber
	own    *entry
	hidden []protocol.NodeNumber
	rest   []*entry
}

func (v *Netmaps) walk(n protocol.NodeNumber) *walk {
	r := v.row(n)
	w := &walk{v: v, node: n, hidden: v.hidden(n), rest: r.peers}
	w.own, _ = r.find(n)
	return w
}

// next returns the next peer as the node sees it, nil at the end: what it
// announces itself does not come back to it.
func (w *walk) next() *entry {
	for len(w.rest) > 0 {
		e := w.rest[0]
		w.rest = w.rest[1:]
		if e == w.own {
			continue
		}
		if len(w.hidden) > 0 && slices.Contains(w.hidden, e.number()) {
			return w.v.without(w.node, e)
		}
		return e
	}
	return nil
}

// Sum is the digest of the peers in node n's netmap.
func (v *Netmaps) Sum(n protocol.NodeNumber) protocol.PeersSum {
	r := v.row(n)
	sum := r.sum
	if e, ok := r.find(n); ok {
		sum.Add(e.sum)
	}
	for _, m := range v.hidden(n) {
		if e, ok := r.find(m); ok {
			sum.Add(e.sum)
			sum.Add(v.without(n, e).sum)
		}
	}
	return sum
}

// Update is a netmap or a change to one, for one agent.
type Update struct {
	Netmap protocol.Netmap // without its peers and items
	peers  []*entry
	items  []*item
}

// Full is node n's whole netmap, as version. n is a live node.
func (v *Netmaps) Full(n protocol.NodeNumber, version protocol.NetmapVersion) Update {
	u := Update{peers: make([]*entry, 0, len(v.row(n).peers)), items: v.allItemsOf(n)}
	u.Netmap, _ = v.frame(n)
	u.Netmap.NetmapVersion = version
	w := v.walk(n)
	for e := w.next(); e != nil; e = w.next() {
		u.peers = append(u.peers, e)
	}
	return u
}

// Confirm is what an agent is sent that holds the right peers already, in a
// netmap of version base: everything else.
func (v *Netmaps) Confirm(n protocol.NodeNumber, base, version protocol.NetmapVersion) Update {
	u := Update{items: v.allItemsOf(n)}
	u.Netmap, _ = v.frame(n)
	u.Netmap.NetmapVersion, u.Netmap.Base, u.Netmap.AllItems = version, &base, true
	return u
}

// view is the peer of that number as node n sees it; nil: it does not. hidden is what v.hidden says of n.
func (v *Netmaps) view(n, number protocol.NodeNumber, hidden []protocol.NodeNumber) *entry {
	e, ok := v.row(n).find(number)
	if !ok || n == number {
		return nil
	}
	if slices.Contains(hidden, number) {
		return v.without(n, e)
	}
	return e
}

// Change is the change from node n's netmap in held, which the agent has as
// version base, to that in v. changed is false if they say the same.
func (v *Netmaps) Change(held *Netmaps, n protocol.NodeNumber, base, version protocol.NetmapVersion) (u Update, changed bool) {
	u.Netmap, _ = v.frame(n)
	u.Netmap.NetmapVersion, u.Netmap.Base = version, &base
	was, _ := held.frame(n)
	if was.HubList == u.Netmap.HubList || reflect.DeepEqual(was.HubList, u.Netmap.HubList) {
		u.Netmap.HubList = nil
	}
	if was.Gone == u.Netmap.Gone || reflect.DeepEqual(was.Gone, u.Netmap.Gone) {
		u.Netmap.Gone = nil
	}
	changed = u.Netmap.HubList != nil || u.Netmap.Gone != nil || was.MaxAge != u.Netmap.MaxAge || !sameSelf(&was.Self, &u.Netmap.Self)
	changed = v.changedItems(held, n, &u) || changed
	if v == held {
		return u, changed
	}
	v.changedPeers(held, n, &u)
	return u, changed || len(u.peers) > 0 || len(u.Netmap.Removed) > 0
}

// changedPeers puts into u what differs in node n's peers between held and v. It looks at those alone that
// differ for anybody, or of which n does not see all.
func (v *Netmaps) changedPeers(held *Netmaps, n protocol.NodeNumber, u *Update) {
	numbers, now, before := v.row(n).since(held.row(n)), v.hidden(n), held.hidden(n)
	if len(now)+len(before) > 0 {
		numbers = slices.Concat(numbers, now, before)
		slices.Sort(numbers)
		numbers = slices.Compact(numbers)
	}
	for _, m := range numbers {
		old, e := held.view(n, m, before), v.view(n, m, now)
		switch {
		case old == e:
		case e == nil:
			u.Netmap.Removed = append(u.Netmap.Removed, m)
		case old == nil || !bytes.Equal(old.json, e.json):
			u.peers = append(u.peers, e)
		}
	}
}

var (
	comma      = []byte{','}
	beginItems = []byte(`],"items":[`) // behind the peers
)

// Parts are the pieces of the update's JSON, in order. They are shared and must
// not be changed.
func (u Update) Parts() ([][]byte, error) {
	head, tail, err := protocol.SplitNetmap(u.Netmap)
	if err != nil {
		return nil, err
	}
	parts := make([][]byte, 0, 2*(len(u.peers)+len(u.items))+3)
	parts = append(parts, head)
	for i, e := range u.peers {
		if i > 0 {
			parts = append(parts, comma)
		}
		parts = append(parts, e.json)
	}
	for i, x := range u.items {
		if i == 0 {
			parts = append(parts, beginItems)
		} else {
			parts = append(parts, comma)
		}
		parts = append(parts, x.json)
	}
	return append(parts, tail), nil // which ends the list that is open
}
