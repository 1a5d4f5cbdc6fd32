package policy

import (
	"encoding/binary"
	"slices"
	"strings"

	"causeway/protocol"
)

// early is what each rule of a compilation opens of what was open before, by its place in rules: from each class of
// whose openings not all were. The rest of it is late.
type early []map[*Class]*row

// row is what a rule opens early from one class, part by part of the classes that it opens to.
type row []part

// part is some classes, by their places, and what is early to them.
type part struct {
	to    bitset
	ports []protocol.Ports
	all   bool // that the rule opens: nothing is late
}

// row is what is early of a rule from a class; nil: all.
func (e *Enforced) row(rule int, from *Class) *row {
	if e.early == nil || e.Stage == Whole {
		return nil
	}
	return e.early[rule][from]
}

// open lists what is open from one class to another where it begins.
func (e *Enforced) open(a, b *Class) (out []protocol.Ports) {
	for i := range e.between(a, b) {
		r := e.row(i, a)
		if r == nil {
			out = append(out, e.rules[i].Allow...)
			continue
		}
		for _, p := range *r {
			if p.to.has(b.place) {
				out = append(out, p.ports...)
			}
		}
	}
	return out
}

// compare works out what is early.
type compare struct {
	*Change
	twin           []int    // by rule of after, that of before which says the same, and of which nothing was late; -1: none
	wasFrom, wasTo []bitset // by place of a class of after: rules of before of which its addresses were that side
	loose          bitset   // rules of after of which something may be late
	to             [][]*Class
	lists          [][]protocol.Ports // by number: what is open, in its shortest form
	numbers        map[string]int     // of those, by text
	meets          map[[2]int]int     // of a rule and of what was open: what is early
	rows           map[string]*row    // by rule and content
	pairs          []int              // of one class with each: the number of what was open, less one; 0: not known
}

// everything is the number of all that a rule opens, and nothing that of no port.
const everything, nothing = 0, 1

// early works out what of After is not late: what was open between any of the classes that the addresses of two were of. So
// nothing is cut that was open. nil: nothing is late.
func (c *Change) early() early {
	w := &compare{Change: c, loose: newBits(len(c.After.rules)), to: make([][]*Class, len(c.After.rules)), lists: [][]protocol.Ports{nil, nil}, numbers: map[string]int{"": nothing},
		meets: map[[2]int]int{}, rows: map[string]*row{}}
	w.twins()
	w.were()
	for _, k := range c.After.Classes {
		for i := range k.from.both(k.from) {
			if w.twin[i] < 0 || !w.wasFrom[k.place].has(w.twin[i]) {
				w.loose.set(i)
			}
		}
		for i := range k.to.both(k.to) {
			w.to[i] = append(w.to[i], k)
			if w.twin[i] < 0 || !w.wasTo[k.place].has(w.twin[i]) {
				w.loose.set(i)
			}
		}
	}
	var out early
	for _, a := range c.After.Classes {
		w.pairs = make([]int, len(c.After.Classes))
		for i := range a.from.both(w.loose) {
			r := w.from(i, a)
			if r == nil {
				continue
			}
			if out == nil {
				out = make(early, len(c.After.rules))
			}
			if out[i] == nil {
				out[i] = map[*Class]*row{}
			}
			out[i][a] = r
		}
	}
	return out
}

// twins finds rules that say the same before and after.
func (w *compare) twins() {
	before := map[string]int{}
	key := func(r *Rule) string { return r.sides() + "\n" + strings.Join(texts(r.Allow), "\n") }
	for i, r := range w.Before.rules {
		if r.holds(w.Before.now) && (w.Before.early == nil || w.Before.Stage == Whole || w.Before.early[i] == nil) {
			before[key(r)] = i
		}
	}
	w.twin = make([]int, len(w.After.rules))
	for i, r := range w.After.rules {
		w.twin[i] = -1
		if j, ok := before[key(r)]; ok {
			w.twin[i] = j
		}
	}
}

// were finds of which rules of before the addresses of each class of after were a side, in the same segment.
func (w *compare) were() {
	for _, k := range w.After.Classes {
		from, to := newBits(len(w.Before.rules)), newBits(len(w.Before.rules))
		for _, id := range w.Was(k.ID) {
			if was := w.Before.byID[id]; was != nil && was.Segment == k.Segment {
				from.add(was.from)
				to.add(was.to)
			}
		}
		w.wasFrom, w.wasTo = append(w.wasFrom, from), append(w.wasTo, to)
	}
}

// from is what is early of a rule from a class; nil: all that it opens.
func (w *compare) from(rule int, a *Class) *row {
	r, twin := w.After.rules[rule], w.twin[rule]
	was := twin >= 0 && w.wasFrom[a.place].has(twin)
	var out row
	var of []int // numbers of its parts
	for _, b := range w.to[rule] {
		if !r.joins(a.Segment, b.Segment) {
			continue
		}
		n := everything
		if !was || !w.wasTo[b.place].has(twin) {
			n = w.meet(rule, w.wereOpen(a, b))
		}
		i := slices.Index(of, n)
		if i < 0 {
			i, of = len(of), append(of, n)
			out = append(out, part{to: newBits(len(w.After.Classes)), ports: w.lists[n], all: n == everything})
		}
		if n == everything {
			out[i].ports = r.Allow
		}
		out[i].to.set(b.place)
	}
	if !slices.ContainsFunc(of, func(n int) bool { return n != everything }) {
		return nil
	}
	key := binary.AppendUvarint(nil, uint64(rule))
	for i, n := range of {
		key = binary.AppendUvarint(key, uint64(n))
		for _, x := range out[i].to {
			key = binary.BigEndian.AppendUint64(key, x)
		}
	}
	if w.rows[string(key)] == nil {
		w.rows[string(key)] = &out
	}
	return w.rows[string(key)]
}

// wereOpen is the number of what was open between any of the classes that the addresses of two classes were of.
func (w *compare) wereOpen(a, b *Class) int {
	if w.pairs[b.place] == 0 {
		var l []protocol.Ports
		for _, x := range w.Was(a.ID) {
			for _, y := range w.Was(b.ID) {
				if x, y := w.Before.byID[x], w.Before.byID[y]; x != nil && y != nil {
					l = append(l, w.Before.open(x, y)...)
				}
			}
		}
		w.pairs[b.place] = w.number(l) + 1
	}
	return w.pairs[b.place] - 1
}

// meet is the number of what a rule opens of what was open.
func (w *compare) meet(rule, were int) int {
	if were == nothing {
		return nothing
	}
	key := [2]int{rule, were}
	n, ok := w.meets[key]
	if !ok {
		all := w.After.rules[rule].Allow
		var l []protocol.Ports
		for _, p := range all {
			for _, q := range w.lists[were] {
				if x, ok := p.Meet(q); ok {
					l = append(l, x)
				}
			}
		}
		if n = w.number(l); n == w.number(slices.Clone(all)) {
			n = everything
		}
		w.meets[key] = n
	}
	return n
}

// number numbers what is open by a list, which it may change.
func (w *compare) number(l []protocol.Ports) int {
	l = protocol.JoinPorts(l)
	key := strings.Join(texts(l), " ")
	n, ok := w.numbers[key]
	if !ok {
		n = len(w.lists)
		w.lists, w.numbers[key] = append(w.lists, l), n
	}
	return n
}
