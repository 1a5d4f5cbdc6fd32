package probe

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// links are what underlay links leave for a datagram.
var links = []struct {
	mtu, header int
}{{1280, 28}, {1280, 48}, {1400, 28}, {1400, 48}, {1420, 28}, {1460, 28}, {1492, 28}, {1500, 28}, {1500, 48}, {4000, 28}, {9000, 28}, {9000, 48}, {9216, 28}}

func steps(n int) int { return n / sizeStep * sizeStep }

func always(n int) func(_, _ netip.AddrPort) int { return func(_, _ netip.AddrPort) int { return n } }

// until lets time go by until ok holds and returns how long that took.
func (w *world) until(t *testing.T, most time.Duration, ok func() bool) time.Duration {
	t.Helper()
	start := w.now
	for !ok() {
		require.Less(t, w.now.Sub(start), most, "it took too long")
		w.pass(50 * time.Millisecond)
	}
	return w.now.Sub(start)
}

func TestSizeIsFoundWithinTenSeconds(t *testing.T) {
	for _, delay := range []time.Duration{time.Millisecond, 100 * time.Millisecond} {
		for _, l := range links {
			for _, kind := range []string{"relay", "direct"} {
				t.Run(fmt.Sprintf("%s/%d-%d/%s", kind, l.mtu, l.header, delay), func(t *testing.T) {
					w := newWorld(t, 2)
					w.delay = delay
					w.limit = always(l.mtu - l.header)
					a, b := w.agent(10), w.agent(11)
					if kind == "direct" {
						a.candidates(11, b.addr)
					}
					w.pass(time.Second)
					a.busy[11], a.next = true, w.now
					took := w.until(t, 10*time.Second, func() bool { return a.Route(11).Size == steps(l.mtu-l.header) })
					t.Log("found after", took)
					w.pass(time.Minute)
					require.Equal(t, steps(l.mtu-l.header), a.Route(11).Size)
					require.Equal(t, steps(l.mtu-l.header), b.Route(10).Size, "both sides look")
					require.Zero(t, w.reasons[Limited], "within what a peer answers")
				})
			}
		}
	}
}

// What our own interface refuses needs no waiting.
func TestSizeOfTheInterface(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.agent(10), w.agent(11)
	a.iface = 1500 - 28
	a.candidates(11, b.addr)
	w.pass(time.Second)
	a.busy[11], a.next = true, w.now
	w.until(t, 100*time.Millisecond, func() bool { return a.Route(11).Size == steps(1472) })
	require.Equal(t, []int{steps(1472)}, a.sizes)
	a.iface = 1400 - 28
	took := w.until(t, 4*time.Second, func() bool { return a.Route(11).Size == steps(1372) })
	t.Log("noticed after", took)
	a.iface = 9000 - 28
	w.until(t, 2*raiseEvery+time.Second, func() bool { return a.Route(11).Size == steps(8972) })
}

// Large datagrams vanish without a word while small ones pass.
func TestDecreaseIsNoticedWithinTenSeconds(t *testing.T) {
	for _, delay := range []time.Duration{time.Millisecond, 100 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			w, a, b := directPair(t)
			w.delay = delay
			w.limit = always(1472)
			w.until(t, 10*time.Second, func() bool { return a.Route(11).Size == 1472 && b.Route(10).Size == 1472 })
			for _, mtu := range []int{1400, 1280, 576} {
				w.limit = always(mtu - 28)
				took := w.until(t, 10*time.Second, func() bool { return a.Route(11).Size == steps(mtu-28) && b.Route(10).Size == steps(mtu-28) })
				t.Log(mtu, "noticed after", took)
				require.Equal(t, direct, a.kind(11), "the path itself is well")
			}
			w.limit = always(8972)
			took := w.until(t, 5*time.Minute, func() bool { return a.Route(11).Size == 8960 })
			t.Log("an increase after", took)
			require.Zero(t, w.reasons[Limited])
		})
	}
}

// Each direction has its own size; an answer, which is small, says nothing of
// the way back.
func TestSizesOfTwoDirections(t *testing.T) {
	w, a, b := directPair(t)
	w.limit = func(from, _ netip.AddrPort) int {
		if from == a.addr {
			return 1252
		}
		return 8972
	}
	w.pass(15 * time.Second)
	require.Equal(t, 1248, a.Route(11).Size)
	require.Equal(t, 8960, b.Route(10).Size)
}

// Loss alone does not make a path narrow.
func TestLossIsNoSize(t *testing.T) {
	w, a, b := directPair(t)
	w.limit = always(1472)
	w.pass(40 * time.Second) // the relay's too
	require.Equal(t, 1472, a.Route(11).Size)
	a.sizes = a.sizes[len(a.sizes)-1:]
	w.lost = func(p packet) bool { return between(a, b)(p) && w.rand()%100 < 5 }
	w.pass(10 * time.Minute)
	require.Equal(t, []int{1472}, a.sizes)

	// A path on which nothing at all passes keeps its size.
	w.lost = func(packet) bool { return true }
	w.pass(20 * time.Second)
	w.lost = nil
	w.pass(20 * time.Second)
	require.Equal(t, []int{1472}, a.sizes)
	require.Equal(t, direct, a.kind(11))
}

// A path whose size comes and goes is not raised each time.
func TestSizesDoNotFlap(t *testing.T) {
	w, a, _ := directPair(t)
	for i := range 60 {
		w.limit = always(1472 - 200*(i%2))
		w.pass(10 * time.Second)
	}
	t.Log(a.sizes)
	require.Less(t, len(a.sizes), 14)
}

// An idle peer's size is kept, and looked at again when there is traffic.
func TestSizeOfAnIdlePeer(t *testing.T) {
	w, a, b := directPair(t)
	w.limit = always(1472)
	w.until(t, 10*time.Second, func() bool { return a.Route(11).Size == 1472 })
	a.busy, b.busy = nil, nil
	w.pass(activeFor + askedFor + time.Second)
	n := w.questions()
	w.limit = always(1372)
	w.pass(time.Hour)
	require.Equal(t, n, w.questions())
	require.Equal(t, 1472, a.Route(11).Size)
	a.Traffic(w.now, 11)
	a.next = w.now
	w.until(t, 3*time.Second, func() bool { return a.Route(11).Size == steps(1372) })
}
