//go:build linux && speed

package inline_test

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/tunnel/engine/inline"
)

// TestSpeed compares the engines in turn: TCP through two kernel devices and
// UDP over a loopback device, both engines in this process. It prints figures
// and judges nothing, and is no part of the tests: go test -tags speed runs it.
// INLINE_SPEED is the number of rounds, INLINE_SPEED_ENGINES can name one engine alone (for profiles).
func TestSpeed(t *testing.T) {
	rounds, _ := strconv.Atoi(cmp.Or(os.Getenv("INLINE_SPEED"), "1"))
	figures := map[string][]float64{}
	for range rounds {
		for _, name := range strings.Fields(cmp.Or(os.Getenv("INLINE_SPEED_ENGINES"), "inline wireguard-go")) {
			for k, v := range measure(t, name) {
				figures[name+" "+k] = append(figures[name+" "+k], v)
			}
		}
	}
	var keys []string
	for k, v := range figures {
		sort.Float64s(v)
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		v := figures[k]
		t.Logf("%-34s median %8.2f  (%.2f to %.2f)", k, v[len(v)/2], v[0], v[len(v)-1])
	}
}

func measure(t *testing.T, name string) map[string]float64 {
	r := map[string]float64{}
	t.Run(name, func(t *testing.T) {
		a, b := newRawPair(t)
		for _, h := range []*host{a, b} {
			if name == "inline" {
				h.startInline(allOffloads, 1)
			} else {
				h.startWireguardGo()
			}
		}
		join(t, a, b)
		transfer(t, a, b, b.addr4(), 1<<20)
		for _, n := range []int{1, 8} {
			bits, cpu := stream(t, a, b, n, 2*time.Second)
			r[fmt.Sprintf("tcp %d Gbit/s", n)] = bits / 1e9
			r[fmt.Sprintf("tcp %d CPU-s/GB (both ends)", n)] = cpu / (bits * 2 / 8 / 1e9)
		}
		sent, got := packets(t, a, b, 2*time.Second)
		r["udp 200B kpps received"] = got / 1e3
		r["udp 200B kpps sent"] = sent / 1e3
		r["rss MB"] = rss()
		if e, ok := a.engine.(*inline.Engine); ok {
			t.Logf("segments a send: %.1f; %v", float64(a.udp.segments.Load())/float64(a.udp.sends.Load()), e.Counters())
		}
	})
	return r
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

func rss() float64 {
	b, _ := os.ReadFile("/proc/self/statm")
	f := strings.Fields(string(b))
	n, _ := strconv.Atoi(f[1])
	return float64(n) * 4096 / 1e6
}

// stream runs n TCP streams for a while: bits a second, CPU seconds in all.
func stream(t *testing.T, from, to *host, n int, d time.Duration) (bits, cpu float64) {
	l := to.listen("tcp", to.addr4())
	defer l.Close()
	var total atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for range n {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				b := make([]byte, 256<<10)
				for {
					k, err := c.Read(b)
					total.Add(int64(k))
					if err != nil {
						return
					}
				}
			})
		}
	})
	var conns []net.Conn
	for range n {
		c := from.dial("tcp", l.Addr())
		conns = append(conns, c)
		wg.Go(func() {
			b := make([]byte, 256<<10)
			for {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		})
	}
	time.Sleep(300 * time.Millisecond)
	begin, at, used := time.Now(), total.Load(), cpuSeconds()
	time.Sleep(d)
	bits = float64(total.Load()-at) * 8 / time.Since(begin).Seconds()
	cpu = cpuSeconds() - used
	for _, c := range conns {
		c.Close()
	}
	wg.Wait()
	return bits, cpu
}

// packets sends UDP datagrams of 200 bytes as fast as one socket can.
func packets(t *testing.T, from, to *host, d time.Duration) (sent, got float64) {
	server, client := to.packetConn(to.addr4()), from.packetConn(from.addr4())
	defer client.Close()
	require.NoError(t, server.SetReadBuffer(4<<20))
	dst := server.LocalAddr().(*net.UDPAddr).AddrPort()
	var n atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2048)
		for {
			if _, _, err := server.ReadFromUDPAddrPort(b); err != nil {
				return
			}
			n.Add(1)
		}
	})
	b := make([]byte, 200)
	begin := time.Now()
	k := 0
	for time.Since(begin) < d {
		for range 16 {
			if _, err := client.WriteToUDPAddrPort(b, dst); err == nil {
				k++
			}
		}
	}
	s := time.Since(begin).Seconds()
	time.Sleep(100 * time.Millisecond)
	server.Close()
	wg.Wait()
	return float64(k) / s, float64(n.Load()) / s
}
