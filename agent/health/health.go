// Package health keeps an agent's named conditions: whether each holds, since
// when, and why not. Endpoint, status messages and CLI show the same list.
package health

import (
	"slices"
	"sync"
	"time"

	"causeway/protocol"
)

// Board is a list of conditions. Its methods may be called concurrently.
type Board struct {
	changed func(protocol.Condition)

	mu    sync.Mutex
	list  []protocol.Condition
	index map[string]int
}

// Spec declares a condition. It begins as not ok, with Cause.
type Spec struct {
	Name      string
	Cause     string
	DependsOn []string
}

// New makes a board of these conditions. changed hears of every condition
// that begins or ceases to hold, or whose cause changed; it must not block.
func New(now time.Time, changed func(protocol.Condition), specs ...Spec) *Board {
	b := &Board{changed: changed, index: map[string]int{}}
	for i, s := range specs {
		b.index[s.Name] = i
		b.list = append(b.list, protocol.Condition{Name: s.Name, Since: now.UTC(), Cause: s.Cause, DependsOn: s.DependsOn})
	}
	return b
}

// Set says whether a condition holds: cause is empty if it does. Names that
// were not declared are ignored.
func (b *Board) Set(name, cause string) { b.set(name, cause, "") }

// SetNote says that a condition holds, and what there is to know about it.
func (b *Board) SetNote(name, note string) { b.set(name, "", note) }

func (b *Board) set(name, cause, note string) {
	b.mu.Lock()
	i, ok := b.index[name]
	if !ok {
		b.mu.Unlock()
		return
	}
	c := &b.list[i]
	if c.OK == (cause == "") && c.Cause == cause && c.Note == note {
		b.mu.Unlock()
		return
	}
	if c.OK != (cause == "") {
		c.Since = time.Now().UTC()
	}
	c.OK, c.Cause, c.Note = cause == "", cause, note
	now := *c
	b.mu.Unlock()
	b.changed(now)
}

// SetError is Set with an error; nil holds.
func (b *Board) SetError(name string, err error) {
	if err != nil {
		b.Set(name, err.Error())
		return
	}
	b.Set(name, "")
}

// List is a copy of the conditions, in the order of their declaration.
func (b *Board) List() []protocol.Condition {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.list)
}

// OK reports whether a condition holds.
func (b *Board) OK(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i, ok := b.index[name]
	return ok && b.list[i].OK
}
