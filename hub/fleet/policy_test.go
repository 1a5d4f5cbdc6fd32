package fleet

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/policy"
)

// Whoever asks by a state hears what follows from it, and not what did before.
func TestPolicyAt(t *testing.T) {
	x := New(Config{})
	require.Nil(t, x.Policy())
	before := &policy.Compiled{Open: true}
	x.SetPolicy(Policy{Compiled: before, Sequence: 6})
	got := make(chan *Policy)
	go func() {
		p, err := x.PolicyAt(t.Context(), 7)
		if err != nil {
			p = nil
		}
		got <- p
	}()
	x.SetPolicy(Policy{Compiled: before, Sequence: 6, Since: time.Now()})
	select {
	case <-got:
		t.Fatal("it answers by the state before")
	default:
	}
	after := &policy.Compiled{}
	x.SetPolicy(Policy{Compiled: after, Sequence: 8})
	require.Same(t, after, (<-got).Compiled)
	require.Same(t, after, x.Policy().Compiled)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := x.PolicyAt(ctx, 9)
	require.ErrorIs(t, err, context.Canceled)
	x.SetPolicy(Policy{Sequence: 9, Err: errors.New("too many classes")})
	_, err = x.PolicyAt(t.Context(), 9)
	require.EqualError(t, err, "nobody may talk to anybody since the hub's start: too many classes")
}
