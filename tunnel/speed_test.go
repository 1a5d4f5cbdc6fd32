//go:build speed

package tunnel

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// TestSpeed measures the engines in turn, direct and through the relay, pod to
// pod over veth, nodes and hub as processes. It prints figures and judges
// nothing, and is no part of the tests: go test -tags speed runs it. TUNNEL_SPEED is the number of rounds; TUNNEL_SPEED_PATHS and
// TUNNEL_SPEED_ENGINES can name fewer than all.
func TestSpeed(t *testing.T) {
	rounds, _ := strconv.Atoi(cmp.Or(os.Getenv("TUNNEL_SPEED"), "1"))
	paths := cmp.Or(os.Getenv("TUNNEL_SPEED_PATHS"), "direct relay")
	engines := cmp.Or(os.Getenv("TUNNEL_SPEED_ENGINES"), EngineInline+" "+EngineWireGuardGo)
	figures := map[string][]float64{}
	for range rounds {
		for _, path := range strings.Fields(paths) {
			for _, engine := range strings.Fields(engines) {
				t.Run(path+" "+engine, func(t *testing.T) {
					for k, v := range speed(t, engine, path == "direct") {
						k = fmt.Sprintf("%-7s%-24s%s", path, k, engine)
						figures[k] = append(figures[k], v)
					}
				})
			}
		}
	}
	var keys []string
	for k, v := range figures {
		slices.Sort(v)
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		v := figures[k]
		t.Logf("%-46s median %8.2f  (%.2f to %.2f)", k, v[len(v)/2], v[0], v[len(v)-1])
	}
}

// usage is a child's CPU seconds and resident megabytes.
func (p *process) usage(t *testing.T) (cpu, rss float64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	require.NoError(t, err)
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	pages, _ := strconv.ParseFloat(f[21], 64)
	return (user + system) / 100, pages * 4096 / 1e6
}

func speed(t *testing.T, engine string, direct bool) map[string]float64 {
	w := newWorld(t, engine, direct)
	a, b := w.nodes[2], w.nodes[3]
	w.eventually("ping", func() bool { return a.reaches(pod(3)) })
	if direct {
		w.eventually("direct", func() bool { a.reaches(pod(3)); return w.path(2, 3).Path == protocol.PathDirect })
	}
	r := map[string]float64{}
	r["idle ping p50 ms"], r["idle ping p99 ms"] = pings(a, pod(3))
	for _, n := range []int{1, 8} {
		before := [4]float64{}
		for c, p := range w.children {
			before[c], _ = p.usage(t)
		}
		var p50, p99 float64
		gigabytes, seconds := sink(t, a, b, n, func() { p50, p99 = pings(a, pod(3)) })
		r[fmt.Sprintf("tcp%d ping p50 ms", n)], r[fmt.Sprintf("tcp%d ping p99 ms", n)] = p50, p99
		r[fmt.Sprintf("tcp%d Gbit/s", n)] = gigabytes * 8 / seconds
		for c, p := range w.children {
			cpu, _ := p.usage(t)
			if name := [4]string{1: "hub", 2: "sender", 3: "receiver"}[c]; c != 1 || !direct {
				r[fmt.Sprintf("tcp%d CPU-s/GB %s", n, name)] = (cpu - before[c]) / gigabytes
			}
		}
	}
	r["udp200 kpps received"], r["udp200 kpps sent"] = datagramRate(t, a, b)
	_, r["MB sender"] = w.children[2].usage(t)
	_, r["MB receiver"] = w.children[3].usage(t)
	return r
}

const speedTime = 2 * time.Second

// pings pings a hundred times and returns median and 99th percentile in
// milliseconds; what is lost is left out.
func pings(from *host, to netip.Addr) (p50, p99 float64) {
	out, _ := from.run("ping", "-n", "-c", "100", "-i", "0.01", "-W", "1", to.String())
	var ms []float64
	for line := range strings.Lines(out) {
		if _, rest, ok := strings.Cut(line, "time="); ok {
			v, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			ms = append(ms, v)
		}
	}
	if len(ms) == 0 {
		return 0, 0
	}
	slices.Sort(ms)
	return ms[len(ms)/2], ms[len(ms)*99/100]
}

// sink sends n TCP streams for a while, in which during is called.
func sink(t *testing.T, from, to *host, n int, during func()) (gigabytes, seconds float64) {
	var l net.Listener
	var err error
	to.do(func() { l, err = net.Listen("tcp", "[::]:0") })
	require.NoError(t, err)
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
				buf := make([]byte, 256<<10)
				for {
					k, err := c.Read(buf)
					total.Add(int64(k))
					if err != nil {
						return
					}
				}
			})
		}
	})
	at := netip.AddrPortFrom(pod(3), l.Addr().(*net.TCPAddr).AddrPort().Port())
	begin := time.Now()
	var conns []net.Conn
	for range n {
		c, err := from.dial(at.String(), patience)
		require.NoError(t, err)
		conns = append(conns, c)
		wg.Go(func() {
			buf := make([]byte, 256<<10)
			for {
				if _, err := c.Write(buf); err != nil {
					return
				}
			}
		})
	}
	during()
	time.Sleep(speedTime - time.Since(begin))
	gigabytes, seconds = float64(total.Load())/1e9, time.Since(begin).Seconds()
	for _, c := range conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	wg.Wait()
	return gigabytes, seconds
}

// datagramRate sends UDP datagrams of 200 bytes as fast as one socket can.
func datagramRate(t *testing.T, from, to *host) (received, sent float64) {
	var server, client net.PacketConn
	var err error
	to.do(func() { server, err = net.ListenPacket("udp4", ":0") })
	require.NoError(t, err)
	from.do(func() { client, err = net.ListenPacket("udp4", pod(2).String()+":0") })
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, server.(*net.UDPConn).SetReadBuffer(4<<20))
	var n atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			if _, _, err := server.(*net.UDPConn).ReadFromUDPAddrPort(buf); err != nil {
				return
			}
			n.Add(1)
		}
	})
	at := netip.AddrPortFrom(pod(3), uint16(server.LocalAddr().(*net.UDPAddr).Port))
	buf := make([]byte, 200)
	begin, k := time.Now(), 0
	for time.Since(begin) < speedTime {
		for range 16 {
			if _, err := client.(*net.UDPConn).WriteToUDPAddrPort(buf, at); err == nil {
				k++
			}
		}
	}
	s := time.Since(begin).Seconds()
	server.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	wg.Wait()
	server.Close()
	return float64(n.Load()) / s / 1e3, float64(k) / s / 1e3
}
