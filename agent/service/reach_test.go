package service

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// world is a node that is asked by simulated time.
type world struct {
	r       Reach
	now     time.Time
	rtt     time.Duration
	lost    func(time.Time) bool // a question or its answer, sent then
	late    func(time.Time) time.Duration
	heard   func(time.Time) uint64
	answers []answer
	states  []ReachState
	times   []time.Duration // since begin
	begin   time.Time
}

type answer struct {
	at  time.Time
	seq uint32
}

func newWorld(rtt time.Duration) *world {
	w := &world{rtt: rtt, now: time.Unix(1_000_000, 0), lost: func(time.Time) bool { return false }, late: func(time.Time) time.Duration { return 0 }, heard: func(time.Time) uint64 { return 0 }}
	w.begin = w.now
	w.r.Set(w.now, []protocol.NodeNumber{7})
	return w
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	next := w.now
	for end := w.now.Add(d); ; {
		slices.SortFunc(w.answers, func(a, b answer) int { return a.at.Compare(b.at) })
		if len(w.answers) > 0 && w.answers[0].at.Before(next) {
			w.now = w.answers[0].at
			w.r.Answer(w.now, 7, w.answers[0].seq)
			w.answers = w.answers[1:]
		} else {
			if next.After(end) {
				w.now = end
				return
			}
			w.now = next.Add(w.late(next))
			for len(w.answers) > 0 && !w.answers[0].at.After(w.now) { // the loop reads before it judges
				w.r.Answer(w.now, 7, w.answers[0].seq)
				w.answers = w.answers[1:]
			}
			var asks []Ask
			asks, next = w.r.Tick(w.now, func(protocol.NodeNumber) uint64 { return w.heard(w.now) })
			for _, a := range asks {
				if !w.lost(w.now) {
					w.answers = append(w.answers, answer{w.now.Add(w.rtt), a.Seq})
				}
			}
		}
		if s, _, _ := w.r.State(7); len(w.states) == 0 || s != w.states[len(w.states)-1] {
			w.states, w.times = append(w.states, s), append(w.times, w.now.Sub(w.begin))
		}
	}
}

func TestSilentDeath(t *testing.T) {
	var suspect, dead []time.Duration
	for i := range 100 {
		w := newWorld(20 * time.Millisecond)
		w.run(2*time.Second + time.Duration(i)*7*time.Millisecond)
		require.Equal(t, []ReachState{Unknown, Up}, w.states)
		w.lost, w.begin = func(time.Time) bool { return true }, w.now
		w.answers = nil
		w.run(5 * time.Second)
		require.Equal(t, []ReachState{Unknown, Up, Suspect, Dead}, w.states)
		suspect, dead = append(suspect, w.times[2]), append(dead, w.times[3])
		w.lost, w.begin = func(time.Time) bool { return false }, w.now
		w.run(10 * time.Second)
		require.Equal(t, []ReachState{Unknown, Up, Suspect, Dead, Probation, Up}, w.states)
		require.InDelta(t, holdMin.Seconds(), (w.times[5] - w.times[4]).Seconds(), 0.2)
	}
	slices.Sort(suspect)
	slices.Sort(dead)
	t.Logf("suspect after p50 %s, p95 %s; dead after p50 %s, p95 %s", suspect[50], suspect[95], dead[50], dead[95])
	require.LessOrEqual(t, suspect[95], 900*time.Millisecond)
	require.LessOrEqual(t, dead[95], 1600*time.Millisecond)
}

// A day on a path that loses 5 % each way, and a link that is away for 0.4 s of each 5: nobody is dead, and hardly ever suspect.
func TestLossIsNoDeath(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	w := newWorld(30 * time.Millisecond)
	w.lost = func(time.Time) bool { return rnd.Float64() < 1-0.95*0.95 }
	w.run(24 * time.Hour)
	t.Logf("a day at 5 %% loss each way: %d changes", len(w.states)-2)
	require.NotContains(t, w.states, Dead)
	require.LessOrEqual(t, len(w.states)-2, 4*3)
	w = newWorld(30 * time.Millisecond)
	w.lost = func(now time.Time) bool { return now.UnixMilli()%5000 < 400 }
	w.run(time.Hour)
	require.Equal(t, []ReachState{Unknown, Up}, w.states)
}

// An agent that is late itself, by starving or by SIGSTOP, suspects nobody; who is heard is not dead unless nothing gets there
// for long; relapses have to hold longer.
func TestFences(t *testing.T) {
	w := newWorld(20 * time.Millisecond)
	w.late = func(now time.Time) time.Duration {
		if now.Second()%3 == 0 {
			return 700 * time.Millisecond
		}
		return 0
	}
	w.run(time.Minute)
	require.Equal(t, []ReachState{Unknown, Up}, w.states)
	require.NotZero(t, w.r.Late)

	w = newWorld(20 * time.Millisecond)
	w.run(time.Second)
	w.heard = func(now time.Time) uint64 { return uint64(now.UnixNano()) }
	w.lost, w.begin, w.answers = func(time.Time) bool { return true }, w.now, nil
	w.run(2 * time.Second)
	require.Equal(t, []ReachState{Unknown, Up, Suspect}, w.states)
	w.run(3 * time.Second)
	require.Equal(t, []ReachState{Unknown, Up, Suspect, Dead}, w.states)
	require.InDelta(t, 3.4, w.times[3].Seconds(), 0.3)

	w = newWorld(20 * time.Millisecond)
	w.lost = func(now time.Time) bool { return now.Unix()%30 < 5 }
	w.run(4 * time.Minute)
	var holds []time.Duration
	for i, s := range w.states {
		if s == Up && i > 0 && w.states[i-1] == Probation {
			holds = append(holds, w.times[i]-w.times[i-1])
		}
	}
	t.Logf("holds %v", holds)
	require.Greater(t, holds[len(holds)-1], 4*holds[0])
	_, some, _ := w.r.State(9)
	require.Zero(t, some)
}
