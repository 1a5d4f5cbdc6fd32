package fleet

import (
	"maps"
	"time"

	"causeway/hub/plan"
	"causeway/hub/state"
	"causeway/protocol"
)

// Revocations are followed for so long and no more than so many.
const (
	followRevoked = 15 * time.Minute
	maxRevoked    = 1000
)

// Revoked is how far the cluster is with letting go of a node.
type Revoked struct {
	At        time.Time // of the transaction
	Cut       time.Time // the hub's tunnel let go of it: relay, control and NATS; zero: not yet
	Confirmed map[protocol.NodeNumber]time.Time
}

// NoteRevoked begins to follow nodes of st that were revoked.
func (t *Table) NoteRevoked(st *state.State) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for n, r := range t.revoked {
		if now.Sub(r.At) > followRevoked {
			delete(t.revoked, n)
		}
	}
	for _, n := range st.Nodes.All() {
		if n.Gone != state.GoneRevoked || now.Sub(n.GoneTime) > followRevoked || t.revoked[n.Number] != nil || len(t.revoked) >= maxRevoked {
			continue
		}
		r := &Revoked{At: n.GoneTime, Confirmed: map[protocol.NodeNumber]time.Time{}}
		t.revoked[n.Number] = r
		for m, l := range t.nodes {
			r.confirm(n.Number, m, l, now)
		}
	}
}

// confirmed notes of which revoked nodes node m has let go. t.mu is held.
func (t *Table) confirmed(m protocol.NodeNumber, l *record, now time.Time) {
	for n, r := range t.revoked {
		r.confirm(n, m, l, now)
	}
}

func (r *Revoked) confirm(revoked, m protocol.NodeNumber, l *record, now time.Time) {
	if l.session == nil || !r.Confirmed[m].IsZero() {
		return
	}
	x := Node{Held: l.session.held, Errors: l.errors}
	if x.Took(func(v *plan.Netmaps) bool { return !v.Knows(m, revoked) }) {
		r.Confirmed[m] = now
	}
}

// Cut notes that the tunnel has no other nodes than these now.
func (t *Table) Cut(has func(protocol.NodeNumber) bool) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for n, r := range t.revoked {
		if r.Cut.IsZero() && !has(n) {
			r.Cut = now
		}
	}
}

// Revoked is how far the cluster is with node n; ok is false where that is not followed, any more or yet.
func (t *Table) Revoked(n protocol.NodeNumber) (r Revoked, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.revoked[n]
	if x == nil {
		return Revoked{}, false
	}
	return Revoked{x.At, x.Cut, maps.Clone(x.Confirmed)}, true
}
