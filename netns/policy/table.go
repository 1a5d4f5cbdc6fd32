package policy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
)

// Table writes the table, and remembers what it wrote, so that a change costs what changes. Its
// methods work in the network namespace of the calling thread, need CAP_NET_ADMIN, and may
// be called concurrently.
type Table struct {
	mu      sync.Mutex
	have    *written  // nil: not known what is there
	ours    [2]uint32 // generations of the last write, first and last, if nobody else wrote meanwhile
	handles string    // of its chains, rules and sets, after the last write
	doubt   bool      // others touched it, or may have
	deaf    error     // why nobody can hear what is refused

	listen func() (*netlink.Conn, error) // to nftables
}

// written is what stands in the kernel.
type written struct {
	config  Config
	content content
	ids     map[string]uint32 // of lists
}

// NewTable returns a table that knows nothing of what is there: the first Set writes all.
func NewTable() *Table { return &Table{listen: listen} }

// Set makes the table what the config says. Each packet is judged by what was or by what is then,
// and what is open in both passes. After an error one of the two holds, and the next Set writes all.
func (t *Table) Set(c Config) error {
	c, err := c.normal()
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.set(c, compile(c))
}

// set is Set; t.mu is held.
func (t *Table) set(c Config, want content) error {
	var err error
	before, _ := kernel.NftGeneration()
	next := &written{config: c, content: want}
	if h := t.have; h != nil && !t.doubt && sameFrame(h.config, c) {
		next.ids, err = newIDs(h.ids, want.lists)
		if err == nil {
			err = change(h, next)
		}
	} else {
		var ids map[string]uint32
		if h != nil {
			ids = h.ids
		}
		if next.ids, err = newIDs(ids, want.lists); err == nil {
			if err = whole(next); err == nil {
				t.deaf = tellRefused()
			}
		}
	}
	if err != nil {
		t.have = nil // it may be gone, or another's
		return fmt.Errorf("set nftables table %s: %w", TableName, err)
	}
	t.have, t.doubt = next, false
	after, _ := kernel.NftGeneration()
	t.ours = [2]uint32{}
	if after-before <= 3 { // as many as a change takes
		t.ours = [2]uint32{before + 1, after}
	}
	t.handles, err = kernel.NftHandles(TableName)
	return err
}

// sameFrame reports whether two configs differ in elements and rules by name alone.
func sameFrame(a, b Config) bool {
	return a.Interface == b.Interface && slices.Equal(a.Own, b.Own) && slices.Equal(a.Hubs, b.Hubs) && slices.Equal(a.Overlay, b.Overlay)
}

// firstList is the lowest number of a list. No class is as high, so that one is never taken for
// the other in a packet's priority.
const firstList = uint32(MaxClass) + 1

// maxLists is how many lists there may be, those that go included.
const maxLists = 1 << 16

// newIDs numbers lists. Those that are there keep their numbers, and a number that goes is
// not used again in the same transaction. The number comes from what is in the list, so
// that a process that knows of no numbers finds nearly all the same as the one before.
func newIDs(have map[string]uint32, want map[string][]item) (map[string]uint32, error) {
	if len(have)+len(want) > maxLists {
		return nil, fmt.Errorf("%d different lists of ports: with those before more than %d", len(want), maxLists)
	}
	used := make(map[uint32]bool, len(have))
	for _, id := range have {
		used[id] = true
	}
	out := make(map[string]uint32, len(want))
	for _, k := range slices.Sorted(maps.Keys(want)) {
		id, ok := have[k]
		if !ok {
			h := fnv.New32a()
			h.Write([]byte(k))
			for id = h.Sum32() | firstList; used[id]; id = (id + 1) | firstList {
			}
			used[id] = true
		}
		out[k] = id
	}
	return out, nil
}

// sets are those of the table.
func sets() (out []set) {
	for _, v6 := range []bool{false, true} {
		addr := []nftables.SetDatatype{nftables.TypeIPAddr}
		if v6 {
			addr = []nftables.SetDatatype{nftables.TypeIP6Addr}
		}
		for _, n := range []string{"hubs", "own", "overlay", "local"} {
			out = append(out, set{name: n + suffix(v6), key: addr, interval: true})
		}
		out = append(out, set{name: "remote" + suffix(v6), key: addr, data: &nftables.TypeMark, interval: true})
		for _, n := range []string{sideTo, sideFrom} {
			out = append(out, set{name: n + suffix(v6), key: addr, verdicts: true, interval: true})
		}
	}
	key := []nftables.SetDatatype{nftables.TypeMark, nftables.TypeInetProto, nftables.TypeInetService}
	return append(out, set{name: mapPort, key: key, verdicts: true}, set{name: mapPorts, key: key, verdicts: true, interval: true})
}

// sideSet is the map of a local class.
func sideSet(name string) set {
	return set{name: name, key: []nftables.SetDatatype{nftables.TypeMark}, data: &nftables.TypeMark}
}

// whole writes all of the table, whatever is there. Where what is there is of another shape,
// the table is made anew.
func whole(next *written) error {
	old, err := ownChains(chainAllow, sideTo+"-", sideFrom+"-")
	if err != nil {
		return err
	}
	var b batch
	b.fill(next, old)
	err = b.commit()
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		b = batch{}
		b.addTable()
		b.delTable()
		b.fill(next, nil)
		err = b.commit()
	}
	return err
}

func (w *batch) fill(next *written, old []string) {
	w.addTable()
	for i, s := range sets() {
		w.makeSet(s, uint32(i+1))
	}
	w.rules(next.config)
	for _, r := range slices.Sorted(maps.Keys(next.content.rules)) {
		w.allow(r)
	}
	for _, v6 := range []bool{false, true} {
		w.elements("hubs"+suffix(v6), true, single(next.config.Hubs, v6))
		w.elements("own"+suffix(v6), true, single(next.config.Own, v6))
	}
	for _, p := range next.config.Overlay {
		w.elements("overlay"+suffix(p.Addr().Is6()), true, prefixInterval(p))
	}
	id := uint32(1 << 20)
	for _, n := range old { // what is needed again stays, for packets that are being judged
		rule, is := strings.CutPrefix(n, chainAllow)
		switch {
		case is && !next.content.rules[rule]:
			w.removeChain(n)
		case !is && next.content.side[n] == nil:
			w.removeSide(n)
		}
	}
	for n, m := range next.content.side {
		id++
		w.makeSet(sideSet(n), id)
		w.side(n)
		w.elements(n, true, pairs(n, m, nil, next.ids))
	}
	w.lists(true, next.content.lists, nil, next.ids)
	w.spans(content{}, next.content)
}

// allow makes the chain of a rule by name.
func (w *batch) allow(rule string) {
	w.chain(chainAllow+rule, nil, 0)
	w.rule(chainAllow+rule, counter, setPriority(0), accept)
}

// change writes what is new in next. One transaction changes what is judged. What it will need
// is there by one before, for the kernel shows new elements of some sets only a moment
// after it has begun the new generation; and what is out of use goes in one behind, for
// a packet that is being judged meanwhile may have the number of a list that was.
func change(h, next *written) error {
	was, want := h.content, next.content
	var before, now, behind batch
	id := uint32(100)
	for r := range want.rules {
		if !was.rules[r] {
			before.allow(r)
		}
	}
	before.lists(true, want.lists, was.lists, next.ids)
	for name, m := range want.side {
		if was.side[name] == nil {
			id++
			before.makeSet(sideSet(name), id)
			before.side(name)
			before.elements(name, true, pairs(name, m, nil, next.ids))
			continue
		}
		now.elements(name, false, pairs(name, was.side[name], m, h.ids))
		now.elements(name, true, pairs(name, m, was.side[name], next.ids))
	}
	now.spans(was, want)
	behind.lists(false, was.lists, want.lists, h.ids)
	for name := range was.side {
		if want.side[name] == nil {
			behind.removeSide(name)
		}
	}
	for r := range was.rules {
		if !want.rules[r] {
			behind.removeChain(chainAllow + r)
		}
	}
	for _, x := range []*batch{&before, &now, &behind} {
		if len(x.msgs) > 0 {
			if err := x.commit(); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeSide removes the chain of a local class, and its map.
func (w *batch) removeSide(name string) {
	w.removeChain(name)
	w.add(unix.NFT_MSG_DELSET, 0, text(unix.NFTA_SET_TABLE, TableName), text(unix.NFTA_SET_NAME, name))
}

// spans brings the sets of addresses from those of was to those of want.
func (w *batch) spans(was, want content) {
	for i, name := range spanSets {
		remote := i < 2
		for _, add := range []bool{false, true} {
			a, b := was, want
			if add {
				a, b = want, was
			}
			w.elements(name, add, spans(a.spans[i], b.spans[i], remote))
			if !remote {
				for _, side := range []string{sideTo, sideFrom} {
					w.elements(side+suffix(i%2 == 1), add, chains(side, a, b, i))
				}
			}
		}
	}
}

// chains are the elements of a map of local addresses that a has and b has not.
func chains(side string, a, b content, i int) (out []element) {
	gone := map[span]bool{}
	for s := range without(a.spans[i], b.spans[i]) {
		gone[s] = true
	}
	for _, s := range a.spans[i] {
		name := sideName(side, s.class)
		if a.side[name] == nil || !gone[s] && b.side[name] != nil {
			continue
		}
		l := interval(s.from, s.to, nil)
		l[0].chain, l[0].returns = name, true
		out = append(out, l...)
	}
	return out
}

// pairs are the elements of the map of a local class that a has and b has not.
func pairs(name string, a, b map[pair]string, ids map[string]uint32) (out []element) {
	for p, k := range a {
		if other, ok := b[p]; ok && other == k {
			continue
		}
		c := p.from
		if strings.HasPrefix(name, sideFrom) {
			c = p.to
		}
		out = append(out, element{key: binaryutil.NativeEndian.PutUint32(uint32(c)), data: binaryutil.NativeEndian.PutUint32(ids[k])})
	}
	return out
}

// spans are the elements of those of a that b has not, with their class or without.
func spans(a, b []span, class bool) (out []element) {
	for s := range without(a, b) {
		var data []byte
		if class {
			data = binaryutil.NativeEndian.PutUint32(uint32(s.class))
		}
		out = append(out, interval(s.from, s.to, data)...)
	}
	return out
}

// without goes through those of a that b has not; both are in order.
func without(a, b []span) iter.Seq[span] {
	return func(yield func(span) bool) {
		for _, s := range a {
			for len(b) > 0 && b[0].from.Less(s.from) {
				b = b[1:]
			}
			if (len(b) == 0 || b[0] != s) && !yield(s) {
				return
			}
		}
	}
}

// lists adds or deletes what is of the lists of a that b has not. A single port, which is what
// most rules name, is found faster apart from ranges.
func (w *batch) lists(add bool, a, b map[string][]item, ids map[string]uint32) {
	var one, ranges []element
	for k, l := range a {
		if _, ok := b[k]; ok {
			continue
		}
		for _, x := range l {
			e := element{key: portKey(ids[k], x.protoFirst, x.first), chain: chainAllow + x.rule}
			if x.protoFirst == x.protoLast && x.first == x.last {
				one = append(one, e)
				continue
			}
			e.keyEnd = portKey(ids[k], x.protoLast, x.last)
			ranges = append(ranges, e)
		}
	}
	w.elements(mapPort, add, one)
	w.elements(mapPorts, add, ranges)
}

func portKey(list uint32, p Proto, port uint16) []byte {
	b := make([]byte, 12) // each field in four bytes
	binary.NativeEndian.PutUint32(b, list)
	b[4] = byte(p)
	binary.BigEndian.PutUint16(b[8:], port)
	return b
}

func single(addrs []netip.Addr, v6 bool) (out []element) {
	for _, a := range addrs {
		if a.Is6() == v6 {
			out = append(out, interval(a, a, nil)...)
		}
	}
	return out
}

// ownChains are the chains that are there whose names begin so.
func ownChains(prefixes ...string) (out []string, err error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	l, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	for _, c := range l {
		begins := func(p string) bool { return strings.HasPrefix(c.Name, p) }
		if c.Table.Name == TableName && slices.ContainsFunc(prefixes, begins) {
			out = append(out, c.Name)
		}
	}
	return out, nil
}
