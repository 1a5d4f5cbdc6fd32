package inline

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
)

// routes is cryptokey routing: the longest prefix that holds an address names
// the peer, for sending, and for checking the source of what was received. A
// table does not change once it is in use; a new one replaces it.
type routes struct {
	v4, v6  trie
	sources map[*peer][]netip.Prefix // further ones that a peer may send from; see engine.Peer
}

// mayShare reports whether a peer may send from a packet's source, which is owned
// by another peer.
func (r *routes) mayShare(p *peer, pkt []byte, v6 bool) bool {
	all := r.sources[p]
	if len(all) == 0 {
		return false
	}
	a := pkt[12:16]
	if v6 {
		a = pkt[8:24]
	}
	src, _ := netip.AddrFromSlice(a)
	return slices.ContainsFunc(all, func(x netip.Prefix) bool { return x.Contains(src) })
}

// key is an address left-aligned in 128 bits.
type key struct{ hi, lo uint64 }

func key4(b []byte) key { return key{uint64(binary.BigEndian.Uint32(b)) << 32, 0} }
func key6(b []byte) key {
	return key{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

// common is the length of the prefix that two keys share.
func (k key) common(o key) int {
	if d := k.hi ^ o.hi; d != 0 {
		return bits.LeadingZeros64(d)
	}
	return 64 + bits.LeadingZeros64(k.lo^o.lo)
}

func (k key) bit(i int) int {
	if i < 64 {
		return int(k.hi >> (63 - i) & 1)
	}
	return int(k.lo >> (127 - i) & 1)
}

// trie is a path-compressed binary tree in one slice. Index 0 is no node.
type trie struct {
	nodes []node
	root  int32
}

type node struct {
	key   key
	bits  int
	child [2]int32
	peer  *peer
}

func (r *routes) insert(p netip.Prefix, to *peer) {
	p = p.Masked()
	a := p.Addr().AsSlice()
	if p.Addr().Is4() {
		r.v4.insert(key4(a), p.Bits(), to)
	} else {
		r.v6.insert(key6(a), p.Bits(), to)
	}
}

func (t *trie) add(n node) int32 {
	if len(t.nodes) == 0 {
		t.nodes = append(t.nodes, node{})
	}
	t.nodes = append(t.nodes, n)
	return int32(len(t.nodes) - 1)
}

// insert adds a masked prefix.
func (t *trie) insert(k key, length int, to *peer) {
	parent, side, at := int32(0), 0, t.root
	for {
		link := func(n int32) {
			if parent == 0 {
				t.root = n
			} else {
				t.nodes[parent].child[side] = n
			}
		}
		if at == 0 {
			link(t.add(node{key: k, bits: length, peer: to}))
			return
		}
		n := &t.nodes[at]
		c := min(k.common(n.key), length, n.bits)
		switch {
		case c == n.bits && c == length:
			n.peer = to
			return
		case c == n.bits: // below n
			parent, side, at = at, k.bit(c), n.child[k.bit(c)]
			continue
		case c == length: // between the parent and n
			in := node{key: k, bits: length, peer: to}
			in.child[n.key.bit(c)] = at
			link(t.add(in))
			return
		}
		fork := node{key: mask(k, c), bits: c}
		fork.child[n.key.bit(c)] = at
		fork.child[k.bit(c)] = t.add(node{key: k, bits: length, peer: to})
		link(t.add(fork))
		return
	}
}

func mask(k key, n int) key {
	switch {
	case n == 0:
		return key{}
	case n <= 64:
		return key{k.hi &^ (1<<(64-n) - 1), 0}
	}
	return key{k.hi, k.lo &^ (1<<(128-n) - 1)}
}

// lookup returns the peer of the longest prefix that holds k, or nil.
func (t *trie) lookup(k key) (p *peer) {
	for at := t.root; at != 0; {
		n := &t.nodes[at]
		if k.common(n.key) < n.bits {
			break
		}
		if n.peer != nil {
			p = n.peer
		}
		if n.bits == 128 {
			break
		}
		at = n.child[k.bit(n.bits)]
	}
	return p
}

// destination looks up where a packet goes, long enough to hold its IP header.
func (r *routes) destination(pkt []byte, v6 bool) *peer {
	if v6 {
		return r.v6.lookup(key6(pkt[24:]))
	}
	return r.v4.lookup(key4(pkt[16:]))
}
