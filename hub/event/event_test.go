package event

import (
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNewestFirst(t *testing.T) {
	var l Log
	require.Empty(t, l.Newest(5))
	for i := range 2*size + 3 {
		l.Add(NodeUp, "", strconv.Itoa(i))
		got := l.Newest(2)
		require.Equal(t, strconv.Itoa(i), got[0].Message)
		if i > 0 {
			require.Equal(t, strconv.Itoa(i-1), got[1].Message)
		}
	}
	require.Len(t, l.Newest(10*size), size)
	require.Equal(t, uint64(2*size+3), l.Count(NodeUp))
}
