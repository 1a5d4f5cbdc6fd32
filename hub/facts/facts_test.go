package facts

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// What is read says whose it is, or that its subject is nobody's.
func TestRead(t *testing.T) {
	now := time.Now()
	m := Read(protocol.DeltaSubject("idc-sh", 7), []byte("x"), 3, now)
	require.Equal(t, Message{Origin: protocol.FactOrigin{Site: "idc-sh", Node: 7, Kind: protocol.FactDelta}, Subject: "causeway.v1.inventory.idc-sh.7.delta", Data: []byte("x"), Stream: 3, Received: now}, m)
	m = Read("causeway.v1.inventory.idc-sh.7.other", nil, 4, now)
	require.Error(t, m.Err)
	require.Zero(t, m.Origin)
}

// Each watcher hears what it wants; one that is too slow is cut off, or misses some.
func TestWatchers(t *testing.T) {
	var w Watchers[int]
	require.False(t, w.Any())
	w.Tell(0)
	slow, _ := w.Watch(Wish[int]{Ahead: 2})
	lossy, endLossy := w.Watch(Wish[int]{Ahead: 2, Lossy: true})
	odd, _ := w.Watch(Wish[int]{Ahead: 10, Want: func(n int) bool { return n%2 == 1 }})
	require.True(t, w.Any())
	all := func(c <-chan int) (l []int, open bool) {
		for {
			select {
			case n, more := <-c:
				if !more {
					return l, false
				}
				l = append(l, n)
			default:
				return l, true
			}
		}
	}
	check := func(c <-chan int, open bool, want ...int) {
		t.Helper()
		l, is := all(c)
		require.Equal(t, want, l)
		require.Equal(t, open, is)
	}
	for n := range 5 {
		w.Tell(n + 1)
	}
	check(slow, false, 1, 2)
	check(lossy, true, 1, 2)
	check(odd, true, 1, 3, 5)
	w.Tell(7)
	check(lossy, true, 7)
	endLossy()
	endLossy()
	w.Tell(9)
	check(lossy, false)
	check(odd, true, 7, 9)
	w.End()
	w.Tell(11)
	check(odd, false)
	require.False(t, w.Any())
	late, end := w.Watch(Wish[int]{Ahead: 1})
	end()
	check(late, false)
}
