package admin

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWaveSizes(t *testing.T) {
	for _, c := range []struct {
		waves []string
		nodes int
		want  []int
	}{
		{nil, 30, []int{1, 3, 30}},
		{nil, 3, []int{1, 1, 3}},
		{[]string{"2", "50%"}, 10, []int{2, 5}},
		{[]string{"100%"}, 7, []int{7}},
	} {
		got, err := waveSizes(c.waves, c.nodes)
		require.NoError(t, err)
		require.Equal(t, c.want, got)
	}
	for _, w := range []string{"", "0", "-1", "101%", "all", "1.5", "99999999999"} {
		_, err := waveSizes([]string{w}, 10)
		require.Error(t, err, w)
	}
	_, err := waveSizes(make([]string, maxWaves+1), 10)
	require.Error(t, err)
}
