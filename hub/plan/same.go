package plan

import (
	"bytes"
	"slices"

	"causeway/protocol"
)

// samePeer reports whether a and b say the same. It is asked for each node with each change: reflection would
// take ten times as long.
func samePeer(a, b *protocol.Peer) bool {
	return a.Statement.NodeStatement == b.Statement.NodeStatement && a.Statement.IdentityKey == b.Statement.IdentityKey && bytes.Equal(a.Statement.Signature, b.Statement.Signature) &&
		a.Name == b.Name && a.Site == b.Site && a.Direct == b.Direct && sameList(a.Overlay, b.Overlay) && sameList(a.Routes, b.Routes) && sameList(a.Sources, b.Sources) && sameList(a.Candidates, b.Candidates) && sameList(a.Classes, b.Classes)
}

// sameList tells apart what encoding/json does: nil, and empty.
func sameList[T comparable](a, b []T) bool { return (a == nil) == (b == nil) && slices.Equal(a, b) }

// sameSelf reports whether a and b say the same.
func sameSelf(a, b *protocol.NetmapSelf) bool {
	return a.Number == b.Number && a.Name == b.Name && a.Site == b.Site && sameList(a.Overlay, b.Overlay) && sameList(a.Routes, b.Routes) &&
		a.KeyEpoch == b.KeyEpoch && a.KeyOverlap == b.KeyOverlap && a.RotateKeys == b.RotateKeys && sameList(a.Classes, b.Classes) &&
		(a.Upgrade == b.Upgrade || a.Upgrade != nil && b.Upgrade != nil && *a.Upgrade == *b.Upgrade)
}

// sharedSelf is x, the one of v if it is the same.
func (v *Netmaps) sharedSelf(x *protocol.NetmapSelf) *protocol.NetmapSelf {
	if old := v.self[x.Number]; old != nil && sameSelf(old, x) {
		return old
	}
	return x
}
