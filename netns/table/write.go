package table

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"causeway/netns/internal/kernel"
)

const (
	// chunk is how many elements go in one message: its attributes have at most 64 KiB.
	chunk = 400
	// perElement is the room of an element in the socket's buffer, generously.
	perElement = 256
	leastRoom  = 1 << 20
)

// value is a number as a mark, in the machine's order.
func value(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// commit sends one transaction, with room for so many elements.
func commit(elements int, fill func(*nftables.Conn) error) error {
	return kernel.Own(func() error {
		c, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
			return c.SetWriteBuffer(leastRoom + 2*elements*perElement)
		}))
		if err != nil {
			return err
		}
		if err := fill(c); err != nil {
			return err
		}
		return c.Flush()
	})
}

func (t *Table) nft() *nftables.Table {
	return &nftables.Table{Name: t.Table(), Family: nftables.TableFamilyINet}
}

func (s Set) nft(of *nftables.Table) *nftables.Set {
	out := &nftables.Set{Table: of, Name: s.Name, Interval: true, KeyType: nftables.TypeIPAddr}
	if s.IPv6 {
		out.KeyType = nftables.TypeIP6Addr
	}
	if s.Map {
		out.IsMap, out.DataType = true, nftables.TypeMark
	}
	return out
}

func (p point) nft() nftables.SetElement {
	return nftables.SetElement{Key: p.addr.AsSlice(), IntervalEnd: p.end}
}

// nft is an element in the kernel's words.
func (s Set) element(e Element) []nftables.SetElement {
	first, behind := e.points()
	a := first.nft()
	if s.Map {
		a.Val = value(e.Value)
	}
	if !behind.addr.IsValid() {
		return []nftables.SetElement{a}
	}
	return []nftables.SetElement{a, behind.nft()}
}

func (s Set) elements(l []Element) (out []nftables.SetElement) {
	for _, e := range l {
		out = append(out, s.element(e)...)
	}
	return out
}

// inChunks calls f with a part of l at a time.
func inChunks(set *nftables.Set, l []nftables.SetElement, f func(*nftables.Set, []nftables.SetElement) error) error {
	for part := range slices.Chunk(l, chunk) {
		if err := f(set, part); err != nil {
			return err
		}
	}
	return nil
}

// fill makes the whole table, whatever is there.
func (t *Table) fill(c *nftables.Conn) error {
	table := t.nft()
	c.AddTable(table) // or there may be none to delete
	c.DelTable(table)
	c.AddTable(table)
	for _, s := range t.Sets {
		set := s.nft(table)
		if err := c.AddSet(set, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
		if err := inChunks(set, s.elements(s.Elements), c.SetAddElements); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	accept := nftables.ChainPolicyAccept
	for _, x := range t.Chains {
		chain := c.AddChain(&nftables.Chain{Name: x.Name, Table: table, Type: x.kind(), Hooknum: x.Hook, Priority: nftables.ChainPriorityRef(nftables.ChainPriority(x.Priority)), Policy: &accept})
		for _, r := range x.Rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r.Exprs})
		}
	}
	return nil
}

// change makes the elements of was, of which d says what others did to them, those of t. An error changed nothing.
func (k *seen) change(was, t *Table, d differences) error {
	table, n := t.nft(), 0
	type work struct {
		set      *nftables.Set
		out, add []nftables.SetElement
	}
	var all []work
	for i, s := range t.Sets {
		w := work{set: s.nft(table)}
		gone, come := differ(was.Sets[i].Elements, s.Elements)
		away := map[point]bool{}
		out := func(p point) {
			if p.addr.IsValid() && !away[p] && !d.absent[s.Name][p] {
				away[p] = true
				w.out = append(w.out, p.nft())
			}
		}
		for _, p := range d.extra[s.Name] {
			out(p)
		}
		for _, e := range gone {
			first, behind := e.points()
			out(first)
			out(behind)
		}
		for _, e := range d.missing[s.Name] {
			if now, ok := s.at(point{e.Range.From(), false}); ok && now == e { // else it is gone, or come
				come = append(come, e)
			}
		}
		slices.SortFunc(come, byFirst)
		w.add = s.elements(come)
		if n += len(w.out) + len(w.add); len(w.out)+len(w.add) > 0 {
			all = append(all, w)
		}
	}
	if n == 0 {
		return nil
	}
	return commit(n, func(c *nftables.Conn) error {
		for _, w := range all {
			if err := inChunks(w.set, w.out, c.SetDeleteElements); err != nil {
				return err
			}
			if err := inChunks(w.set, w.add, c.SetAddElements); err != nil {
				return err
			}
		}
		return nil
	})
}
