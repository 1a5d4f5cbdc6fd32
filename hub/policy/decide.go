package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"causeway/hub/api"
	"causeway/protocol"
)

// Verdict is what becomes of a connection, and why.
type Verdict struct {
	Open bool
	Rule string // POLICY/RULE that opens it, if a rule does
	// Nearest is the rule that comes nearest to opening what is closed, and Lacks what it lacks.
	Nearest, Lacks string
}

// String is a sentence.
func (v Verdict) String() string {
	switch {
	case v.Open && v.Rule == "":
		return "open: no policy is declared"
	case v.Open:
		return "open by rule " + v.Rule
	case v.Nearest == "":
		return "closed: no rule opens it"
	}
	return fmt.Sprintf("closed: no rule opens it; the nearest is %s, but %s", v.Nearest, v.Lacks)
}

// Decide says what becomes of connections between two addresses. The error says which of them nobody has, or several.
func (c *Compiled) Decide(from, to netip.Addr, port protocol.Ports) (Verdict, error) {
	return c.DecideAt(Met{Addr: from}, Met{Addr: to}, port)
}

// Met is an address as it is met where a node is; or, without one, anywhere.
type Met struct {
	Addr netip.Addr
	Node protocol.NodeNumber
}

// DecideAt is Decide for addresses that several realms may have.
func (c *Compiled) DecideAt(from, to Met, port protocol.Ports) (Verdict, error) {
	if c.Open {
		return Verdict{Open: true}, nil
	}
	if from.Addr.Is4() != to.Addr.Is4() {
		return Verdict{}, fmt.Errorf("%s and %s are not of one family", from.Addr, to.Addr)
	}
	a, err := c.classOf(from)
	if err != nil {
		return Verdict{}, err
	}
	b, err := c.classOf(to)
	if err != nil {
		return Verdict{}, err
	}
	return c.verdict(a, b, port), nil
}

func (c *Compiled) classOf(e Met) (*Class, error) {
	if e.Node != 0 {
		if u, ok := c.UnitAt(e.Node, e.Addr); ok {
			return c.byID[u.Class], nil
		}
	}
	u, err := c.only(e.Addr)
	if err != nil {
		return nil, err
	}
	return c.byID[u.Class], nil
}

// only is the unit of an address that one realm alone has.
func (c *Compiled) only(a netip.Addr) (Unit, error) {
	l := c.UnitsOf(a)
	if len(l) > 1 { // what belongs to two segments is open to nobody, and makes nothing doubtful
		l = slices.DeleteFunc(l, func(u Unit) bool { return u.Realm == torn })
	}
	switch len(l) {
	case 0:
		return Unit{}, nobodyHas(a)
	case 1:
		return l[0], nil
	}
	var ways, at []string
	for _, u := range l {
		segment := segmentName(u.Realm)
		if s := c.byID[u.Class].Segment; s != torn {
			segment = segmentName(s)
		}
		ways, at = append(ways, segment+"/"+a.String()), append(at, fmt.Sprintf("%s by %s", segment, c.nameOf(u.At[0])))
	}
	slices.Sort(at)
	slices.Sort(ways)
	return Unit{}, fmt.Errorf("%d segments have %s: %s; write %s", len(l), a, strings.Join(at[:min(len(at), 5)], ", "), strings.Join(ways[:min(len(ways), 5)], " or "))
}

// within is the unit of SEGMENT/ADDRESS: of the segment's realm.
func (c *Compiled) within(segment string, a netip.Addr) (Unit, error) {
	name := segment
	if segment == UnassignedItem {
		segment = Unassigned
	} else if !slices.ContainsFunc(c.declared.Segments, func(s Segment) bool { return s.Name == segment }) {
		return Unit{}, fmt.Errorf("there is no segment %.80q", segment)
	}
	for _, u := range c.UnitsOf(a) {
		if u.Realm == c.Realms.Of(segment) {
			return u, nil
		}
	}
	return Unit{}, fmt.Errorf("no node of segment %s has %s, or an approved route to it", name, a)
}

func nobodyHas(a netip.Addr) error {
	return fmt.Errorf("no node has %s, or an approved route to it", a)
}

func (c *Compiled) nameOf(n protocol.NodeNumber) string {
	for _, x := range c.declared.Nodes {
		if x.Number == n {
			return x.Name
		}
	}
	return fmt.Sprintf("node %d", n)
}

// ParsePlace reads SEGMENT/ADDRESS; ok is false for what is written another way.
func ParsePlace(text string) (segment string, a netip.Addr, ok bool) {
	segment, addr, ok := strings.Cut(text, "/")
	a, err := netip.ParseAddr(addr)
	return segment, a.Unmap(), ok && err == nil && a.Zone() == "" && protocol.ValidName(segment)
}

func (c *Compiled) verdict(a, b *Class, port protocol.Ports) Verdict {
	for _, x := range c.Allows(Pair{a.ID, b.ID}) {
		if x.Has(port) {
			return Verdict{Open: true, Rule: x.Rule}
		}
	}
	v := Verdict{}
	v.Nearest, v.Lacks = c.nearest(a, b, port)
	return v
}

// nearest finds the rule that lacks least. What is missing further out counts more: a rule for other ports is
// nearer than one for others.
func (c *Compiled) nearest(a, b *Class, port protocol.Ports) (name, lacks string) {
	best := 0
	for _, r := range c.rules {
		from, to := slices.Contains(a.Sides, r.From), slices.Contains(b.Sides, r.To)
		back := slices.Contains(b.Sides, r.From) && slices.Contains(a.Sides, r.To)
		ports := slices.ContainsFunc(r.Allow, func(p protocol.Ports) bool { return p.Has(port) })
		score, why := 0, ""
		switch {
		case from && to && !r.joins(a.Segment, b.Segment):
			score, why = 5, wall(a.Segment, b.Segment)
		case from && to && !r.holds(c.now):
			score, why = 6, "it ended with "+r.Until.AddDate(0, 0, -1).Format(lastDay)
		case from && to:
			score, why = 7, fmt.Sprintf("it opens %s and not %s", allowText(r.Allow), port)
		case back && ports:
			score, why = 4, "it opens the other direction"
		case to && ports:
			score, why = 3, fmt.Sprintf("it opens it from %s", r.From)
		case from && ports:
			score, why = 2, fmt.Sprintf("it opens it to %s", r.To)
		}
		if score > best {
			best, name, lacks = score, r.Name, why
		}
	}
	return name, lacks
}

// wall says why nothing passes between two segments by an ordinary rule.
func wall(a, b string) string {
	switch {
	case a == torn || b == torn:
		return "one side belongs to two segments"
	case a == b:
		return "it opens nothing inside one segment"
	}
	named := func(s string) string {
		if s == Unassigned {
			return "no segment"
		}
		return "segment " + s
	}
	return fmt.Sprintf("it does not say across, and they are in %s and in %s", named(a), named(b))
}

func allowText(l []protocol.Ports) string {
	var out []string
	for _, p := range l {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}

// resolve finds the classes that a name in a test or a question means: an address, SEGMENT/ADDRESS, a node (its own
// addresses) or SITE/*.
func (c *Compiled) resolve(name string) (map[bool][]*Class, error) { // by whether of IPv6
	out := map[bool][]*Class{}
	add := func(u Unit) {
		v6, k := u.Prefix.Addr().Is6(), c.byID[u.Class]
		if !slices.Contains(out[v6], k) {
			out[v6] = append(out[v6], k)
		}
	}
	if u, ok, err := c.place(name); err != nil {
		return nil, err
	} else if ok {
		add(u)
		return out, nil
	}
	site, all := strings.CutSuffix(name, "/*")
	n := c.names[name]
	for _, u := range c.Units {
		if all && slices.ContainsFunc(c.nodesOf(site), func(x *Node) bool { return slices.Contains(u.At, x.Number) }) ||
			!all && slices.Contains(n.Own, u.Prefix) {
			add(u)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%.80q has no address", name)
	}
	return out, nil
}

// place is the unit of an address or of SEGMENT/ADDRESS; ok is false of a node and of SITE/*. The error is of a name that is none of
// these.
func (c *Compiled) place(name string) (u Unit, ok bool, err error) {
	if a, err := netip.ParseAddr(name); err == nil {
		u, err = c.only(a)
		return u, true, err
	}
	if segment, a, ok := ParsePlace(name); ok {
		u, err = c.within(segment, a)
		return u, true, err
	}
	if c.names[name] == nil && !strings.HasSuffix(name, "/*") {
		err = fmt.Errorf("%.80q is no address, no SEGMENT/ADDRESS, no node and no SITE/*", name)
	}
	return u, false, err
}

func (c *Compiled) nodesOf(site string) (l []*Node) {
	for _, n := range c.names {
		if n.Site == site {
			l = append(l, n)
		}
	}
	return l
}

// Ask says what becomes of connections between what two names mean: the first that is not as the others.
// Want, if it is said, is what is wanted: the first that is not so.
func (c *Compiled) Ask(from, to, port, want string) (Verdict, error) {
	p, err := protocol.ParsePorts(port)
	if err != nil {
		return Verdict{}, err
	}
	if c.Open {
		return Verdict{Open: true}, nil
	}
	a, err := c.resolve(from)
	if err != nil {
		return Verdict{}, err
	}
	b, err := c.resolve(to)
	if err != nil {
		return Verdict{}, err
	}
	var first *Verdict
	for _, v6 := range []bool{false, true} {
		for _, x := range a[v6] {
			for _, y := range b[v6] {
				v := c.verdict(x, y, p)
				if want != "" && v.Open != (want == "open") {
					return v, nil
				}
				if first == nil {
					first = &v
				}
			}
		}
	}
	if first == nil {
		return Verdict{}, fmt.Errorf("%s and %s have no address of one family", from, to)
	}
	return *first, nil
}

// Test says which of the tests of a policy does not hold. With stale those that name what is not there are left out.
func (c *Compiled) Test(tests []api.PolicyTest, stale bool) error {
	for _, t := range tests {
		at := fmt.Sprintf("test from %.80s to %.80s, %.40s", t.From, t.To, t.Port)
		if t.Want != "open" && t.Want != "closed" {
			return fmt.Errorf("%s: want: %.40q is neither open nor closed", at, t.Want)
		}
		v, err := c.Ask(t.From, t.To, t.Port, t.Want)
		switch _, rule, _ := strings.Cut(v.Rule, "/"); {
		case err != nil && stale:
		case err != nil:
			return fmt.Errorf("%s: %w", at, err)
		case v.Open != (t.Want == "open"):
			return fmt.Errorf("%s: wanted %s, and it is %s", at, t.Want, v)
		case t.By != "" && t.Want == "open" && t.By != rule && t.By != v.Rule:
			return fmt.Errorf("%s: wanted open by %.80s, and it is %s", at, t.By, v)
		}
	}
	return nil
}

// errNobody is of a side that means nobody.
var errNobody = errors.New("no address of any node is meant; correct it, or say expect_empty: true")

// Met says which side of a rule means nobody, of rules that do not expect it: of those of policies that were declared by
// a transaction or later, and of sides that name a segment which was. What means nobody any more, as its nodes are gone, keeps
// nobody from changing something else. Sides that name pods are left out: pods come and go.
func (c *Compiled) Met(since uint64) error {
	fresh := map[string]bool{} // policies, and segments by a name that no policy has
	for _, p := range c.declared.Policies {
		fresh[p.Name] = p.Generation >= since
	}
	for _, s := range c.declared.Segments {
		fresh["segment "+s.Name] = s.Generation >= since
	}
	for _, r := range c.rules {
		policy, _ := r.split()
		for i, s := range []*side{r.from, r.to} {
			what := []string{"from", "to"}[i]
			if !r.Empty && len(s.Pods) == 0 && (fresh[policy] || fresh["segment "+s.Segment]) && slices.Contains(c.unmet, s.text) {
				return fmt.Errorf("rule %s: %s: %s: %w", r.Name, what, s.text, errNobody)
			}
		}
	}
	return nil
}

// Over says which rule had ended when it was declared, by a transaction or later.
func (c *Compiled) Over(since uint64) error {
	for _, p := range c.declared.Policies {
		for _, w := range p.Rules {
			r, err := ReadRule(p.Name, w)
			if err == nil && p.Generation >= since && !r.holds(c.now) {
				return fmt.Errorf("policy %s: rule %s: until: %s is over; take the rule out, or write a day to come", p.Name, w.Name, r.LastDay())
			}
		}
	}
	return nil
}
