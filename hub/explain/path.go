package explain

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"causeway/hub/api"
	"causeway/protocol"
)

// alive reports whether some way to the other end is proven.
func alive(e *protocol.Evidence) bool {
	return slices.ContainsFunc(e.Ways, protocol.Way.Fresh)
}

// path judges the ways between the nodes.
func (j *judge) path() {
	if j.failed(HopAgent, HopAllowed) {
		return
	}
	for _, s := range j.sides() {
		e := s.e
		if e.Underlay.UDPBlocked {
			f := api.Fault{Cause: "udp-blocked", Hop: HopPath, Node: s.node(), Summary: "UDP does not pass between " + s.node() + " and the hub; everything goes over TCP, slower",
				Evidence: []string{"the hub answers over a stream (TCP) and not over UDP"}, Mend: "let UDP to the hub's port pass the firewall of site " + s.Node.Site}
			for _, d := range e.Flow.Drops {
				if d.Certain && strings.HasPrefix(d.Way, "underlay") {
					own := j.dropFault(s, HopPath, d)
					f.Evidence, f.Mend = append(f.Evidence, own.Evidence...), own.Mend
					break
				}
			}
			j.add(f)
		}
		j.noData(s, "the hub", e.Underlay.Hub, "let all of UDP to the hub's port pass the firewall of site "+s.Node.Site)
		j.noData(s, s.other.Node.Name, e.Ways, "let all of UDP pass between the two hosts, whatever its size and first bytes")
	}
	a, b := j.sides()[0], j.sides()[1]
	if !alive(a.e) && !alive(b.e) && !j.failed(HopHost) {
		j.add(api.Fault{Cause: "no-path", Hop: HopPath, Blocks: true, Summary: fmt.Sprintf("no path between %s and %s: nothing is answered, directly or through the hub", a.node(), b.node()),
			Evidence: slices.Concat([]string{ways(a), ways(b)}, counted(a), counted(b)), Mend: "causeway diag path " + a.node() + " " + b.node()})
		return
	}
	j.oneWay(a, b)
	j.oneWay(b, a)
	for _, s := range []side{a, b} {
		gaps := 0
		for _, w := range s.e.Ways {
			if w.Chosen {
				gaps = w.Gaps
			}
		}
		if p := s.e.Path; p != nil && p.Loss >= lossyPath && gaps >= lossyGaps {
			j.add(api.Fault{Cause: "path-loss", Hop: HopPath, Node: s.node(), Summary: fmt.Sprintf("the %s path from %s loses %.0f %% of its probes", p.Path, s.node(), 100*p.Loss),
				Evidence: []string{fmt.Sprintf("%s path by %s", p.Path, p.Addr)}})
		}
		j.nat(s)
	}
}

// noData names ways of s that answer probes and do not carry what is sent.
func (j *judge) noData(s side, to string, ways []protocol.Way, mend string) {
	for _, w := range ways {
		if w.Suspect == "" {
			continue
		}
		at := ""
		if w.Addr.IsValid() {
			at = " by " + w.Addr.String()
		}
		j.add(api.Fault{Cause: "path-no-data", Hop: HopPath, Node: s.node(), Summary: fmt.Sprintf("the %s path from %s to %s%s carries no data, or little, so that another one is taken", w.Kind, s.node(), to, at),
			Evidence: []string{w.Suspect}, Mend: mend})
		return
	}
}

func ways(s side) string {
	var out []string
	for _, w := range s.e.Ways {
		text := string(w.Kind)
		if w.Addr.IsValid() {
			text += " " + w.Addr.String()
		}
		if w.Answered < 0 {
			text += " never answered"
		} else {
			text += " answered " + ago(w.Answered) + " ago"
		}
		out = append(out, text)
	}
	if out == nil {
		out = []string{"none is tried"}
	}
	return "ways from " + s.node() + ": " + strings.Join(out, ", ")
}

// oneWay finds a direct way on which questions of a reach b while b's datagrams do
// not reach a.
func (j *judge) oneWay(a, b side) {
	direct := func(w protocol.Way) bool { return w.Kind == protocol.PathDirect }
	last := func(s side, age func(protocol.Way) time.Duration) (at time.Time) { // by the hub's clock; zero: never
		for _, w := range s.e.Ways {
			if d := age(w); direct(w) && d >= 0 && d < oldWay && s.At.Add(-d).After(at) {
				at = s.At.Add(-d)
			}
		}
		return at
	}
	heard := func(w protocol.Way) time.Duration { return w.Heard }
	answered := func(w protocol.Way) time.Duration { return w.Answered }
	// The other directions were silent for a while when the last question came.
	since := last(b, heard).Add(-oneWaySilence)
	if last(b, heard).IsZero() || last(a, heard).After(since) || last(a, answered).After(since) || last(b, answered).After(since) {
		return
	}
	silent := func(w protocol.Way) bool { return direct(w) && w.Unanswered >= 3 }
	i := slices.IndexFunc(a.e.Ways, func(w protocol.Way) bool { return silent(w) && w.Answered >= 0 }) // the one that was used
	if i < 0 {
		i = slices.IndexFunc(a.e.Ways, silent)
	}
	if i < 0 {
		return
	}
	f := api.Fault{Cause: "one-way-drop", Hop: HopPath, Node: a.node(), Summary: fmt.Sprintf("datagrams from %s to %s are lost on the direct way, those the other way arrive; the relay carries the flow", b.node(), a.node()),
		Evidence: []string{fmt.Sprintf("%s hears questions of %s, whose own %d questions to %s were not answered", b.node(), a.node(), a.e.Ways[i].Unanswered, a.e.Ways[i].Addr)},
		Mend:     fmt.Sprintf("let UDP from %s to %s pass the firewall of site %s", b.node(), a.node(), a.Node.Site)}
	for _, s := range []side{a, b} {
		for _, d := range s.e.Flow.Drops {
			if d.Certain && strings.HasPrefix(d.Way, "underlay") {
				own := j.dropFault(s, HopPath, d)
				f.Evidence, f.Mend = append(f.Evidence, own.Evidence...), own.Mend
			}
		}
	}
	j.add(f)
}

// nat judges by the addresses that are bound at the hub: a mapping that was lost is
// still among them for a minute.
func (j *judge) nat(s side) {
	for i, x := range s.Bound {
		for _, y := range s.Bound[i+1:] {
			if x.Addr() == y.Addr() && x.Port() != y.Port() {
				j.add(api.Fault{Cause: "nat-mapping-lost", Hop: HopNAT, Node: s.node(), Summary: fmt.Sprintf("the NAT in front of %s gave it a new port within the last minute: it lost its mapping", s.node()),
					Evidence: []string{fmt.Sprintf("the hub saw it at %s, and now at %s", y, x)}, Mend: "nothing to do once; if it comes again: raise the UDP timeout of the NAT of site " + s.Node.Site + " above 30 s"})
				return
			}
		}
	}
}
