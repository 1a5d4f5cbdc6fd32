package reconcile

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/fleet"
)

// A leave without proof comes true only if nothing is heard of the node.
func TestDeparture(t *testing.T) {
	now := time.Unix(1e9, 0)
	said, other := fleet.NewSession(2, false), fleet.NewSession(2, false)
	d := fleet.Departure{Since: now, By: said}
	for _, c := range []struct {
		what       string
		d          fleet.Departure
		at         time.Duration
		ses        *fleet.Session
		proof      time.Time
		gone, void bool
	}{
		{"no wish", fleet.Departure{}, time.Hour, nil, time.Time{}, false, false},
		{"at once", d, 0, said, now, false, false},
		{"not yet", d, fleet.DepartAfter - 1, nil, now, false, false},
		{"while the session lasts", d, fleet.DepartAfter, said, now, false, false},
		{"the agent was still probing as it left", d, fleet.DepartAfter, nil, now.Add(departLull), true, false},
		{"gone", d, fleet.DepartAfter, nil, time.Time{}, true, false},
		{"its key is still heard", d, fleet.DepartAfter, nil, now.Add(time.Minute), false, true},
		{"it came back", d, time.Second, other, now, false, true},
	} {
		gone, void := departs(c.d, now.Add(c.at), c.ses, c.proof)
		require.Equal(t, c.gone, gone, c.what)
		require.Equal(t, c.void, void, c.what)
	}
}
