package reconcile

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// steps drives a pace: a minor change every step, for total.
func steps(p *pace, now *time.Time, step, total time.Duration, fresh bool) (at []time.Duration) {
	start := *now
	for end := now.Add(total); now.Before(end); *now = now.Add(step) {
		if !p.due.IsZero() && !now.Before(p.due) {
			p.computed(*now, fresh)
			at = append(at, now.Sub(start))
		}
		p.touched(*now)
	}
	return at
}

func TestPace(t *testing.T) {
	var p pace
	now := time.Unix(1000, 0)
	at := steps(&p, &now, 10*time.Millisecond, 20*time.Second, true)
	require.Equal(t, gather, at[0], "the first change goes out as a change of state does")
	require.InDelta(t, 13, len(at), 2, "%v", at)
	require.InDelta(t, gatherMax, at[len(at)-1]-at[len(at)-2], float64(20*time.Millisecond))

	// A change of state does not wait with the others, and does not end the burst.
	p.touched(now)
	p.changed(now)
	require.Equal(t, now.Add(gather), p.due)
	p.changed(now.Add(gather / 2))
	require.Equal(t, now.Add(gather), p.due, "nor is it put off by the next one")
	now = now.Add(gather)
	p.computed(now, true)
	require.True(t, p.due.IsZero())
	p.touched(now)
	require.Equal(t, now.Add(gatherMax), p.due)

	// Nor does it wait for what is under way later than it.
	now = now.Add(gatherMax - gather/4)
	p.changed(now)
	require.Equal(t, now.Add(gather/4), p.due)
	p.computed(now, true)

	// After a lull all is as at first.
	now = now.Add(2*gatherMax + time.Millisecond)
	p.touched(now)
	require.Equal(t, now.Add(gather), p.due)

	// What makes no new netmap is no burst.
	p, now = pace{}, now.Add(time.Hour)
	require.Greater(t, len(steps(&p, &now, 10*time.Millisecond, 20*time.Second, false)), 150)
}
