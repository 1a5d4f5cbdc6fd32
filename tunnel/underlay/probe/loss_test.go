package probe

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// switches counts a's changes of path to b while time goes by.
func (w *world) switches(a *simAgent, n protocol.NodeNumber, d time.Duration) (count int) {
	last := a.kind(n)
	for range int(d / (100 * time.Millisecond)) {
		w.pass(100 * time.Millisecond)
		if k := a.kind(n); k != last {
			count, last = count+1, k
		}
	}
	return count
}

func percent(w *world, n uint64, which func(packet) bool) func(packet) bool {
	return func(p packet) bool { return which(p) && w.rand()%100 < n }
}

// 30 % loss on the chosen path while another is clean.
func TestLossyPathIsLeftAndTakenAgain(t *testing.T) {
	for name, oneWay := range map[string]bool{"both ways": false, "one way": true} {
		t.Run(name, func(t *testing.T) {
			var left, back []time.Duration
			for seed := range 4 {
				w, a, b := directPair(t)
				w.random = uint64(seed) << 32
				lossy := between(a, b)
				if oneWay {
					lossy = func(p packet) bool { return p.from == b.addr && p.to == a.addr }
				}
				w.pass(20 * time.Second)
				w.lost = percent(w, 30, lossy)
				left = append(left, w.until(t, 15*time.Second, func() bool { return a.kind(11) == relayed && b.kind(10) == relayed }))
				require.LessOrEqual(t, w.switches(a, 11, time.Minute), 4, "it stays away")
				w.lost = nil
				back = append(back, w.until(t, 30*time.Second, func() bool { return a.kind(11) == direct && b.kind(10) == direct }))
				require.Zero(t, w.switches(a, 11, 30*time.Second))
				s := a.Statuses(w.now)[1]
				require.Equal(t, protocol.NodeNumber(11), s.Peer)
				require.Zero(t, s.Loss)
				require.Zero(t, w.reasons[Limited], "within what a peer answers")
			}
			slices.Sort(left)
			slices.Sort(back)
			t.Logf("left after %s (median), %s at most; back after %s, %s", left[1], left[3], back[1], back[3])
			require.Less(t, left[2], 8*time.Second)
		})
	}
}

// Where every path loses as much, the better kind stays.
func TestLossEverywhereKeepsThePath(t *testing.T) {
	w, a, _ := directPair(t)
	w.lost = percent(w, 15, func(packet) bool { return true })
	directFor := 0
	for range 300 {
		w.pass(time.Second)
		if a.kind(11) == direct {
			directFor++
		}
	}
	t.Log(directFor, "of 300 seconds")
	require.Greater(t, directFor, 200)
}

// A path that is cut, or lossy, for three seconds of every six is not taken up each time; once
// it stays well it is back within 30 seconds.
func TestPathThatComesAndGoes(t *testing.T) {
	for name, loss := range map[string]uint64{"cut": 100, "lossy": 30} {
		t.Run(name, func(t *testing.T) {
			w, a, b := directPair(t)
			changes := 0
			for range 40 {
				w.lost = percent(w, loss, between(a, b))
				changes += w.switches(a, 11, 3*time.Second)
				w.lost = nil
				changes += w.switches(a, 11, 3*time.Second)
			}
			t.Log(changes, "changes of path in four minutes")
			require.LessOrEqual(t, changes, 14)
			took := w.until(t, 30*time.Second, func() bool { return a.kind(11) == direct && b.kind(10) == direct })
			t.Log("back after", took)
			require.Zero(t, w.switches(a, 11, 30*time.Second))
		})
	}
}

// Datagrams that overtake each other are not lost.
func TestReorderingIsNoLoss(t *testing.T) {
	w, a, _ := directPair(t)
	w.jitter = 120 * time.Millisecond
	require.Zero(t, w.switches(a, 11, 2*time.Minute))
	require.Zero(t, a.Agent.peers[11].chosen.loss(w.now))
}

func TestLossIsMeasured(t *testing.T) {
	w, a, b := directPair(t)
	paths := a.Agent.peers[11].paths
	path := paths[slices.IndexFunc(paths, func(p *path) bool { return p.kind == direct })]
	w.lost = percent(w, 30, func(p packet) bool { return p.from == a.addr && p.to == b.addr })
	sum := 0.0
	for range 100 {
		w.pass(time.Second)
		sum += path.loss(w.now)
	}
	require.InDelta(t, 0.3, sum/100, 0.06)
}
