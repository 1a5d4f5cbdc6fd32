package policy

import (
	"context"
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
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/nf"
)

// Table writes the table, and remembers what it wrote, so that a change costs what changes. Its
// methods work in the network namespace of the calling thread, need CAP_NET_ADMIN, and may
// be called concurrently.
type Table struct {
	mu     sync.Mutex
	have   *written      // nil: not known what is there
	stand  *nf.Standing  // whether others touched it
	deaf   error         // why nobody can hear what is refused
	untold error         // why ends of what closed last were not all told; nil: they were
	gone   *netipx.IPSet // remote addresses that writes took away since ends were last told; nil: none
}

// written is what stands in the kernel.
type written struct {
	config  Config
	content content
	ids     map[string]uint32 // of lists
}

// NewTable returns a table that knows nothing of what is there: the first Set writes all.
func NewTable() *Table { return &Table{stand: nf.NewStanding(TableName)} }

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
	next := &written{config: c, content: want}
	if h := t.have; h != nil && !t.stand.Doubt() && sameFrame(h.config, c) {
		next.ids, err = newIDs(h.ids, want.lists)
		if err == nil {
			err = change(t.stand, h, next)
		}
	} else {
		var ids map[string]uint32
		if h != nil {
			ids = h.ids
		}
		if next.ids, err = newIDs(ids, want.lists); err == nil {
			if err = whole(t.stand, next); err == nil {
				t.deaf = tellRefused(t.stand)
			}
		}
	}
	if err != nil {
		t.have = nil // it may be gone, or another's
		return fmt.Errorf("set nftables table %s: %w", TableName, err)
	}
	if h := t.have; h != nil {
		t.gone = goneTo(t.gone, h.content, want)
	}
	t.have = next
	return t.stand.Written()
}

// Watch tells when others touched the table, or may have: see nf.Standing.
func (t *Table) Watch(ctx context.Context) (<-chan struct{}, error) { return t.stand.Watch(ctx) }

// Differs reports whether the table is not as it was written, or may not be: where Watch saw others touch it, or its
// chains, rules or sets are others. It changes nothing. The next Set writes all then.
func (t *Table) Differs() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.have == nil {
		return true, nil
	}
	return t.stand.Differs()
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
func sets() (out []nf.Set) {
	for _, v6 := range []bool{false, true} {
		addr := []nftables.SetDatatype{nftables.TypeIPAddr}
		if v6 {
			addr = []nftables.SetDatatype{nftables.TypeIP6Addr}
		}
		for _, n := range []string{"hubs", "own", "overlay", "local"} {
			out = append(out, nf.Set{Name: n + nf.Suffix(v6), Key: addr, Interval: true})
		}
		out = append(out, nf.Set{Name: "remote" + nf.Suffix(v6), Key: addr, Data: []nftables.SetDatatype{nftables.TypeMark}, Interval: true})
		for _, n := range []string{sideTo, sideFrom} {
			out = append(out, nf.Set{Name: n + nf.Suffix(v6), Key: addr, Verdicts: true, Interval: true})
		}
	}
	key := []nftables.SetDatatype{nftables.TypeMark, nftables.TypeInetProto, nftables.TypeInetService}
	return append(out, nf.Set{Name: mapPort, Key: key, Verdicts: true}, nf.Set{Name: mapPorts, Key: key, Verdicts: true, Interval: true})
}

// sideSet is the map of a local class.
func sideSet(name string) nf.Set {
	return nf.Set{Name: name, Key: []nftables.SetDatatype{nftables.TypeMark}, Data: []nftables.SetDatatype{nftables.TypeMark}}
}

// whole writes all of the table, whatever is there. Where what is there is of another shape,
// the table is made anew. Where nothing is, the kernel calls its chains once all that they ask for
// is there: it shows some sets' elements only a moment after a transaction's rules.
func whole(stand *nf.Standing, next *written) error {
	old, err := ownChains()
	if err != nil {
		return err
	}
	b, hooks := newBatch(), newBatch()
	b.fill(next, old)
	if len(old) == 0 {
		hooks.hooks(next.config)
		if err = stand.Commit(&b.Batch, true); err == nil {
			err = stand.Commit(&hooks.Batch, false)
		}
	} else {
		b.hooks(next.config)
		err = stand.Commit(&b.Batch, true)
	}
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		b = newBatch()
		b.AddTable()
		b.DelTable()
		b.fill(next, nil)
		b.hooks(next.config)
		err = stand.Commit(&b.Batch, true)
	}
	return err
}

// batch is a transaction of the table.
type batch struct{ nf.Batch }

func newBatch() *batch { return &batch{nf.Batch{Table: TableName}} }

// fill writes all but the chains that the kernel calls. Of the chains that are there, those of rules and classes that are not
// needed any more go.
func (w *batch) fill(next *written, old []string) {
	w.AddTable()
	for i, s := range sets() {
		w.MakeSet(s, uint32(i+1))
	}
	w.rules()
	for _, r := range slices.Sorted(maps.Keys(next.content.rules)) {
		w.allow(r)
	}
	for _, v6 := range []bool{false, true} {
		w.Elements("hubs"+nf.Suffix(v6), true, single(next.config.Hubs, v6))
		w.Elements("own"+nf.Suffix(v6), true, single(next.config.Own, v6))
	}
	for _, p := range next.config.Overlay {
		w.Elements("overlay"+nf.Suffix(p.Addr().Is6()), true, prefixInterval(p))
	}
	id := uint32(1 << 20)
	for _, n := range old { // what is needed again stays, for packets that are being judged
		rule, is := strings.CutPrefix(n, chainAllow)
		side := strings.HasPrefix(n, sideTo+"-") || strings.HasPrefix(n, sideFrom+"-")
		switch {
		case is && !next.content.rules[rule]:
			w.RemoveChain(n)
		case side && next.content.side[n] == nil:
			w.removeSide(n)
		}
	}
	for n, m := range next.content.side {
		id++
		w.MakeSet(sideSet(n), id)
		w.side(n)
		w.Elements(n, true, pairs(n, m, nil, next.ids))
	}
	w.lists(true, next.content.lists, nil, next.ids)
	w.spans(content{}, next.content)
}

// allow makes the chain of a rule by name.
func (w *batch) allow(rule string) {
	w.Chain(chainAllow+rule, nil, 0)
	w.Rule(chainAllow+rule, nf.Counter, setPriority(0), accept)
}

// change writes what is new in next. One transaction changes what is judged. What it will need
// is there by one before, for the kernel shows new elements of some sets only a moment
// after it has begun the new generation; and what is out of use goes in one behind, for
// a packet that is being judged meanwhile may have the number of a list that was.
func change(stand *nf.Standing, h, next *written) error {
	was, want := h.content, next.content
	before, now, behind := newBatch(), newBatch(), newBatch()
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
			before.MakeSet(sideSet(name), id)
			before.side(name)
			before.Elements(name, true, pairs(name, m, nil, next.ids))
			continue
		}
		now.Elements(name, false, pairs(name, was.side[name], m, h.ids))
		now.Elements(name, true, pairs(name, m, was.side[name], next.ids))
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
			behind.RemoveChain(chainAllow + r)
		}
	}
	for _, x := range []*batch{before, now, behind} {
		if x.Len() > 0 {
			if err := stand.Commit(&x.Batch, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeSide removes the chain of a local class, and its map.
func (w *batch) removeSide(name string) {
	w.RemoveChain(name)
	w.DelSet(name)
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
			w.Elements(name, add, spans(a.spans[i], b.spans[i], remote))
			if !remote {
				for _, side := range []string{sideTo, sideFrom} {
					w.Elements(side+nf.Suffix(i%2 == 1), add, chains(side, a, b, i))
				}
			}
		}
	}
}

// chains are the elements of a map of local addresses that a has and b has not.
func chains(side string, a, b content, i int) (out []nf.Element) {
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
		l[0].Chain, l[0].Returns = name, true
		out = append(out, l...)
	}
	return out
}

// pairs are the elements of the map of a local class that a has and b has not.
func pairs(name string, a, b map[pair]string, ids map[string]uint32) (out []nf.Element) {
	for p, k := range a {
		if other, ok := b[p]; ok && other == k {
			continue
		}
		c := p.from
		if strings.HasPrefix(name, sideFrom) {
			c = p.to
		}
		out = append(out, nf.Element{Key: binaryutil.NativeEndian.PutUint32(uint32(c)), Data: binaryutil.NativeEndian.PutUint32(ids[k])})
	}
	return out
}

// spans are the elements of those of a that b has not, with their class or without.
func spans(a, b []span, class bool) (out []nf.Element) {
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
	var one, ranges []nf.Element
	for k, l := range a {
		if _, ok := b[k]; ok {
			continue
		}
		for _, x := range l {
			e := nf.Element{Key: portKey(ids[k], x.protoFirst, x.first), Chain: chainAllow + x.rule}
			if x.protoFirst == x.protoLast && x.first == x.last {
				one = append(one, e)
				continue
			}
			e.KeyEnd = portKey(ids[k], x.protoLast, x.last)
			ranges = append(ranges, e)
		}
	}
	w.Elements(mapPort, add, one)
	w.Elements(mapPorts, add, ranges)
}

func portKey(list uint32, p Proto, port uint16) []byte {
	b := make([]byte, 12) // each field in four bytes
	binary.NativeEndian.PutUint32(b, list)
	b[4] = byte(p)
	binary.BigEndian.PutUint16(b[8:], port)
	return b
}

func single(addrs []netip.Addr, v6 bool) (out []nf.Element) {
	for _, a := range addrs {
		if a.Is6() == v6 {
			out = append(out, interval(a, a, nil)...)
		}
	}
	return out
}

// ownChains are the table's chains that are there.
func ownChains() (out []string, err error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	l, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	for _, c := range l {
		if c.Table.Name == TableName {
			out = append(out, c.Name)
		}
	}
	return out, nil
}
