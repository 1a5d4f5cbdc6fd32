package fleet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"causeway/hub/facts/event"
	"causeway/hub/state"
	"causeway/protocol"
)

const (
	// strayFor is how long a stray is shown after its last question, which comes three times a
	// minute.
	strayFor = 2 * time.Minute
	// strayTold is until an event tells of one again.
	strayTold = time.Hour
	maxStrays = 1000
)

// Stray is a host with the identity of a node and a key that is the node's no more, or with
// that of a node that is gone: its disk was set back, or it is a copy. It has no session.
type Stray struct {
	Number protocol.NodeNumber
	Epoch  uint32     // of the newest key that it has
	Addr   netip.Addr // from which it asks; a proxy's, maybe
	At     time.Time  // when it asked last
	told   time.Time
	over   bool // that it asks no more was marked
}

// NoteStray takes the question of one over HTTPS, signed by the node's identity key. It is for a
// person to read: nothing is decided by it.
func (t *Table) NoteStray(n state.Node, a protocol.NodeAsk, from netip.Addr) {
	now := time.Now()
	t.mu.Lock()
	old, known := t.strays.Find(n.Number)
	if !known && t.strays.Len() >= maxStrays {
		for k, x := range t.strays.All() {
			if now.Sub(x.At) > strayTold {
				t.strays.Delete(k)
			}
		}
	}
	if !known && t.strays.Len() >= maxStrays {
		t.mu.Unlock()
		return
	}
	x := Stray{Number: n.Number, Epoch: a.Epoch, Addr: from, At: now, told: old.told}
	tell := now.Sub(old.told) > strayTold
	if tell {
		x.told = now
	}
	t.strays.Set(n.Number, x)
	t.mu.Unlock()
	t.notices.Mark(n.Number)
	if tell {
		text := x.text(n)
		t.cfg.Events.Add(event.NodeSetBack, n.Name, text)
		t.cfg.Log.Warn().Str("node", n.Name).Str("addr", from.String()).Uint32("key_epoch", a.Epoch).Msg("a host with an earlier state of a node asks for a session")
	}
}

// strayed marks the nodes of strays that asked for the last time long enough ago. t.mu is held.
func (t *Table) strayed(now time.Time) {
	for n, x := range t.strays.All() {
		if !x.over && now.Sub(x.At) >= strayFor {
			x.over = true
			t.strays.Set(n, x)
			t.notices.Mark(n)
		}
	}
}

// text says what x, which has the identity of n, is.
func (x Stray) text(n state.Node) string {
	if n.Gone != "" {
		return fmt.Sprintf("a host at %s has the identity of node %d, which is gone (%s): its disk was set back to an earlier time, or it is a copy, or its agent was left running", x.Addr, n.Number, n.Gone)
	}
	return fmt.Sprintf("a host at %s has this node's identity with key epoch %d, and the node's is %d: its disk was set back to an earlier time, or it is a copy", x.Addr, x.Epoch, n.KeyEpoch())
}

// Strays lists those that asked lately, by number. A host that has the identity of a node that is gone, and
// has asked no more since one joined under that name, is taken for the one that joined.
func (t *Table) Strays() []Stray {
	st := t.cfg.State()
	t.mu.Lock()
	defer t.mu.Unlock()
	out := []Stray{}
	for _, x := range t.strays.All() {
		if time.Since(x.At) < strayFor && !x.joined(st) {
			out = append(out, x)
		}
	}
	slices.SortFunc(out, func(a, b Stray) int { return cmp.Compare(a.Number, b.Number) })
	return out
}

// joined reports whether a node of x's name has joined since x asked, and x's own is gone.
func (x Stray) joined(st *state.State) bool {
	n := st.Nodes.Get(x.Number)
	now, ok := st.LiveAt(n.Site, n.Name)
	return ok && now.Number != n.Number && now.Joined.After(x.At)
}

// strayOf says what asks for a session with the identity of n, which has none; "": nobody does.
func strayOf(n state.Node, strays state.Map[protocol.NodeNumber, Stray], now time.Time) string {
	x, ok := strays.Find(n.Number)
	if !ok || now.Sub(x.At) >= strayFor || x.Epoch > n.KeyEpoch() {
		return ""
	}
	return x.text(n)
}
