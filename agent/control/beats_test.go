package control

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What a hub answers counts from when it was sent, once, and nothing else that a hub says does.
func TestBeats(t *testing.T) {
	var b beats
	first, second := b.next(time.Second), b.next(2*time.Second)
	at, ok := b.answered(second)
	require.True(t, ok)
	require.Equal(t, 2*time.Second, at)
	_, ok = b.answered(second)
	require.False(t, ok)
	_, ok = b.answered(second + 1)
	require.False(t, ok)
	for range maxBeats {
		b.next(time.Minute)
	}
	_, ok = b.answered(first)
	require.False(t, ok, "given up")
	require.LessOrEqual(t, len(b.sent), maxBeats)
}
