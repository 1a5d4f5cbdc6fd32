// Package table is a part of a host's plan: an nftables table of its own, written by netlink, whose sets may have tens of
// thousands of elements.
//
//	t, err := table.New(table.Config{Kind: "policy", Sets: …, Chains: …})
//	plan.Parts = append(plan.Parts, t)
//
// The elements that changed are changed alone, in one transaction; where chains, rules or sets differ, or it is not known what
// is there, the whole table is made anew, in one as well. What others do to it is seen without listing it: nftables'
// generation says whether anybody did anything at all, handles whether chains, rules and sets are those that were put there,
// and the kernel's notifications which elements were touched. Elements are listed where notifications were lost.
package table

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"go4.org/netipx"

	"causeway/netns"
)

// Config is what a table has.
type Config struct {
	Kind   string // of the objects that it is made of
	Sets   []Set
	Chains []Chain
}

// Set is a set of addresses, or a map from addresses to numbers, which rules see as marks. The program nft prints the
// numbers of a map with their bytes the other way round where the machine has the low one first: it is not told their order.
type Set struct {
	Name     string
	IPv6     bool
	Map      bool
	Elements []Element
}

// Element is a run of addresses of a set; no two of a set meet in an address.
type Element struct {
	Range netipx.IPRange
	Value uint32 // in a map
}

// Chain is a base chain that accepts what its rules let pass.
type Chain struct {
	Name     string
	Type     nftables.ChainType // empty: filter
	Hook     *nftables.ChainHook
	HookName string // as nft has it
	Priority int32
	Rules    []Rule
}

func (c Chain) kind() nftables.ChainType { return cmp.Or(c.Type, nftables.ChainTypeFilter) }

// Rule is a rule in nft's words, and what the kernel is given for it. Sets are looked up by their names.
type Rule struct {
	Text  string
	Exprs []expr.Any
}

// Table is the part. What is known of the kernel goes from one to the next that is applied after it.
type Table struct {
	Config
	seen *seen // nil: never applied
}

var _ netns.Part = (*Table)(nil)

// New checks and sorts.
func New(c Config) (*Table, error) {
	c.Sets, c.Chains = slices.Clone(c.Sets), slices.Clone(c.Chains)
	for i, x := range c.Chains {
		c.Chains[i].Rules = slices.Clone(x.Rules)
	}
	for i, s := range c.Sets {
		s.Elements = slices.Clone(s.Elements)
		if !slices.IsSortedFunc(s.Elements, byFirst) {
			slices.SortFunc(s.Elements, byFirst)
		}
		for j, e := range s.Elements {
			switch {
			case !e.Range.IsValid() || e.Range.From().Is6() != s.IPv6 || e.Range.From().Zone() != "":
				return nil, fmt.Errorf("set %s: %s is no run of its addresses", s.Name, e.Range)
			case !s.Map && e.Value != 0:
				return nil, fmt.Errorf("set %s: %s has a number, and it is no map", s.Name, e.Range)
			case j > 0 && !s.Elements[j-1].Range.To().Less(e.Range.From()):
				return nil, fmt.Errorf("set %s: %s and %s overlap", s.Name, s.Elements[j-1].Range, e.Range)
			}
		}
		c.Sets[i] = s
	}
	return &Table{Config: c}, nil
}

// Table is the table's name.
func (t *Table) Table() string { return netns.PartPrefix + t.Kind }

// Lines are the commands that would make it, the elements one by one.
func (t *Table) Lines() []string {
	out := t.structure()
	for _, s := range t.Sets {
		for _, e := range s.Elements {
			out = append(out, t.elementLine(s, e))
		}
	}
	return out
}

// structure are the lines of all but elements.
func (t *Table) structure() []string {
	name := t.Table()
	out := []string{line("table inet %s", name)}
	for _, s := range t.Sets {
		what, typ := "set", "ipv4_addr"
		if s.IPv6 {
			typ = "ipv6_addr"
		}
		if s.Map {
			what, typ = "map", typ+" : mark"
		}
		out = append(out, line("%s inet %s %s { type %s; flags interval; }", what, name, s.Name, typ))
	}
	for _, c := range t.Chains {
		out = append(out, line("chain inet %s %s { type %s hook %s priority %d; policy accept; }", name, c.Name, c.kind(), c.HookName, c.Priority))
		for _, r := range c.Rules {
			out = append(out, line("rule inet %s %s %s", name, c.Name, r.Text))
		}
	}
	return out
}

func line(format string, args ...any) string { return "nft 'add " + fmt.Sprintf(format, args...) + "'" }

func (t *Table) elementLine(s Set, e Element) string {
	text := e.Range.String()
	if x, ok := e.Range.Prefix(); ok && x.IsSingleIP() {
		text = x.Addr().String()
	} else if ok {
		text = x.String()
	}
	if s.Map {
		text += fmt.Sprintf(" : 0x%08x", e.Value)
	}
	return line("element inet %s %s { %s }", t.Table(), s.Name, text)
}

// point is what the kernel has two of for a run of addresses: its first address, and the one behind its last, if there
// is one. As text it is a key of maps.
type point struct {
	addr netip.Addr
	end  bool
}

func byFirst(a, b Element) int { return a.Range.From().Compare(b.Range.From()) }

// points are those of an element; the second is not valid behind the last address of all.
func (e Element) points() (first, behind point) {
	return point{e.Range.From(), false}, point{e.Range.To().Next(), true}
}

// at is the element that a point is of.
func (s Set) at(p point) (Element, bool) {
	i, found := slices.BinarySearchFunc(s.Elements, p.addr, func(e Element, a netip.Addr) int {
		first, behind := e.points()
		if !p.end {
			return first.addr.Compare(a)
		}
		if !behind.addr.IsValid() {
			return 1
		}
		return behind.addr.Compare(a)
	})
	if !found {
		return Element{}, false
	}
	return s.Elements[i], true
}

// differ are the elements of a that b lacks, or has another number for, and the other way round. Both are sorted.
func differ(a, b []Element) (gone, come []Element) {
	for len(a) > 0 && len(b) > 0 {
		x, y := a[0], b[0]
		switch c := cmp.Or(x.Range.From().Compare(y.Range.From()), x.Range.To().Compare(y.Range.To())); {
		case c == 0 && x.Value == y.Value:
			a, b = a[1:], b[1:]
		case c == 0:
			gone, come, a, b = append(gone, x), append(come, y), a[1:], b[1:]
		case c < 0:
			gone, a = append(gone, x), a[1:]
		default:
			come, b = append(come, y), b[1:]
		}
	}
	return append(gone, a...), append(come, b...)
}

// Apply makes the table as t says.
func (t *Table) Apply(ctx context.Context, before netns.Part) error {
	b, _ := before.(*Table)
	if b == nil || b.seen == nil {
		b = nil
		t.seen = &seen{table: t.Table(), monitor: -1}
	} else {
		t.seen = b.seen
	}
	k := t.seen
	if b != nil && k.in != nil && slices.Equal(k.in.structure(), t.structure()) {
		d, err := k.differs(ctx, k.in, false)
		if err == nil && !d.structure && d.known {
			if err := k.change(k.in, t, d); err == nil {
				k.in = t
				return nil
			}
		}
	}
	k.in = nil // until it is known again
	if err := k.remake(t); err != nil {
		return err
	}
	k.in = t
	return nil
}

// mostLines bounds the elements that a drift names.
const mostLines = 100

// Drift is what others changed since Apply.
func (t *Table) Drift(ctx context.Context) (missing, extra []string, err error) {
	if t.seen == nil || t.seen.in != t {
		return nil, nil, errors.New("it is not known what was put there")
	}
	d, err := t.seen.differs(ctx, t, true)
	switch {
	case err != nil:
		return nil, nil, err
	case d.gone:
		return t.structure(), nil, nil
	case d.structure:
		return nil, []string{fmt.Sprintf("# chains, rules or sets of nftables table %s are not those that were put there", t.Table())}, nil
	}
	for _, s := range t.Sets {
		for _, e := range d.missing[s.Name] {
			missing = append(missing, t.elementLine(s, e))
		}
		for _, p := range d.extra[s.Name] {
			what := p.addr.String()
			if p.end {
				what = "an end before " + what
			}
			extra = append(extra, fmt.Sprintf("# element inet %s %s { %s }", t.Table(), s.Name, what))
		}
	}
	return bounded(missing), bounded(extra), nil
}

func bounded(l []string) []string {
	slices.Sort(l)
	if n := len(l) - mostLines; n > 0 {
		l = append(l[:mostLines:mostLines], fmt.Sprintf("# and %d more", n))
	}
	return l
}

// Close ends the listening.
func (t *Table) Close() error {
	if t.seen == nil {
		return nil
	}
	t.seen.in = nil
	return t.seen.mute()
}

// sameValue reports whether a map's data is a number.
func sameValue(data []byte, v uint32) bool { return bytes.Equal(data, value(v)) }
