package plan

import (
	"cmp"
	"slices"
	"sync"
	"weak"

	"causeway/hub/policy"
	"causeway/protocol"
)

// row is the peers that nodes of one group may know, by number: one list for all of them. Each of them may be in
// it itself.
type row struct {
	peers []*entry
	sum   protocol.PeersSum // of all of them

	mu     sync.Mutex
	deltas []delta // from those that agents hold
}

// nobody is the row of those who may know nobody.
var nobody = &row{}

func newRow(peers []*entry) *row {
	r := &row{peers: peers}
	for _, e := range peers {
		r.sum.Add(e.sum)
	}
	return r
}

// find returns the entry of peer n.
func (r *row) find(n protocol.NodeNumber) (*entry, bool) {
	i, ok := slices.BinarySearchFunc(r.peers, n, func(e *entry, n protocol.NodeNumber) int { return cmp.Compare(e.number(), n) })
	if !ok {
		return nil, false
	}
	return r.peers[i], true
}

// rowsOf makes the rows of nodes, where who says who may talk to whom; nil: everybody. A row of before that says
// the same is that one, so that rows are compared by pointers.
func (v *Netmaps) rowsOf(who *policy.Enforcement, before *Netmaps) {
	v.rows, v.shared = make(map[protocol.NodeNumber]*row, len(v.self)), map[protocol.PeersSum]*row{}
	shared := func(peers []*entry) *row {
		r := newRow(peers)
		for _, old := range []*row{v.shared[r.sum], before.shared[r.sum]} {
			if old != nil && slices.Equal(old.peers, peers) {
				r = old
				break
			}
		}
		v.shared[r.sum] = r
		return r
	}
	if who == nil {
		all := shared(v.peers)
		for n := range v.self {
			v.rows[n] = all
		}
		return
	}
	groups := make([]*row, who.Len())
	for n := range v.self {
		g, ok := who.Nodes[n]
		if !ok {
			v.rows[n] = nobody
			continue
		}
		if groups[g] == nil {
			var peers []*entry
			for _, e := range v.peers {
				if other, ok := who.Nodes[e.number()]; ok && who.Talk(g, other) {
					peers = append(peers, e)
				}
			}
			groups[g] = shared(peers)
		}
		v.rows[n] = groups[g]
	}
}

// row is the row of node n.
func (v *Netmaps) row(n protocol.NodeNumber) *row { return cmp.Or(v.rows[n], nobody) }

// delta is what differs between two rows, for all nodes that change from one to the other. Almost all agents hold
// the Netmaps before, so the last ones are kept.
type delta struct {
	from    weak.Pointer[row] // or each would keep all before it
	numbers []protocol.NodeNumber
}

// keptDeltas are those of a row: agents that hold it hold one of the last few, or one of those of other groups.
const keptDeltas = 4

// since lists the peers that are not the same in held, by number.
func (r *row) since(held *row) []protocol.NodeNumber {
	if r == held {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	from := weak.Make(held)
	for _, d := range r.deltas {
		if d.from == from {
			return d.numbers
		}
	}
	d := delta{from: from}
	olds, news := held.peers, r.peers
	for len(olds) > 0 || len(news) > 0 {
		switch {
		case len(news) == 0 || len(olds) > 0 && olds[0].number() < news[0].number():
			d.numbers, olds = append(d.numbers, olds[0].number()), olds[1:]
		case len(olds) == 0 || news[0].number() < olds[0].number():
			d.numbers, news = append(d.numbers, news[0].number()), news[1:]
		default:
			if olds[0] != news[0] {
				d.numbers = append(d.numbers, news[0].number())
			}
			olds, news = olds[1:], news[1:]
		}
	}
	if r.deltas = append(r.deltas, d); len(r.deltas) > keptDeltas {
		r.deltas = r.deltas[1:]
	}
	return d.numbers
}
