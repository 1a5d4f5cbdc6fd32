package policy

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"causeway/hub/api"
	"causeway/protocol"
)

// Bounds of what is compiled. What is beyond them is refused where it is declared.
const (
	MaxRules   = 10_000 // of all policies together
	MaxClasses = 2_000
)

// lastDay is the form of until.
const lastDay = "2006-01-02"

// Rule is a rule of a policy, read.
type Rule struct {
	Name   string // POLICY/RULE
	Across []string
	From   string // its sides, as text
	To     string
	Allow  []protocol.Ports
	Until  time.Time // zero: for ever
	Empty  bool      // nobody may be meant

	from, to *side
}

// holds reports whether the rule is in force.
func (r *Rule) holds(now time.Time) bool { return r.Until.IsZero() || now.Before(r.Until) }

// joins reports whether the rule may open anything between addresses of two segments.
func (r *Rule) joins(from, to string) bool {
	if from == torn || to == torn {
		return false
	}
	if len(r.Across) == 0 {
		return from == to
	}
	return from != to && slices.Contains(r.Across, from) && slices.Contains(r.Across, to)
}

// insideRule is the name of what a segment opens inside it where there is no policy. No rule of a policy has it.
const insideRule = "inside"

// split is the rule's policy, and its name there.
func (r *Rule) split() (policy, name string) {
	policy, name, _ = strings.Cut(r.Name, "/")
	return policy, name
}

// ReadRule checks what somebody wrote as a rule of a policy.
func ReadRule(policy string, w api.PolicyRule) (*Rule, error) {
	r := &Rule{Name: policy + "/" + w.Name, Across: w.Across, Empty: w.ExpectEmpty}
	if !protocol.ValidName(w.Name) {
		return nil, fmt.Errorf("%.80q cannot name a rule; use 1 to 63 of a-z, 0-9 and '-'", w.Name)
	}
	fail := func(format string, args ...any) (*Rule, error) {
		return nil, fmt.Errorf("rule %s: %w", w.Name, fmt.Errorf(format, args...))
	}
	if n := len(w.Across); n != 0 && (n != 2 || w.Across[0] == w.Across[1]) {
		return fail("across: write two segments, such as [dev, prod]")
	}
	for _, s := range w.Across {
		if !protocol.ValidName(s) {
			return fail("across: %.80q cannot name a segment", s)
		}
	}
	for _, e := range []struct {
		what string
		api.PolicyEndpoint
		to *string
		at **side
	}{{"from", w.From, &r.From, &r.from}, {"to", w.To, &r.To, &r.to}} {
		if err := CheckEndpoint(e.PolicyEndpoint); err != nil {
			return fail("%s: %w", e.what, err)
		}
		*e.to = sideText(e.PolicyEndpoint)
		*e.at = &side{e.PolicyEndpoint, *e.to}
	}
	if len(w.Allow) == 0 {
		return fail("allow: say what it opens, such as [tcp/5432]")
	}
	for _, text := range w.Allow {
		p, err := protocol.ParsePorts(text)
		if err != nil {
			return fail("allow: %w", err)
		}
		r.Allow = append(r.Allow, p)
	}
	if w.Until != "" {
		day, err := time.Parse(lastDay, w.Until)
		if err != nil {
			return fail("until: %.40q is no day; write such as 2027-01-31", w.Until)
		}
		r.Until = day.AddDate(0, 0, 1)
	}
	return r, nil
}

// Compiled is what follows from an Input. It is not changed once it is made, but for what is worked out at the first question. Its
// methods may be called concurrently.
type Compiled struct {
	// Open: nothing is declared, and everybody may talk to everybody. There are no classes then.
	Open    bool
	Classes []*Class // by ID
	Units   []Unit   // by prefix and realm
	Realms  *Realms  // nil: Open
	// Next is when the time alone changes what follows: a rule ends. Zero: never.
	Next time.Time
	// Doubts are nodes and prefixes of which it is not sure where they belong, each once: they are closed.
	Doubts []string

	declared Input
	policies bool // there is at least one
	rules    []*Rule
	unmet    []string // sides that nobody is meant by
	byID     map[ClassID]*Class
	units    map[netip.Prefix][]Unit
	segments map[protocol.NodeNumber]string
	spaces   int      // realms that have units
	lengths  [2][]int // of units' prefixes, descending: of IPv4 and IPv6
	names    map[string]*Node
	now      time.Time

	once  struct{ all, meanings sync.Once }
	whole *Enforced
	mean  []Meaning
}

// torn is the segment of what is in two at once: nothing is open with it.
const torn = "?"

// Doubtful is the realm of nodes that are in two segments at once: nobody talks to them.
const Doubtful = torn

// nowhere is the realm of a node that nothing is known of.
const nowhere = "!"

// Compile works out the classes and pairs. before is the result before, whose classes keep their numbers; or nil.
// The policies and segments have passed Check.
func Compile(in Input, before *Compiled) (*Compiled, error) {
	c := &Compiled{byID: map[ClassID]*Class{}, units: map[netip.Prefix][]Unit{}, names: map[string]*Node{},
		declared: in, policies: len(in.Policies) > 0, now: in.Now}
	for i := range in.Nodes {
		c.names[in.Nodes[i].Name] = &in.Nodes[i]
	}
	if c.Open = len(in.Policies) == 0 && len(in.Segments) == 0; c.Open {
		return c, nil
	}
	if err := c.read(in); err != nil {
		return nil, err
	}
	m := newMatcher(in, c.rules)
	c.Realms, c.segments = m.realms, m.segments
	if !c.policies { // walls alone
		c.rules = []*Rule{{Name: insideRule, Allow: []protocol.Ports{{}}, Empty: true}}
	}
	of := map[string][]*Class{} // by side
	if err := c.classify(m, before, of); err != nil {
		return nil, err
	}
	slices.Sort(m.doubts)
	c.Doubts = slices.Compact(m.doubts)
	c.open(in.Now, of)
	return c, nil
}

// read reads all rules.
func (c *Compiled) read(in Input) error {
	for _, p := range in.Policies {
		for _, w := range p.Rules {
			r, err := ReadRule(p.Name, w)
			if err != nil {
				return fmt.Errorf("policy %s: %w", p.Name, err)
			}
			if c.rules = append(c.rules, r); len(c.rules) > MaxRules {
				return fmt.Errorf("policy %s: %d rules in all; at most %d", p.Name, len(c.rules), MaxRules)
			}
			if r.holds(in.Now) && !r.Until.IsZero() && (c.Next.IsZero() || r.Until.Before(c.Next)) {
				c.Next = r.Until
			}
		}
	}
	return nil
}

// classify finds the class of each unit, and adds to of the classes that each side means.
func (c *Compiled) classify(m *matcher, before *Compiled, of map[string][]*Class) error {
	byKey := map[string]*Class{}
	units := m.units()
	keys := make([]string, len(units))
	classOf := func(u *piece) *Class {
		segment, sides := m.match(u)
		names := make([]string, len(sides))
		for j, s := range sides {
			names[j] = s.text
		}
		return &Class{Segment: segment, Sides: names, key: strconv.Quote(segment) + strings.Join(names, "\n")}
	}
	for i, u := range units {
		keys[i] = classOf(u).key
	}
	if m.pods {
		m.budgetPods(units, keys, func(u *piece) string { return classOf(u).key })
	}
	for i, u := range units {
		if byKey[keys[i]] == nil {
			k := classOf(u)
			k.from, k.to = newBits(len(c.rules)), newBits(len(c.rules))
			byKey[keys[i]] = k
		}
	}
	if len(byKey) > MaxClasses {
		return fmt.Errorf("the rules tell %d classes of addresses apart; at most %d", len(byKey), MaxClasses)
	}
	c.number(byKey, before)
	for _, k := range c.Classes {
		for _, s := range k.Sides {
			of[s] = append(of[s], k)
		}
	}
	realms := map[string]bool{}
	for i, u := range units {
		unit := Unit{Prefix: u.prefix, Realm: u.realm, Class: byKey[keys[i]].ID}
		realms[u.realm] = true
		for _, n := range u.at {
			unit.At = append(unit.At, n.Number)
		}
		c.Units = append(c.Units, unit)
		c.units[u.prefix] = append(c.units[u.prefix], unit)
		if v := family(u.prefix.Addr()); !slices.Contains(c.lengths[v], u.prefix.Bits()) {
			c.lengths[v] = append(c.lengths[v], u.prefix.Bits())
		}
	}
	c.spaces = len(realms)
	for v := range c.lengths {
		slices.SortFunc(c.lengths[v], func(a, b int) int { return b - a })
	}
	return nil
}

// family is 0 of IPv4 and 1 of IPv6.
func family(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

// number gives classes their numbers: those of before, where they were there, and else the first free ones.
func (c *Compiled) number(byKey map[string]*Class, before *Compiled) {
	if before != nil {
		for _, k := range before.Classes {
			if now := byKey[k.key]; now != nil {
				now.ID = k.ID
				c.byID[k.ID] = now
			}
		}
	}
	var fresh []*Class
	for _, k := range byKey {
		c.Classes = append(c.Classes, k)
		if k.ID == 0 {
			fresh = append(fresh, k)
		}
	}
	slices.SortFunc(fresh, func(a, b *Class) int { return cmp.Compare(a.key, b.key) })
	next := ClassID(1)
	for _, k := range fresh {
		for c.byID[next] != nil {
			next++
		}
		k.ID, c.byID[next] = next, k
	}
	slices.SortFunc(c.Classes, func(a, b *Class) int { return cmp.Compare(a.ID, b.ID) })
	for i, k := range c.Classes {
		k.place = i
	}
}

// open notes the rules in force of which each class is a side.
func (c *Compiled) open(now time.Time, of map[string][]*Class) {
	if !c.policies {
		for _, k := range c.Classes {
			k.from.set(0)
			k.to.set(0)
		}
		return
	}
	for i, r := range c.rules {
		for _, s := range []string{r.From, r.To} {
			if len(of[s]) == 0 {
				c.unmet = append(c.unmet, s)
			}
		}
		if !r.holds(now) {
			continue
		}
		for _, k := range of[r.From] {
			k.from.set(i)
		}
		for _, k := range of[r.To] {
			k.to.set(i)
		}
	}
}

// Allows lists what is open from one class to another, in the order of policies and rules.
func (c *Compiled) Allows(p Pair) []Allow {
	return c.allows(c.opening(nil, c.byID[p.From], c.byID[p.To]))
}

// noRule stands for what is open without one.
const noRule = -1

// opening adds to out the rules in force that open something from a to b, by their places, in order. A class
// that is nil has no addresses.
func (c *Compiled) opening(out []int32, a, b *Class) []int32 {
	switch {
	case c.Open:
		return append(out, noRule)
	case a == nil || b == nil:
		return out
	}
	for i := range c.between(a, b) {
		if !c.policies {
			i = noRule
		}
		out = append(out, int32(i))
	}
	return out
}

// allows are what rules open.
func (c *Compiled) allows(rules []int32) (out []Allow) {
	for _, i := range rules {
		if i == noRule {
			out = append(out, Allow{})
			continue
		}
		for _, ports := range c.rules[i].Allow {
			out = append(out, Allow{ports, c.rules[i].Name})
		}
	}
	return out
}

// between yields the rules that open something from one class to another.
func (c *Compiled) between(a, b *Class) iter.Seq[int] {
	return func(yield func(int) bool) {
		for i := range a.from.both(b.to) {
			if c.rules[i].joins(a.Segment, b.Segment) && !yield(i) {
				return
			}
		}
	}
}

// opens reports whether anything is open from one class to another.
func (c *Compiled) opens(a, b *Class) bool {
	for range c.between(a, b) {
		return true
	}
	return false
}

// Talk reports whether anything is open between two classes, in either direction.
func (c *Compiled) Talk(a, b ClassID) bool {
	x, y := c.byID[a], c.byID[b]
	return c.Open || x != nil && y != nil && (c.opens(x, y) || c.opens(y, x))
}

// UnitsOf returns the units that an address is in, one of each realm that has it.
func (c *Compiled) UnitsOf(a netip.Addr) []Unit {
	return c.unitsAround(netip.PrefixFrom(a, a.BitLen()))
}

// eachRealm adds the units of p in realms that have none in l.
func (c *Compiled) eachRealm(l []Unit, p netip.Prefix) []Unit {
	for _, u := range c.units[p] {
		if !slices.ContainsFunc(l, func(o Unit) bool { return o.Realm == u.Realm }) {
			l = append(l, u)
		}
	}
	return l
}

// UnitAt returns the unit that an address is in, as it is met where node n is.
func (c *Compiled) UnitAt(n protocol.NodeNumber, a netip.Addr) (u Unit, ok bool) {
	realm := c.RealmOf(n)
	for _, u := range c.UnitsOf(a) {
		if u.Realm == realm {
			return u, true
		}
	}
	return Unit{}, false
}

// RealmOf is the realm of a node. One that nothing is known of has one of its own.
func (c *Compiled) RealmOf(n protocol.NodeNumber) string {
	if c.Open {
		return Unassigned
	}
	segment, ok := c.segments[n]
	if !ok {
		return nowhere
	}
	return c.Realms.Of(segment)
}
