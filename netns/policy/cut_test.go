package policy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/netns"
	"causeway/netns/internal/prod"
	"causeway/netns/lab"
)

// end is one end of a connection that a test watches.
type end struct {
	conn net.Conn
	done chan struct{}
	err  error
	at   time.Time    // when it failed
	n    atomic.Int64 // bytes read
}

// watch reads until the connection fails; it sends every 5 ms where it talks.
func watch(c net.Conn, talks bool) *end {
	e := &end{conn: c, done: make(chan struct{})}
	stop, wrote := make(chan struct{}), make(chan error, 1)
	if talks {
		go func() {
			defer close(wrote)
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
					if _, err := c.Write([]byte("line\n")); err != nil {
						wrote <- err // who writes is told first, and a reader then of an end
						return
					}
				}
			}
		}()
	}
	go func() {
		defer close(e.done)
		b := make([]byte, 65536)
		for e.err == nil {
			var n int
			n, e.err = c.Read(b)
			e.n.Add(int64(n))
		}
		e.at = time.Now()
		close(stop)
		if talks {
			if err := <-wrote; errors.Is(e.err, io.EOF) && err != nil {
				e.err = err
			}
		}
	}()
	return e
}

// pairOf is a connection from one host to another, by both of its ends.
func (w *world) pairOf(from, to *lab.Host, addr string, port int, talks bool) (client, server *end) {
	w.t.Helper()
	var l net.Listener
	require.NoError(w.t, to.Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	}))
	defer l.Close()
	c, err := dial(from, "tcp", net.JoinHostPort(addr, fmt.Sprint(port)))
	require.NoError(w.t, err)
	s, err := l.Accept()
	require.NoError(w.t, err)
	w.t.Cleanup(func() { c.Close(); s.Close() })
	return watch(c, talks), watch(s, talks)
}

type flow struct {
	what           string
	client, server *end
}

// talking waits until those that talk have been heard.
func talking(t *testing.T, l []flow) {
	t.Helper()
	for _, f := range l {
		if !strings.HasSuffix(f.what, "true") {
			continue
		}
		require.NoError(t, lab.Wait(within(t), "talk", func(context.Context) error {
			if f.server.n.Load() == 0 {
				return errors.New(f.what + ": nothing yet")
			}
			return nil
		}))
	}
}

// A rule that goes resets both ends of what it opened, of what talks and of what waits, and
// leaves alone what another rule opens.
func TestCut(t *testing.T) {
	lab.Counts(t)
	w := newWorld(t)
	stays := Allow{From: podsA, To: podsB, Proto: TCP, First: 80, Last: 89, Rule: "stays"}
	goes := []Allow{{From: podsA, To: podsB, Proto: TCP, First: 440, Last: 449, Rule: "goes"}, {From: podsB, To: podsA, Proto: TCP, First: 440, Last: 449, Rule: "goes"}, {From: nodeA, To: podsB, Proto: TCP, First: 440, Last: 449, Rule: "goes"}, {From: podsB, To: nodeA, Proto: TCP, First: 440, Last: 449, Rule: "goes"}}
	for round := range 3 {
		w.allow(append(goes, stays)...)
		w.allowB(append(goes, stays)...)
		var cut, kept []flow
		add := func(l *[]flow, what string, from, to *lab.Host, addr string, port int, talks bool) {
			c, s := w.pairOf(from, to, addr, port, talks)
			*l = append(*l, flow{what, c, s})
		}
		for i, v := range []map[string]string{{"pa": "10.1.0.11", "pb": "10.2.0.11", "a": "198.18.0.1"}, {"pa": "fd10:1::11", "pb": "fd10:2::11", "a": "fd63:7761:7900::1"}} {
			for k, talks := range []bool{true, false} {
				p := 440 + 2*i + k
				add(&cut, fmt.Sprint("pod to pod, talks ", talks), w.pa, w.pb, v["pb"], p, talks)
				add(&cut, fmt.Sprint("pod from pod, talks ", talks), w.pb, w.pa, v["pa"], p, talks)
				add(&cut, fmt.Sprint("node to pod, talks ", talks), w.a, w.pb, v["pb"], p+5, talks)
				add(&cut, fmt.Sprint("pod to node, talks ", talks), w.pb, w.a, v["a"], p, talks)
				add(&kept, fmt.Sprint("kept, talks ", talks), w.pa, w.pb, v["pb"], 80+2*i+k, talks)
			}
		}
		talking(t, append(cut[:len(cut):len(cut)], kept...))
		start := time.Now()
		var both sync.WaitGroup
		var errs [2]error
		both.Go(func() {
			w.configA.Allows = []Allow{stays}
			errs[0] = w.a.Do(func() error { return errors.Join(w.tableA.Set(w.configA), tell(t, w.tableA)) })
		})
		both.Go(func() {
			w.configB.Allows = []Allow{stays}
			errs[1] = w.b.Do(func() error { return errors.Join(w.tableB.Set(w.configB), tell(t, w.tableB)) })
		})
		both.Wait()
		require.NoError(t, errors.Join(errs[:]...))
		written := time.Now()
		var worst time.Duration
		for _, f := range cut {
			for _, e := range []*end{f.client, f.server} {
				select {
				case <-e.done:
				case <-time.After(10 * time.Second):
					t.Fatalf("round %d, %s: an end still waits", round, f.what)
				}
				require.ErrorIs(t, e.err, syscall.ECONNRESET, f.what)
				worst = max(worst, e.at.Sub(written))
			}
		}
		t.Logf("round %d: written in %s, the last of %d ends reset %s after that", round, written.Sub(start).Round(time.Millisecond), 2*len(cut), worst.Round(time.Millisecond))
		for _, f := range kept {
			for _, e := range []*end{f.client, f.server} {
				select {
				case <-e.done:
					t.Fatalf("round %d, %s: cut: %v", round, f.what, e.err)
				default:
				}
			}
			// It is whole: what is sent now comes, and its end.
			_, err := f.client.conn.Write([]byte("still here"))
			require.NoError(t, err)
			require.NoError(t, f.client.conn.(*net.TCPConn).CloseWrite())
			select {
			case <-f.server.done:
				require.ErrorIs(t, f.server.err, io.EOF)
			case <-time.After(10 * time.Second):
				t.Fatalf("%s: nothing comes any more", f.what)
			}
		}
	}
}

// A peer that goes with its rule takes its addresses away: both ends of what it opened are reset all the same, and one that
// answers no prod at first, because it has just answered another (tcp_invalid_ratelimit), is told again.
func TestCutWithPeer(t *testing.T) {
	lab.Counts(t)
	w := newWorld(t)
	open := []Allow{{From: podsA, To: podsB, Proto: TCP, Rule: "goes"}, {From: podsB, To: podsA, Proto: TCP, Rule: "goes"}, {From: nodeA, To: podsB, Proto: TCP, Rule: "goes"}}
	hosts, configs, parts := []*lab.Host{w.a, w.b}, []Config{w.configA, w.configB}, make([]*Part, 2)
	apply := func(i int, c Config) error {
		next, err := NewPart(c)
		if err != nil {
			return err
		}
		var before netns.Part // a nil *Part is none
		if parts[i] != nil {
			before = parts[i]
		}
		err = hosts[i].Do(func() error { return next.Apply(t.Context(), before) })
		parts[i] = next
		return err
	}
	t.Cleanup(func() {
		for _, p := range parts {
			p.Close()
		}
	})
	for round := range 3 {
		for i := range hosts {
			configs[i].Allows = open
			require.NoError(t, apply(i, configs[i]))
		}
		var ends []*end
		for k, v := range [][2]string{{"10.1.0.11", "10.2.0.11"}, {"fd10:1::11", "fd10:2::11"}} {
			for i, f := range [][2]*lab.Host{{w.pa, w.pb}, {w.a, w.pb}, {w.pb, w.pa}} {
				addr := v[1]
				if f[1] == w.pa {
					addr = v[0]
				}
				c, s := w.pairOf(f[0], f[1], addr, 7000+10*k+i, false)
				ends = append(ends, c, s)
			}
		}
		for i, h := range hosts { // at each host those of its own
			require.NoError(t, h.Do(func() error {
				for _, e := range ends {
					from, to := e.conn.RemoteAddr().(*net.TCPAddr).AddrPort(), e.conn.LocalAddr().(*net.TCPAddr).AddrPort()
					if classOf(configs[i].Local, to.Addr().Unmap()) == 0 {
						continue
					}
					family := unix.AF_INET6
					if to.Addr().Unmap().Is4() {
						family = unix.AF_INET
					}
					fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
					if err != nil {
						return err
					}
					from, to = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
					err = errors.Join(prod.Send(fd, from, to, 1), prod.Send(fd, from, to, 1+1<<31), unix.Close(fd))
					if err != nil {
						return err
					}
				}
				return nil
			}))
		}
		start := time.Now()
		for i, c := range configs {
			c.Allows, c.Remote = nil, nil
			require.NoError(t, apply(i, c))
		}
		var worst time.Duration
		for i, e := range ends {
			select {
			case <-e.done:
			case <-time.After(10 * time.Second):
				t.Fatalf("round %d: end %d still waits", round, i)
			}
			require.ErrorIs(t, e.err, syscall.ECONNRESET)
			worst = max(worst, e.at.Sub(start))
		}
		t.Logf("round %d: the last of %d ends reset after %s", round, len(ends), worst.Round(time.Millisecond))
		require.Less(t, worst, 2*time.Second)
	}
}

func tell(t *testing.T, tb *Table) error {
	_, err := tb.Tell(t.Context())
	return err
}
