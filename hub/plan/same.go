package plan

import (
	"bytes"
	"slices"
	"weak"

	"causeway/protocol"
)

// samePeer reports whether a and b say the same. It is asked for each node with each change: reflection would
// take ten times as long.
func samePeer(a, b *protocol.Peer) bool {
	return a.Statement.NodeStatement == b.Statement.NodeStatement && a.Statement.IdentityKey == b.Statement.IdentityKey && bytes.Equal(a.Statement.Signature, b.Statement.Signature) &&
		a.Name == b.Name && a.Site == b.Site && a.Direct == b.Direct && sameList(a.Overlay, b.Overlay) && sameList(a.Routes, b.Routes) && sameList(a.Sources, b.Sources) && sameList(a.Candidates, b.Candidates)
}

// sameList tells apart what encoding/json does: nil, and empty.
func sameList[T comparable](a, b []T) bool { return (a == nil) == (b == nil) && slices.Equal(a, b) }

// sameSelf reports whether a and b say the same.
func sameSelf(a, b *protocol.NetmapSelf) bool {
	return a.Number == b.Number && a.Name == b.Name && a.Site == b.Site && sameList(a.Overlay, b.Overlay) && sameList(a.Routes, b.Routes) &&
		a.KeyEpoch == b.KeyEpoch && a.KeyOverlap == b.KeyOverlap && a.RotateKeys == b.RotateKeys &&
		(a.Upgrade == b.Upgrade || a.Upgrade != nil && b.Upgrade != nil && *a.Upgrade == *b.Upgrade)
}

// sharedSelf is x, the one of v if it is the same.
func (v *Netmaps) sharedSelf(x *protocol.NetmapSelf) *protocol.NetmapSelf {
	if old := v.self[x.Number]; old != nil && sameSelf(old, x) {
		return old
	}
	return x
}

// delta is what differs between the peers of two Netmaps, for all nodes. Almost all agents hold the Netmaps before,
// so the last two are kept.
type delta struct {
	from    weak.Pointer[Netmaps] // or each would keep all before it
	numbers []protocol.NodeNumber // in order
}

// since lists the peers that are not the same in held.
func (v *Netmaps) since(held *Netmaps) []protocol.NodeNumber {
	v.mu.Lock()
	defer v.mu.Unlock()
	from := weak.Make(held)
	for _, d := range v.deltas {
		if d.from == from {
			return d.numbers
		}
	}
	d := delta{from: from}
	olds, news := held.peers, v.peers
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
	v.deltas = append(v.deltas, d)
	if len(v.deltas) > 2 {
		v.deltas = v.deltas[1:]
	}
	return d.numbers
}
