package fleet

import (
	"context"
	"fmt"
	"time"

	"causeway/hub/policy"
)

// policyPatience bounds how long whoever asks waits for what is declared to be compiled.
const policyPatience = 5 * time.Second

// Policy is who may talk to whom, as it was compiled last.
type Policy struct {
	// Compiled is in force; nil: nothing could be compiled since the hub's start, and nobody may talk.
	Compiled *policy.Compiled
	Sequence uint64    // of the state that was looked at last
	Since    time.Time // since when Compiled is in force, as far as this run of the hub knows
	// Err says why what that state declares is not what is in force; nil: it is.
	Err error
}

// SetPolicy takes what is in force. One goroutine alone calls it.
func (t *Table) SetPolicy(p Policy) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.policy = &p
	close(t.compiled)
	t.compiled = make(chan struct{})
}

// Policy is what is in force; nil: the hub has just started, and has looked at nothing yet.
func (t *Table) Policy() *Policy {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.policy
}

// PolicyAt is what is in force once the state with a sequence was looked at: it waits for that a moment. The error is
// for a person.
func (t *Table) PolicyAt(ctx context.Context, sequence uint64) (*Policy, error) {
	late := time.NewTimer(policyPatience)
	defer late.Stop()
	for {
		t.mu.Lock()
		p, news := t.policy, t.compiled
		t.mu.Unlock()
		switch {
		case p == nil || p.Sequence < sequence:
		case p.Compiled == nil:
			return nil, fmt.Errorf("nobody may talk to anybody since the hub's start: %w", p.Err)
		default:
			return p, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-late.C:
			return nil, fmt.Errorf("the hub has not compiled transaction %d within %s; try again", sequence, policyPatience)
		}
	}
}
