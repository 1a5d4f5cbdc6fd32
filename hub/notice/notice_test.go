package notice

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Each reader is told once what changed since it joined and asked last, however often that was.
func TestBoard(t *testing.T) {
	var b Board[int]
	require.False(t, b.Any())
	b.Mark(1)
	wake := make(chan struct{}, 1)
	one, two := b.Join(wake), b.Join(wake)
	require.True(t, b.Any())
	keys, all := one.Take()
	require.Empty(t, keys)
	require.False(t, all)
	require.Empty(t, wake)

	b.Mark(1, 2)
	b.Mark(2)
	<-wake
	require.Empty(t, wake)
	keys, all = one.Take()
	require.Equal(t, map[int]bool{1: true, 2: true}, keys)
	require.False(t, all)
	keys, _ = one.Take()
	require.Empty(t, keys)

	b.MarkAll()
	b.Mark(3)
	keys, all = two.Take()
	require.Empty(t, keys)
	require.True(t, all)
	b.Mark(4)
	keys, all = two.Take()
	require.Equal(t, map[int]bool{4: true}, keys)
	require.False(t, all)

	for n := range most + 1 {
		b.Mark(n)
	}
	keys, all = two.Take()
	require.Empty(t, keys)
	require.True(t, all, "what is kept is bounded")

	one.Leave()
	two.Leave()
	require.False(t, b.Any())
}
