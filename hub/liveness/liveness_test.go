package liveness

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/hub/api"
	"causeway/protocol"
)

const (
	tick  = 500 * time.Millisecond // of the hub
	limit = 15 * time.Second
)

// truth is what happens to a node.
type truth string

const (
	well     truth = "well"
	ill      truth = "ill"
	stopped  truth = "stopped" // the session ends at once
	dead     truth = "dead"    // silence; the hub ends the session when three statuses are missing
	deaf     truth = "deaf"    // probes go on, control does not
	reported       = "firewall: docker drops"
)

var truths = []truth{well, ill, stopped, dead, deaf}

func (t truth) shown() string {
	switch t {
	case well:
		return api.NodeReady
	case ill:
		return api.NodeDegraded
	}
	return api.NodeUnreachable
}

// undated hides Deadline, which no test in a bubble may ask for.
type undated struct{ rapid.TB }

// world is a node that lives by truths, and its Machine, fed as hub/fleet does it.
type world struct {
	m       *Machine
	probed  bool // agents of tests without a tunnel are not
	e       Evidence
	changes []string
	at      []time.Time
}

func newWorld(probed bool) *world { return &world{m: New(time.Now()), probed: probed} }

// live lets t be true for d.
func (w *world) live(t truth, d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(min(tick, time.Until(end))) {
		now := time.Now()
		switch t {
		case well, ill:
			if !w.e.Session || now.Sub(w.e.Word) >= protocol.StatusInterval || (t == ill) != (len(w.e.Reasons) > 0) {
				w.e.Word = now
			}
			w.e.Session, w.e.Reasons = true, nil
			if t == ill {
				w.e.Reasons = []string{reported}
			}
		case stopped:
			w.e.Session = false
		case dead, deaf:
			if now.Sub(w.e.Word) >= 3*protocol.StatusInterval {
				w.e.Session = false
			}
		}
		if w.probed && (t == well || t == ill || t == deaf) && now.Sub(w.e.Probe) >= time.Second {
			w.e.Probe = now
		}
		if w.m.Observe(now, w.e) {
			w.changes = append(w.changes, w.m.Verdict().State)
			w.at = append(w.at, now)
		}
	}
}

// Whatever came before, what stays is shown within 15 s, and then stays.
func TestSteadyTruthIsShownInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slowest := map[truth]time.Duration{}
		rapid.Check(undated{t}, func(r *rapid.T) {
			w := newWorld(rapid.Bool().Draw(r, "probed"))
			for range rapid.IntRange(0, 25).Draw(r, "n") {
				w.live(rapid.SampledFrom(truths).Draw(r, "truth"), time.Duration(rapid.IntRange(50, 20_000).Draw(r, "ms"))*time.Millisecond)
			}
			last := rapid.SampledFrom(truths).Draw(r, "last")
			before, start := len(w.changes), time.Now()
			w.live(last, limit)
			v := w.m.Verdict()
			require.Equal(r, last.shown(), v.State, "after %s of %s; %v", limit, last, w.changes)
			require.Equal(r, v.State == api.NodeReady, len(v.Reasons) == 0, v.Reasons)
			if last == ill {
				require.Equal(r, []string{reported}, v.Reasons)
			}
			require.LessOrEqual(r, v.Since.Sub(start), limit)
			if len(w.changes) > before {
				slowest[last] = max(slowest[last], w.at[len(w.at)-1].Sub(start))
			}
			settled := len(w.changes)
			w.live(last, time.Minute)
			require.Len(r, w.changes, settled, "a steady truth flaps: %v", w.changes)
		})
		t.Logf("slowest: %v", slowest)
		require.Len(t, slowest, len(truths))
	})
}

// No input at all makes it flap more often than the hysteresis allows: each latch needs
// Worse and Better for a turn, BetterRestless after restlessTimes.
func TestFlappingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(undated{t}, func(r *rapid.T) {
			w := newWorld(rapid.Bool().Draw(r, "probed"))
			kinds := rapid.SliceOfN(rapid.SampledFrom(truths), 2, 4).Draw(r, "kinds")
			longest := rapid.IntRange(100, 15_000).Draw(r, "longest")
			start := time.Now()
			for i := 0; time.Since(start) < restlessFor-time.Minute; i++ {
				w.live(kinds[i%len(kinds)], time.Duration(rapid.IntRange(50, longest).Draw(r, "ms"))*time.Millisecond)
			}
			turn := Worse + BetterRestless
			bound := 2 /* better, at the start */ + 2*2*(restlessTimes+int(time.Since(start)/turn)+1)
			require.LessOrEqual(r, len(w.changes), bound, "%v", w.changes)
			for i := 1; i < len(w.at); i++ {
				better := rank(w.changes[i]) < rank(w.changes[i-1])
				if i >= 3 && better {
					require.GreaterOrEqual(r, w.at[i].Sub(w.at[i-1]), Better, "better again too soon: %v", w.changes)
				}
			}
		})
	})
}

// What comes and goes faster than it could matter is not shown at all.
func TestBlinkingIsNotShown(t *testing.T) {
	for _, c := range []struct {
		a, b   truth
		each   time.Duration
		probed bool
		want   []string
	}{
		{well, dead, time.Second, true, nil},
		{well, dead, time.Second, false, nil},
		{well, dead, 4 * time.Second, true, nil},
		{well, stopped, 3 * time.Second, true, nil},
		{well, ill, time.Second, true, nil},
		{well, ill, 3 * time.Second, true, nil},
		{well, deaf, 8 * time.Second, true, nil},
		// Slower: shown once, until it is over.
		{well, ill, 5 * time.Second, true, []string{api.NodeDegraded, api.NodeReady, api.NodeDegraded}},
		{well, stopped, 7 * time.Second, true, []string{api.NodeUnreachable, api.NodeReady, api.NodeUnreachable}},
	} {
		t.Run(fmt.Sprintf("%s %s %s probed=%t", c.a, c.b, c.each, c.probed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(c.probed)
				w.live(well, 20*time.Second)
				require.Equal(t, []string{api.NodeReady}, w.changes)
				w.changes = nil
				for range 40 {
					w.live(c.b, c.each)
					w.live(c.a, c.each)
				}
				require.Equal(t, c.want, w.changes)
			})
		})
	}
}

// A first report counts at once; later ones have to last. Since is when it came to it.
func TestVerdicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(true)
		w.live(stopped, 2*time.Second)
		require.Contains(t, w.m.Verdict().Reasons[0], "since the hub's start")
		start := time.Now()
		w.live(ill, tick)
		require.Equal(t, api.NodeDegraded, w.m.Verdict().State)
		w.live(well, tick)
		require.Equal(t, Verdict{State: api.NodeReady, Since: start.Add(tick)}, w.m.Verdict())
		w.live(well, 20*time.Second)

		end := time.Now()
		w.live(dead, limit)
		v := w.m.Verdict()
		require.Equal(t, api.NodeUnreachable, v.State)
		require.Contains(t, v.Reasons[0], "no sign of life")
		require.WithinDuration(t, end, v.Since, protocol.StatusInterval, "since its last word")
		back := time.Now()
		w.live(well, Better)
		require.Contains(t, w.m.Verdict().Reasons[0], "it is back")
		w.live(well, time.Second)
		v = w.m.Verdict()
		require.Equal(t, api.NodeReady, v.State)
		require.Equal(t, back, v.Since)

		w.live(deaf, limit)
		require.Contains(t, w.m.Verdict().Reasons[0], "its probes arrive")
		w.live(ill, limit)
		require.Equal(t, Verdict{State: api.NodeDegraded, Since: w.m.since, Reasons: []string{reported}}, w.m.Verdict())
	})
}
