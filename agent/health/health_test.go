package health

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

func TestBoard(t *testing.T) {
	var heard []string
	start := time.Now().Add(-time.Hour)
	b := New(start, func(c protocol.Condition) { heard = append(heard, c.Name+" "+c.Cause) },
		Spec{Name: "tunnel", Cause: "starting"}, Spec{Name: "control", Cause: "starting", DependsOn: []string{"tunnel"}})
	require.False(t, b.OK("tunnel"))
	b.Set("tunnel", "")
	b.Set("tunnel", "")
	require.True(t, b.OK("tunnel"))
	b.SetError("control", errors.New("refused"))
	b.Set("nobody", "x")
	require.False(t, b.OK("nobody"))
	require.Equal(t, []string{"tunnel ", "control refused"}, heard)
	l := b.List()
	require.WithinDuration(t, time.Now(), l[0].Since, time.Minute)
	require.Equal(t, start.UTC(), l[1].Since, "a new cause is no new state")
	require.Equal(t, []string{"tunnel"}, l[1].DependsOn)
	b.SetError("control", nil)
	require.True(t, b.OK("control"))
}
