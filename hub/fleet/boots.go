package fleet

import (
	"slices"
	"time"

	"causeway/protocol"
)

const (
	// cloneWindow is how far apart the signs of a clone may be.
	cloneWindow = 10 * time.Minute
	// maxBoots bounds the boot ids remembered of a node.
	maxBoots = 16
)

// Released forgets what boot ids a node had.
func (t *Table) Released(n protocol.NodeNumber) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.nodes[n]; l != nil {
		l.boots = boots{}
		t.wrote(n)
	}
}

// Booted notes that node n has proven boot id id. From then on, until the next one or Released, its record says whether its
// identity is used twice.
func (t *Table) Booted(n protocol.NodeNumber, id protocol.BootID, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := &t.node(n).boots
	was := b.cloned
	if b.cloned = b.next(id, now); b.cloned != was {
		t.wrote(n)
	}
}

// Suspected says that what the record says of node n's identity was seen.
func (t *Table) Suspected(n protocol.NodeNumber) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.nodes[n]; l != nil {
		l.boots.cloned = false
		t.wrote(n)
	}
}

// boots remembers the boot ids that a node has proven. Each start of an
// agent has a new one, so that one that comes back after another is the sign
// of two agents with one identity. A single one that comes back is not enough: a
// virtual machine set back to a snapshot goes on with the agent that ran then.
// Two that come back take turns, and no single machine does that.
type boots struct {
	last protocol.BootID
	seen []protocol.BootID // oldest first, last among them
	back []comeback

	cloned bool // by the last one
}

type comeback struct {
	boot protocol.BootID
	at   time.Time
}

// next takes a boot id; it reports whether the node's identity is used twice.
func (b *boots) next(id protocol.BootID, now time.Time) bool {
	if id == b.last {
		return false
	}
	b.last = id
	b.back = slices.DeleteFunc(b.back, func(c comeback) bool { return now.Sub(c.at) > cloneWindow })
	if !slices.Contains(b.seen, id) {
		b.seen = append(b.seen, id)
		if len(b.seen) > maxBoots {
			b.seen = b.seen[1:]
		}
		return false
	}
	b.back = append(b.back, comeback{id, now})
	if len(b.back) > maxBoots {
		b.back = b.back[1:]
	}
	return slices.ContainsFunc(b.back, func(c comeback) bool { return c.boot != id })
}
