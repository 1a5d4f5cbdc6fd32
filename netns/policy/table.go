package policy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Table writes the table, and remembers what it wrote, so that a change costs what changes. Its
// methods work in the network namespace of the calling thread, need CAP_NET_ADMIN, and may
// be called concurrently.
type Table struct {
	mu    sync.Mutex
	have  *written // nil: not known what is there
	ours  uint32   // generation of the last write, if nobody else wrote meanwhile
	shape string   // after the last write
	doubt bool     // others touched it, or may have
}

// written is what stands in the kernel.
type written struct {
	config  Config
	content content
	ids     map[string]uint32 // of lists
}

// NewTable returns a table that knows nothing of what is there: the first Set writes all.
func NewTable() *Table { return &Table{} }

// Set makes the table what the config says, in one transaction: each packet meets the table as it
// was or as it is then. After an error the table is as it was.
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
	before, _ := generation()
	next := &written{config: c, content: want}
	if h := t.have; h != nil && !t.doubt && sameFrame(h.config, c) {
		next.ids, err = newIDs(h.ids, want.lists)
		if err == nil {
			var b batch
			b.change(h, next)
			err = b.commit()
		}
	} else {
		var ids map[string]uint32
		if h != nil {
			ids = h.ids
		}
		if next.ids, err = newIDs(ids, want.lists); err == nil {
			err = whole(next)
		}
	}
	if err != nil {
		t.have = nil // it may be gone, or another's
		return fmt.Errorf("set nftables table %s: %w", TableName, err)
	}
	t.have, t.doubt = next, false
	after, _ := generation()
	if t.ours = 0; after == before+1 {
		t.ours = after
	}
	t.shape, err = shape()
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

// newIDs numbers lists; those that are there keep their numbers, and a number that goes is
// not used again in the same transaction.
func newIDs(have map[string]uint32, want map[string][]item) (map[string]uint32, error) {
	if len(have)+len(want) > maxLists {
		return nil, fmt.Errorf("%d different lists of ports: with those before more than %d", len(want), maxLists)
	}
	used := make(map[uint32]bool, len(have))
	for _, id := range have {
		used[id] = true
	}
	out := make(map[string]uint32, len(want))
	next := firstList
	for _, k := range slices.Sorted(maps.Keys(want)) {
		id, ok := have[k]
		for !ok {
			if id, next = next, next+1; !used[id] {
				break
			}
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
	return append(out, set{name: mapPorts, key: []nftables.SetDatatype{nftables.TypeMark, nftables.TypeInetProto, nftables.TypeInetService}, verdicts: true, interval: true})
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
	for _, n := range old {
		switch rule, is := strings.CutPrefix(n, chainAllow); {
		case is && !next.content.rules[rule]:
			w.removeChain(n)
		case !is:
			w.removeChain(n)
			w.add(unix.NFT_MSG_DELSET, 0, text(unix.NFTA_SET_TABLE, TableName), text(unix.NFTA_SET_NAME, n))
		}
	}
	for _, v6 := range []bool{false, true} {
		w.elements("hubs"+suffix(v6), true, single(next.config.Hubs, v6))
		w.elements("own"+suffix(v6), true, single(next.config.Own, v6))
	}
	for _, p := range next.config.Overlay {
		w.elements("overlay"+suffix(p.Addr().Is6()), true, prefixInterval(p))
	}
	w.contents(content{}, nil, next)
}

// allow makes the chain of a rule by name.
func (w *batch) allow(rule string) {
	w.chain(chainAllow+rule, nil, 0)
	w.rule(chainAllow+rule, counter, setPriority(0), accept)
}

// change writes what is new in next.
func (w *batch) change(h, next *written) {
	for r := range next.content.rules {
		if !h.content.rules[r] {
			w.allow(r)
		}
	}
	w.contents(h.content, h.ids, next)
	for r := range h.content.rules {
		if !next.content.rules[r] {
			w.removeChain(chainAllow + r)
		}
	}
}

// contents brings the elements from those of have to those of next. What goes out of use goes
// last, what comes into use is there first.
func (w *batch) contents(have content, haveIDs map[string]uint32, next *written) {
	want, ids := next.content, next.ids
	id := uint32(100)
	for name := range want.side {
		if have.side[name] == nil {
			id++
			w.makeSet(sideSet(name), id)
			w.side(name)
		}
	}
	w.elements(mapPorts, true, lists(want.lists, have.lists, ids))
	for name := range want.side {
		w.elements(name, false, pairs(name, have.side[name], want.side[name], haveIDs))
		w.elements(name, true, pairs(name, want.side[name], have.side[name], ids))
	}
	for i, name := range spanSets {
		remote := i < 2
		for _, add := range []bool{false, true} {
			a, b := have, want
			if add {
				a, b = want, have
			}
			w.elements(name, add, spans(a.spans[i], b.spans[i], remote))
			if !remote {
				for _, side := range []string{sideTo, sideFrom} {
					w.elements(side+suffix(i%2 == 1), add, chains(side, a, b, i))
				}
			}
		}
	}
	for name := range have.side {
		if want.side[name] == nil {
			w.removeChain(name)
			w.add(unix.NFT_MSG_DELSET, 0, text(unix.NFTA_SET_TABLE, TableName), text(unix.NFTA_SET_NAME, name))
		}
	}
	w.elements(mapPorts, false, lists(have.lists, want.lists, haveIDs))
}

// chains are the elements of a map of local addresses that a has and b has not.
func chains(side string, a, b content, i int) (out []element) {
	for s := range a.spans[i] {
		name := sideName(side, s.class)
		if a.side[name] == nil || b.spans[i][s] && b.side[name] != nil {
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
func spans(a, b map[span]bool, class bool) (out []element) {
	for s := range a {
		if b[s] {
			continue
		}
		var data []byte
		if class {
			data = binaryutil.NativeEndian.PutUint32(uint32(s.class))
		}
		out = append(out, interval(s.from, s.to, data)...)
	}
	return out
}

// lists are the elements of the lists of a that b has not.
func lists(a, b map[string][]item, ids map[string]uint32) (out []element) {
	for k, l := range a {
		if _, ok := b[k]; ok {
			continue
		}
		for _, x := range l {
			out = append(out, element{
				key:    portKey(ids[k], x.protoFirst, x.first),
				keyEnd: portKey(ids[k], x.protoLast, x.last),
				chain:  chainAllow + x.rule,
			})
		}
	}
	return out
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

// Remove takes the table away; it may be gone already.
func (t *Table) Remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.have, t.doubt, t.shape = nil, false, ""
	var b batch
	b.delTable()
	if err := b.commit(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove nftables table %s: %w", TableName, err)
	}
	return nil
}

// Counts are packets since a rule, or the table, was last made.
type Counts struct {
	Rules     map[string]uint64 // accepted, by the rule's name
	Refused   uint64            // and answered
	Dropped   uint64            // without an answer: what only source NAT showed to be closed
	Untracked uint64            // judged by their headers alone, for conntrack knew nothing of them
}

// Counted reads the counters.
func (t *Table) Counted() (Counts, error) {
	out := Counts{Rules: map[string]uint64{}}
	conn, err := nftables.New()
	if err != nil {
		return out, fmt.Errorf("nftables table %s: %w", TableName, err)
	}
	own := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
	names, err := ownChains(chainAllow)
	if err != nil {
		return out, fmt.Errorf("nftables table %s: %w", TableName, err)
	}
	for _, n := range append(names, chainRefuse, chainLast, chainUntrackedIn, chainUntrackedOut) {
		rules, err := conn.GetRules(own, &nftables.Chain{Name: n, Table: own})
		if err != nil {
			return out, fmt.Errorf("nftables table %s, chain %s: %w", TableName, n, err)
		}
		var sum uint64
		for _, r := range rules {
			for _, e := range r.Exprs {
				if c, ok := e.(*expr.Counter); ok {
					sum += c.Packets
				}
			}
		}
		switch n {
		case chainRefuse:
			out.Refused = sum
		case chainLast:
			out.Dropped = sum
		case chainUntrackedIn, chainUntrackedOut:
			out.Untracked += sum
		default:
			out.Rules[strings.TrimPrefix(n, chainAllow)] = sum
		}
	}
	return out, nil
}
