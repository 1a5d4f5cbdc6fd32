package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Realms say in which segment a node is, and which segments share addresses. A realm is all segments that rules join,
// across one after the other: within it an address is met at one place, and no packet leaves it, so that another one
// may have the same addresses. It has no clock: a rule that has ended joins as long as it is declared.
type Realms struct {
	segments []Segment
	bySite   map[string]string // torn: of two segments
	realm    map[string]string // of joined segments the first by name
	joins    []join
	doubts   []string // sites of two segments
}

// join is a rule across two segments.
type join struct{ rule, a, b string }

// NewRealms works out the realms of segments and policies.
func NewRealms(segments []Segment, policies []Policy) *Realms {
	r := &Realms{segments: segments, bySite: map[string]string{}, realm: map[string]string{}}
	for _, s := range segments {
		r.realm[s.Name] = s.Name
		for _, site := range s.Sites {
			if had, ok := r.bySite[site]; ok && had != s.Name {
				r.doubts = append(r.doubts, fmt.Sprintf("site %s is in segments %s and %s", site, had, s.Name))
				r.bySite[site] = torn
				continue
			}
			r.bySite[site] = s.Name
		}
	}
	for _, p := range policies {
		for _, w := range p.Rules {
			if len(w.Across) == 2 {
				r.join(join{p.Name + "/" + w.Name, w.Across[0], w.Across[1]})
			}
		}
	}
	return r
}

// join makes one realm of those of two segments.
func (r *Realms) join(j join) {
	r.joins = append(r.joins, j)
	a, b := r.Of(j.a), r.Of(j.b)
	if a == b {
		return
	}
	r.realm[j.a], r.realm[j.b] = a, b // one that is not declared, too
	for s, in := range r.realm {
		if in == a || in == b {
			r.realm[s] = min(a, b)
		}
	}
}

// Of is the realm of a segment: the same text for segments that are joined.
func (r *Realms) Of(segment string) string {
	if in, ok := r.realm[segment]; ok {
		return in
	}
	return segment
}

// Segment is the segment of a node with these labels at a site, or without labels of the site itself. What is in two
// is in none that is declared.
func (r *Realms) Segment(site string, labels map[string]string) string {
	segment, _ := r.place(site, labels)
	return segment
}

// place is Segment; doubt is what two segments a node is in by its labels.
func (r *Realms) place(site string, labels map[string]string) (segment string, doubt [2]string) {
	in, by := r.bySite[site], ""
	for _, s := range r.segments {
		if len(s.Labels) == 0 || !hasAll(labels, s.Labels) {
			continue
		}
		if by != "" {
			return torn, [2]string{by, s.Name}
		}
		in, by = s.Name, s.Name
	}
	return in, doubt
}

// Joined says by which rules two segments of one realm are; empty if they are one segment.
func (r *Realms) Joined(a, b string) string {
	from := map[string]join{} // by which join a segment was found first
	found := []string{a}
	for i := 0; i < len(found) && a != b; i++ {
		for _, j := range r.joins {
			for _, x := range [][2]string{{j.a, j.b}, {j.b, j.a}} {
				if x[0] == found[i] && x[1] != a && from[x[1]] == (join{}) {
					from[x[1]] = j
					found = append(found, x[1])
				}
			}
		}
	}
	var rules []string
	for at := b; at != a && len(rules) <= len(r.joins); {
		j, ok := from[at]
		if !ok {
			return ""
		}
		rules = append(rules, j.rule)
		if at == j.a {
			at = j.b
		} else {
			at = j.a
		}
	}
	switch slices.Reverse(rules); len(rules) {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("rule %s joins segments %s and %s", rules[0], a, b)
	}
	return fmt.Sprintf("rules %s join segments %s and %s", strings.Join(rules, ", "), a, b)
}

// Name is a segment as operators write it; where none is declared, nothing.
func (r *Realms) Name(segment string) string {
	if len(r.segments) == 0 {
		return ""
	}
	return segmentName(segment)
}

func segmentName(segment string) string {
	if segment == Unassigned {
		return UnassignedItem
	}
	return segment
}
