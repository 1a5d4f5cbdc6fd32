package policy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/netns/lab/beside"
)

// Beside each of others' firewalls: a rule that comes and goes opens and closes what it says
// and nothing else. No packet that was sent while its pair was closed arrives, no flow that no
// change forbids is cut or loses a packet, and what is no business of the tunnel is on the
// wire, and in others' counters, what it is without the table.
//
// In a soak all of them and 200 flips, else one of each mechanism and 3; firewalld and ufw take a machine.
func TestBeside(t *testing.T) {
	flips := 3
	soak := os.Getenv("CAUSEWAY_SOAK") != ""
	if soak {
		flips = 200
	}
	for _, b := range beside.Programs {
		if (b.Soak || b.Machine != nil) && !soak {
			continue
		}
		t.Run(b.Name, func(t *testing.T) {
			lab.Counts(t)
			w := newWorld(t)
			lan := w.lan()
			require.NoError(t, b.Start(t.Context(), w.a, "../.."))
			around := beside.Around{Host: w.a, Pod: w.pa, Outside: lan, HostAddr: "192.168.1.1", PodAddr: "10.1.0.11", OutsideAddr: "192.168.1.50", Port: 5000, Table: "causeway-policy"}
			without := around.Foreign(t)
			w.allow(Allow{From: podsA, To: podsB, Proto: TCP, First: 80, Last: 80, Rule: "web"})
			with := around.Foreign(t)
			require.Equal(t, without, with, "what is not the tunnel's")
			w.flips(b, flips)
			t.Logf("%d packets of others seen alike, and their counters", strings.Count(without, "\n"))
		})
	}
}

// lan is a host behind a's eth0, by which a's default route goes.
func (w *world) lan() *lab.Host {
	x := w.l.Host("x")
	w.l.Wire(w.a, "eth0", []string{"192.168.1.1/24"}, x, "eth0", []string{"192.168.1.50/24"})
	x.Sh("ip route add 10.0.0.0/8 via 192.168.1.1")
	w.a.Sh("ip route add default via 192.168.1.50")
	for _, h := range []*lab.Host{x, w.pa, w.pb} {
		h.Sysctl("net.ipv4.icmp_ratelimit=0")
	}
	w.serve(x, 5000)
	for _, h := range []*lab.Host{w.pa, w.pb, w.a} {
		w.serve(h, 80, 5000)
	}
	return x
}

// flood is UDP from one host to another that counts itself.
type flood struct {
	mu     sync.Mutex
	conn   net.Conn
	next   uint64 // of the next packet
	isShut bool
	got    atomic.Uint64
	passed atomic.Uint64 // that were sent while the pair was closed
	closed sync.Map      // number of a packet that was sent while closed
	tried  uint64
	stop   chan struct{}
	done   chan struct{}
}

func (w *world) flood(from, to *lab.Host, addr string, port int) *flood {
	f := &flood{next: 1, stop: make(chan struct{}), done: make(chan struct{})}
	var u net.PacketConn
	require.NoError(w.t, to.Do(func() (err error) { u, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port)); return err }))
	c, err := dial(from, "udp", net.JoinHostPort(addr, fmt.Sprint(port)))
	require.NoError(w.t, err)
	f.conn = c
	w.t.Cleanup(func() { u.Close(); c.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			n, _, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			if n == 8 {
				f.got.Add(1)
				if _, bad := f.closed.Load(binary.BigEndian.Uint64(b)); bad {
					f.passed.Add(1)
				}
			}
		}
	}()
	go func() {
		defer close(f.done)
		tick := time.NewTicker(200 * time.Microsecond)
		defer tick.Stop()
		for {
			select {
			case <-f.stop:
				return
			case <-tick.C:
			}
			f.mu.Lock()
			if f.isShut {
				f.closed.Store(f.next, true)
				f.tried++
			}
			c.Write(binary.BigEndian.AppendUint64(nil, f.next)) // an answer that it is closed is its error
			f.next++
			f.mu.Unlock()
		}
	}()
	return f
}

// isClosed says that the pair is closed by now.
func (f *flood) isClosed() {
	f.mu.Lock()
	f.isShut = true
	f.mu.Unlock()
}

// opens holds the flood while f opens the pair; what was sent before has arrived by then,
// or been refused: settle says when.
func (f *flood) opens(settle, open func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	settle()
	open()
	f.isShut = false
}

// steady asks an echo server again and again, one question at a time.
type steady struct {
	what string
	stop chan struct{}
	done chan struct{}
	err  error
	n    int
}

func (w *world) steady(from *lab.Host, network, to string) *steady {
	w.t.Helper()
	c, err := dial(from, network, to)
	require.NoError(w.t, err, to)
	s := &steady{what: network + " " + from.Name + " " + to, stop: make(chan struct{}), done: make(chan struct{})}
	w.t.Cleanup(func() { c.Close() })
	go func() {
		defer close(s.done)
		b := make([]byte, 100)
		for {
			select {
			case <-s.stop:
				return
			case <-time.After(time.Millisecond):
			}
			c.SetDeadline(time.Now().Add(5 * time.Second))
			want := fmt.Sprintf("%020d", s.n)
			if _, s.err = c.Write([]byte(want)); s.err != nil {
				return
			}
			var n int
			if n, s.err = c.Read(b); s.err != nil {
				return
			}
			if string(b[:n]) != want {
				s.err = fmt.Errorf("got %q for %q", b[:n], want)
				return
			}
			s.n++
		}
	}()
	return s
}

func (s *steady) end(t *testing.T) int {
	t.Helper()
	close(s.stop)
	<-s.done
	require.NoError(t, s.err, "%s after %d answers", s.what, s.n)
	require.NotZero(t, s.n, s.what)
	return s.n
}

// flips opens and closes one rule again and again beside flows that it does not concern.
func (w *world) flips(b beside.Program, n int) {
	t := w.t
	stays := []Allow{{From: podsA, To: podsB, Proto: TCP, First: 80, Last: 80, Rule: "stays"}, {From: podsB, To: podsA, Proto: TCP, First: 80, Last: 80, Rule: "stays"}, {From: podsA, To: podsB, Proto: UDP, First: 5000, Last: 5000, Rule: "stays"}, {From: podsB, To: podsA, Proto: UDP, First: 5000, Last: 5000, Rule: "stays"},
		{From: nodeA, To: podsB, Proto: TCP, First: 80, Last: 80, Rule: "stays"}, {From: podsB, To: nodeA, Proto: TCP, First: 80, Last: 80, Rule: "stays"}, {From: nodeA, To: podsB, Proto: UDP, First: 5000, Last: 5000, Rule: "stays"}}
	flip := []Allow{{From: podsA, To: podsB, Proto: TCP, First: 443, Last: 443, Rule: "flips"}, {From: podsB, To: podsA, Proto: TCP, First: 443, Last: 443, Rule: "flips"}, {From: podsB, To: podsA, Proto: UDP, First: 6000, Last: 6000, Rule: "flips"}, {From: podsA, To: podsB, Proto: UDP, First: 6001, Last: 6001, Rule: "flips"},
		{From: nodeA, To: podsB, Proto: UDP, First: 6002, Last: 6002, Rule: "flips"}, {From: nodeA, To: podsB, Proto: TCP, First: 443, Last: 443, Rule: "flips"}}
	w.allow(append(flip, stays...)...)
	flows := w.unconcerned(b)
	floods := []*flood{w.flood(w.pb, w.pa, "10.1.0.11", 6000), w.flood(w.pa, w.pb, "10.2.0.11", 6001), w.flood(w.a, w.pb, "10.2.0.11", 6002)}
	marker := w.steadyMarkers()
	var tellWorst, setWorst time.Duration
	for i := range n {
		talk, talkServer := w.pairOf(w.pa, w.pb, "10.2.0.11", 443, true)
		wait, waitServer := w.pairOf(w.pb, w.pa, "10.1.0.11", 443, false)
		ends := []*end{talk, talkServer, wait, waitServer}
		if b.Service != "" {
			s, _ := w.pairOf(w.a, w.pb, b.Service, 443, true) // by the service's address
			ends = append(ends, s)
		}
		start := time.Now()
		w.allow(stays...)
		set := time.Now()
		setWorst = max(setWorst, set.Sub(start))
		for _, f := range floods {
			f.isClosed()
		}
		require.NoError(t, w.a.Do(func() error { return tell(t, w.tableA) }))
		// The tunnel's other end has no wall here: who only waits there is not told.
		if b.Stateless { // conntrack has no list of it: it is told by its next packet
			waitServer.conn.Write([]byte("now"))
		}
		for _, e := range []*end{talk, waitServer} {
			select {
			case <-e.done:
				tellWorst = max(tellWorst, e.at.Sub(set))
			case <-time.After(10 * time.Second):
				t.Fatalf("flip %d: an end still waits", i)
			}
		}
		if b.Service != "" {
			select {
			case <-ends[4].done:
			case <-time.After(10 * time.Second):
				t.Fatalf("flip %d: the flow by the service's address lives", i)
			}
		}
		w.closed(b, i)
		for _, e := range ends {
			e.conn.Close()
		}
		w.opens(floods, marker, append(flip, stays...))
	}
	answers, tried := w.counted(b, flows, floods)
	t.Logf("| %s | %d | 0 of %d | 0 of %d, %d answers | %s | %s |", b.Name, n, tried, len(flows), answers, setWorst.Round(time.Millisecond), tellWorst.Round(time.Millisecond))
}

// counted ends flows and floods, and returns how many answers and tries there were.
func (w *world) counted(b beside.Program, flows []*steady, floods []*flood) (answers int, tried uint64) {
	for _, s := range flows {
		answers += s.end(w.t)
	}
	for _, f := range floods {
		close(f.stop)
		<-f.done
		tried += f.tried
		require.Zero(w.t, f.passed.Load(), "packets of a closed pair")
	}
	require.NotZero(w.t, tried)
	var counts Counts
	require.NoError(w.t, w.a.Do(func() (err error) { counts, err = Counted(); return err }))
	require.Equal(w.t, b.Stateless, counts.Untracked.Packets > 0, "%d untracked", counts.Untracked.Packets)
	return answers, tried
}

// unconcerned are flows that no flip forbids.
func (w *world) unconcerned(b beside.Program) []*steady {
	var flows []*steady
	for _, to := range []string{"10.2.0.11", "fd10:2::11"} {
		flows = append(flows, w.steady(w.pa, "tcp", net.JoinHostPort(to, "80")), w.steady(w.pa, "udp", net.JoinHostPort(to, "5000")),
			w.steady(w.a, "tcp", net.JoinHostPort(to, "80")), w.steady(w.a, "udp", net.JoinHostPort(to, "5000")))
	}
	for _, to := range []string{"10.1.0.11", "fd10:1::11"} {
		if b.Name == "Docker 29, nftables" && strings.Contains(to, ":") {
			continue // the file has one family
		}
		flows = append(flows, w.steady(w.pb, "tcp", net.JoinHostPort(to, "80")), w.steady(w.pb, "udp", net.JoinHostPort(to, "5000")))
	}
	flows = append(flows, w.steady(w.pb, "tcp", "198.18.0.1:80"))
	if b.Service != "" {
		flows = append(flows, w.steady(w.pa, "tcp", net.JoinHostPort(b.Service, "80")), w.steady(w.a, "tcp", net.JoinHostPort(b.Service, "80")))
	}
	return flows
}

// closed tries what flip i closed.
func (w *world) closed(b beside.Program, i int) {
	for _, to := range []string{"10.2.0.11:443", b.Service + ":443"} {
		if to == ":443" || to != "10.2.0.11:443" && i > 1 { // silence takes its time
			continue
		}
		require.NotEqual(w.t, passed, try(w.pa, "tcp", to))
		require.NotEqual(w.t, passed, try(w.a, "tcp", to))
	}
	require.NotEqual(w.t, passed, try(w.pb, "tcp", "10.1.0.11:443"))
}

// opens sets the rules while the floods hold, and waits until each arrives.
func (w *world) opens(floods []*flood, marker func(), rules []Allow) {
	open := func() { w.allow(rules...) }
	for _, f := range floods {
		inner := open
		open = func() { f.opens(marker, inner) }
	}
	open()
	for _, f := range floods {
		before := f.got.Load()
		require.NoError(w.t, lab.Wait(within(w.t), "packets of an open pair", func(context.Context) error {
			if f.got.Load() == before {
				return errors.New("none")
			}
			return nil
		}))
	}
}

// steadyMarkers returns what waits until all that was sent on these ways before is through.
func (w *world) steadyMarkers() func() {
	var conns []net.Conn
	for _, x := range []struct {
		from *lab.Host
		to   string
	}{{w.pb, "10.1.0.11:5000"}, {w.pa, "10.2.0.11:5000"}, {w.a, "10.2.0.11:5000"}} {
		c, err := dial(x.from, "udp", x.to)
		require.NoError(w.t, err)
		w.t.Cleanup(func() { c.Close() })
		conns = append(conns, c)
	}
	return func() {
		for _, c := range conns {
			c.SetDeadline(time.Now().Add(5 * time.Second))
			_, err := c.Write([]byte("marker"))
			require.NoError(w.t, err)
			_, err = c.Read(make([]byte, 10))
			require.NoError(w.t, err)
		}
	}
}
