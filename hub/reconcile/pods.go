package reconcile

import (
	"reflect"
	"slices"
	"time"

	"causeway/hub/facts/inventory"
	"causeway/hub/notice"
	"causeway/hub/object"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/protocol"
)

// Facts is what of nodes' facts is needed here.
type Facts interface {
	Get(protocol.NodeNumber) (inventory.Facts, bool)
	Notices(wake chan<- struct{}) *notice.Reader[protocol.NodeNumber]
}

const (
	// podsEvery is between two looks at what changed of pods.
	podsEvery = 200 * time.Millisecond
	// podsRest is how many times as long as the last compilation took that is at least: nodes whose pods come and go all the
	// time have a fifth of the loop's time.
	podsRest = 4
)

// pods are those of all nodes, as these told last, while rules ask for them. What a node that is away told stays. The
// loop alone uses it.
type pods struct {
	news *notice.Reader[protocol.NodeNumber] // nil: no rule asks
	of   map[protocol.NodeNumber][]policy.Pod
	due  time.Time
}

// look reads what changed, and reports whether anything did that rules see.
func (p *pods) look(facts Facts, now time.Time) (changed bool) {
	if p.news == nil || now.Before(p.due) {
		return false
	}
	p.due = now.Add(podsEvery)
	keys, all := p.news.Take()
	if all {
		for n := range p.of {
			keys[n] = true
		}
	}
	for n := range keys {
		if had, known := p.of[n]; known {
			p.of[n] = podsOf(facts, n)
			changed = changed || !reflect.DeepEqual(had, p.of[n])
		}
	}
	return changed
}

func podsOf(facts Facts, n protocol.NodeNumber) []policy.Pod {
	f, _ := facts.Get(n)
	return object.PodsOf(n, f.Containers)
}

// list are the pods of the nodes of a state, by node, if rules ask for them.
func (p *pods) list(facts Facts, st *state.State, asked bool) (out []policy.Pod) {
	if !asked || facts == nil {
		if p.news != nil {
			p.news.Leave()
		}
		*p = pods{due: p.due}
		return nil
	}
	if p.news == nil {
		p.news, p.of = facts.Notices(make(chan struct{}, 1)), map[protocol.NodeNumber][]policy.Pod{} // it is looked at by the time
	}
	live := map[protocol.NodeNumber][]policy.Pod{}
	for _, n := range st.LiveNodes() {
		had, known := p.of[n.Number]
		if !known {
			had = podsOf(facts, n.Number)
		}
		live[n.Number] = had
		out = append(out, had...)
	}
	p.of = live
	slices.SortStableFunc(out, func(a, b policy.Pod) int { return int(a.Node) - int(b.Node) })
	return out
}

// compiled has the next look wait, after a compilation that took so long.
func (p *pods) compiled(took time.Duration) { p.due = time.Now().Add(max(podsEvery, podsRest*took)) }
