package service

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// Ends of many connections are programs of their own: one may have 20,000 files open at the most.
const endEnv = "CAUSEWAY_TEST_ENDS"

// TestEnds is no test of its own: it is the ends of TestIdle, as "serve ADDRESS" or as "dial ADDRESS N".
func TestEnds(t *testing.T) {
	words := strings.Fields(os.Getenv(endEnv))
	switch {
	case len(words) == 0:
		return
	case words[0] == "serve":
		l, err := net.Listen("tcp", words[1])
		require.NoError(t, err)
		fmt.Println("serves")
		for {
			c, err := l.Accept()
			require.NoError(t, err)
			go io.Copy(io.Discard, c)
		}
	}
	n, err := strconv.Atoi(words[2])
	require.NoError(t, err)
	conns := make([]net.Conn, n)
	var dials sync.WaitGroup
	for k := range 16 {
		dials.Go(func() {
			for i := k; i < n; i += 16 {
				d := net.Dialer{KeepAlive: -1}
				c, err := d.Dial("tcp", words[1])
				if err != nil {
					t.Error(err)
					return
				}
				conns[i] = c
			}
		})
	}
	dials.Wait()
	require.False(t, t.Failed())
	var ended sync.WaitGroup
	var resets atomic.Int64
	last := make([]time.Time, n)
	for i, c := range conns {
		ended.Go(func() {
			c.SetDeadline(time.Now().Add(2 * time.Minute))
			_, err := c.Read(make([]byte, 1))
			if last[i] = time.Now(); errors.Is(err, syscall.ECONNRESET) {
				resets.Add(1)
			}
		})
	}
	fmt.Println("opened")
	ended.Wait()
	end := last[0]
	for _, x := range last {
		if x.After(end) {
			end = x
		}
	}
	fmt.Printf("reset %d at %d\n", resets.Load(), end.UnixNano())
}

// Idle connections to a dead site end, in bounded time and memory: 20,000 in a soak, else 1,000.
func TestIdle(t *testing.T) {
	n := 500
	if soak() {
		n = 10_000
	}
	w := newWorld(t)
	w.serve("b")
	w.set(services(64, "a"))
	self, err := os.Executable()
	require.NoError(t, err)
	run := func(h *lab.Host, what string) *lab.Process {
		p, err := h.Start(lab.Program{Name: "ends-" + strings.NewReplacer(" ", "-", ":", "-").Replace(what), Args: []string{self, "-test.run=^TestEnds$", "-test.v"}, Env: []string{endEnv + "=" + what}})
		require.NoError(t, err)
		return p
	}
	for _, v6 := range []bool{false, true} {
		require.NoError(t, run(w.a, "serve "+backend("a", v6).String()).WaitOutput(within(t), "serves"))
	}
	ends := []*lab.Process{run(w.pc, fmt.Sprintf("dial %s %d", at(false, 80), n)), run(w.lan, fmt.Sprintf("dial %s %d", at(true, 80), n))}
	for _, p := range ends {
		require.NoError(t, p.WaitOutput(t.Context(), "opened"))
	}
	var flows map[Of]Count
	w.on(func() (err error) { flows, err = w.table.Flows(t.Context()); return err })
	open := 0
	for _, c := range flows {
		open += c.Open
	}
	require.Equal(t, 2*n, open)
	silent(w.a)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	peak := watchHeap()
	dead := time.Now()
	w.set(services(64, "b"), backends("a")...)
	var prodded int
	w.on(func() (err error) { prodded, err = w.table.Prod(t.Context(), backends("a")); return err })
	took := time.Since(dead)
	most := peak()
	runtime.ReadMemStats(&after)
	require.Equal(t, 2*n, prodded)
	resets, last := 0, time.Duration(0)
	for _, p := range ends {
		require.NoError(t, p.WaitOutput(within(t), "reset "))
		<-p.Done()
		var k int
		var end int64
		_, err := fmt.Sscanf(p.Output()[strings.Index(p.Output(), "reset "):], "reset %d at %d", &k, &end)
		require.NoError(t, err, p.Output())
		resets, last = resets+k, max(last, time.Unix(0, end).Sub(dead))
	}
	require.Equal(t, 2*n, resets)
	t.Logf("%d idle connections: the last reset after %s, Prod done after %s; %d KB allocated meanwhile, heap %d KB at most",
		2*n, last.Round(time.Millisecond), took.Round(time.Millisecond), (after.TotalAlloc-before.TotalAlloc)>>10, most>>10)
	require.Less(t, last, 10*time.Second)
	require.Less(t, most, uint64(20<<20))
}

// watchHeap returns what the heap has grown by at the most until the function it returns is called.
func watchHeap() func() uint64 {
	stop, out := make(chan struct{}), make(chan uint64)
	go func() {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		first, most := m.HeapInuse, m.HeapInuse
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case <-stop:
				tick.Stop()
				out <- most - first
				return
			case <-tick.C:
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapInuse)
			}
		}
	}()
	return func() uint64 { close(stop); return <-out }
}
