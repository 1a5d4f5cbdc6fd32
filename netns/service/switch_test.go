package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/prod"
	"causeway/netns/lab"
)

// flow is a connection that a test watches: it talks all the time, has asked and waits, or is idle.
type flow struct {
	what string
	conn net.Conn
	done chan struct{} // closed when it has failed
	err  error
	at   time.Time
}

const ofA = "payload for a"

// open opens one to port 80, which whoever has the slots answers.
func (w *world) open(from string, v6 bool, how string) *flow {
	w.t.Helper()
	c, err := dial(w.host(from), "tcp", at(v6, 80))
	require.NoError(w.t, err)
	_, _, err = answer(c)
	require.NoError(w.t, err)
	c.SetDeadline(time.Time{})
	w.t.Cleanup(func() { c.Close() })
	f := &flow{what: fmt.Sprintf("%s from %s, IPv6 %v", how, from, v6), conn: c, done: make(chan struct{})}
	return f
}

// goes begins what it does.
func (f *flow) goes() {
	how, _, _ := strings.Cut(f.what, " ")
	if how == "asked" {
		f.conn.Write([]byte(ofA + "\n"))
	}
	stop := make(chan struct{})
	if how == "talks" {
		go func() {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
					f.conn.Write([]byte(ofA + "\n"))
				}
			}
		}()
	}
	go func() {
		for b := make([]byte, 1000); f.err == nil; {
			_, f.err = f.conn.Read(b)
		}
		f.at = time.Now()
		close(stop)
		close(f.done)
	}()
}

// reset waits for the flow's end, which is one by a reset.
func (f *flow) reset(t *testing.T, since time.Time) time.Duration {
	t.Helper()
	select {
	case <-f.done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: not ended", f.what)
	}
	if strings.HasPrefix(f.what, "talks") && !errors.Is(f.err, syscall.ECONNRESET) {
		_, f.err = f.conn.Write([]byte("x")) // who writes was told first
		require.ErrorIs(t, f.err, syscall.EPIPE, f.what)
	} else {
		require.ErrorIs(t, f.err, syscall.ECONNRESET, f.what)
	}
	return f.at.Sub(since)
}

// A site that falls silent: what is new goes elsewhere at once, what is only begun after its next SYN and without an error, UDP with its
// next datagram; what is established is reset, whatever it does, and no byte of it comes to another backend.
func TestSwitch(t *testing.T) {
	lab.Counts(t)
	w := newWorld(t)
	w.serve("a", "b")
	w.switches(2, false, true)
}

// switches has site a fall silent and come back, so many times, in these families.
func (w *world) switches(rounds int, families ...bool) {
	t := w.t
	stays := services(64, "b")
	for i := range stays {
		stays[i].Port += 10
	}
	clients := []string{"pc", "lan", "far", "n"}
	for round := range rounds {
		w.set(append(services(64, "a"), stays...))
		var flows, kept []*flow
		var udps []net.Conn
		for _, v6 := range families {
			for _, from := range clients {
				for _, how := range []string{"talks", "asked", "idle"} {
					flows = append(flows, w.open(from, v6, how))
				}
				c, err := dial(w.host(from), "udp", at(v6, 80))
				require.NoError(t, err)
				t.Cleanup(func() { c.Close() })
				name, _, err := answer(c)
				require.NoError(t, err)
				require.Equal(t, "a", name)
				udps = append(udps, c)
				c, err = dial(w.host(from), "tcp", at(v6, 90))
				require.NoError(t, err)
				t.Cleanup(func() { c.Close() })
				kept = append(kept, &flow{what: "kept", conn: c})
			}
		}
		atB := sniff(t, w.b, "eth0")
		silent(w.a)
		start := time.Now()
		for _, f := range flows {
			f.goes()
		}
		// Begun while nothing answers.
		type begun struct {
			c    net.Conn
			err  error
			took time.Duration
		}
		begins := make([]begun, 0, len(families)*len(clients))
		var mu sync.Mutex
		var all sync.WaitGroup
		for _, v6 := range families {
			for _, from := range clients {
				all.Go(func() {
					start := time.Now()
					c, err := dial(w.host(from), "tcp", at(v6, 80))
					mu.Lock()
					defer mu.Unlock()
					begins = append(begins, begun{c, err, time.Since(start)})
				})
			}
		}
		require.NoError(t, lab.Wait(within(t), "connections that are begun", func(context.Context) error {
			n := 0
			var l map[Of]Count
			w.on(func() (err error) { l, err = w.table.Flows(t.Context()); return err })
			for of, c := range l {
				if of.Proto == tcp && of.Backend.Addr() == backend("a", of.VIP.Is6()).Addr() {
					n += c.Unreplied
				}
			}
			if n != len(families)*len(clients) {
				return fmt.Errorf("%d", n)
			}
			return nil
		}))
		// Suspect: the slots go elsewhere.
		w.set(append(services(64, "b"), stays...))
		for _, v6 := range families {
			name, _, err := ask(w.pc, "tcp", at(v6, 80))
			require.NoError(t, err)
			require.Equal(t, "b", name)
		}
		var n int
		w.on(func() (err error) { n, err = w.table.Release(t.Context(), backends("a")); return err })
		require.Equal(t, 2*len(families)*len(clients), n, "half-open ones and UDP")
		for _, c := range udps {
			name, _, err := answer(c)
			require.NoError(t, err)
			require.Equal(t, "b", name)
		}
		for _, f := range flows {
			select {
			case <-f.done:
				t.Fatalf("%s: ended before its backend is dead: %v", f.what, f.err)
			default:
			}
		}
		all.Wait()
		var slowest time.Duration
		for _, x := range begins {
			require.NoError(t, x.err)
			name, _, err := answer(x.c)
			require.NoError(t, err)
			require.Equal(t, "b", name)
			x.c.Close()
			slowest = max(slowest, x.took)
		}
		require.Less(t, slowest, 2200*time.Millisecond)
		// Dead: what is established ends.
		dead := time.Now()
		w.set(append(services(64, "b"), stays...), backends("a")...)
		w.on(func() (err error) { n, err = w.table.Prod(t.Context(), backends("a")); return err })
		took := time.Since(dead)
		var worst time.Duration
		for _, f := range flows {
			worst = max(worst, f.reset(t, dead))
		}
		for _, f := range kept {
			name, _, err := answer(f.conn)
			require.NoError(t, err, "a flow to another backend")
			require.Equal(t, "b", name)
		}
		payload := 0
		for _, p := range atB() {
			require.NotContains(t, string(p.payload), ofA)
			payload += len(p.payload)
		}
		require.NotZero(t, payload)
		t.Logf("round %d: %d connections under way at b after %s at most; dead after %s: %d prodded in %s, the last of %d reset after %s; %d bytes at b, none of a's",
			round, len(begins), slowest.Round(time.Millisecond), dead.Sub(start).Round(time.Millisecond), n, took.Round(time.Millisecond), len(flows), worst.Round(time.Millisecond), payload)
		// What a back a still has to say to those that were reset comes nowhere.
		seen := sniff(t, w.pc, "eth0")
		heal(w.a)
		for _, c := range w.servers["a"].all() {
			c.Write([]byte("late"))
		}
		require.NoError(t, lab.Wait(within(t), "what a sends", func(context.Context) error {
			if strings.Contains(w.n.Sh("nft list chain inet causeway-service dead | grep reply"), "packets 0 ") {
				return errors.New("nothing came")
			}
			return nil
		}))
		for _, p := range seen() {
			require.False(t, bytes.Contains(p.payload, []byte("late")))
		}
		// Who asks a itself is answered, dead or not.
		for _, from := range clients[:2] {
			name, _, err := ask(w.host(from), "tcp", backend("a", false).String())
			require.NoError(t, err)
			require.Equal(t, "a", name)
		}
		// a has its slots again, and what is at b stays there.
		w.set(append(services(64, "a"), stays...))
		for _, v6 := range families {
			name, _, err := ask(w.lan, "tcp", at(v6, 80))
			require.NoError(t, err)
			require.Equal(t, "a", name)
		}
		for _, f := range kept {
			_, _, err := answer(f.conn)
			require.NoError(t, err)
		}
	}
}

// What was noted is released at once, without another look through conntrack, and only if it is still so.
func TestNoted(t *testing.T) {
	lab.Counts(t)
	w := newWorld(t)
	w.serve("a", "b")
	w.set(services(64, "a"))
	udp, err := dial(w.pc, "udp", at(false, 80))
	require.NoError(t, err)
	defer udp.Close()
	name, _, err := answer(udp)
	require.NoError(t, err)
	require.Equal(t, "a", name)
	silent(w.a)
	began := make(chan net.Conn, 2)
	for _, from := range []string{"pc", "lan"} {
		go func() {
			c, err := dial(w.host(from), "tcp", at(false, 80))
			if err != nil {
				t.Error(err)
			}
			began <- c
		}()
	}
	half := func(want int) {
		t.Helper()
		require.NoError(t, lab.Wait(within(t), "connections that are begun", func(context.Context) error {
			var l map[Of]Count
			w.on(func() (err error) { l, err = w.table.Flows(t.Context()); return err })
			for of, c := range l {
				if of.Proto == tcp && c.Unreplied == want {
					return nil
				}
			}
			return fmt.Errorf("%v", l)
		}))
	}
	half(2)
	w.on(func() error { return w.table.Note(t.Context()) })
	heal(w.a)
	var conns []net.Conn
	for range 2 {
		c := <-began // by its next SYN, of the slots as they are
		require.NotNil(t, c)
		defer c.Close()
		conns = append(conns, c)
	}
	w.set(services(64, "b"))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var n int
	require.NoError(t, w.n.Do(func() (err error) {
		if n, err = w.table.Release(gone, backends("a")); !errors.Is(err, context.Canceled) {
			return fmt.Errorf("it looked for more: %w", err)
		}
		return nil
	}))
	require.Equal(t, 1, n, "UDP; the connections have an answer by now")
	name, _, err = answer(udp)
	require.NoError(t, err)
	require.Equal(t, "b", name)
	for _, c := range conns {
		name, _, err := answer(c)
		require.NoError(t, err)
		require.Equal(t, "a", name)
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// What conntrack has forgotten, or takes for no part of a flow, goes to no other backend: the one is reset at once, and the other lost
// without harm to the flow.
func TestNeverElsewhere(t *testing.T) {
	lab.Counts(t)
	w := newWorld(t)
	w.serve("a", "b")
	unfound := func() string { return w.n.Sh("nft list chain inet causeway-service unfound | grep counter") }
	for _, v6 := range []bool{false, true} {
		w.set(services(64, "a"))
		before := unfound()
		var flows []*flow
		for _, from := range []string{"pc", "lan", "n"} {
			f := w.open(from, v6, "talks") // later; a late ACK of its own may meet the reset before
			flows = append(flows, f)
			if from == "n" {
				continue // its own raw packets are known as ours
			}
			to := netip.MustParseAddrPort(f.conn.RemoteAddr().String())
			require.NoError(t, w.host(from).Do(func() error {
				fd, err := unix.Socket(map[bool]int{false: unix.AF_INET, true: unix.AF_INET6}[v6], unix.SOCK_RAW, unix.IPPROTO_RAW)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				me := netip.MustParseAddrPort(f.conn.LocalAddr().String())
				return errors.Join(prod.Send(fd, me, to, 1), prod.Send(fd, me, to, 1<<31))
			}))
			_, _, err := answer(f.conn)
			require.NoError(t, err, f.what)
			f.conn.SetDeadline(time.Time{})
		}
		require.Equal(t, before, unfound())
		atB := sniff(t, w.b, "eth0")
		w.set(services(64, "b"))
		w.n.Sh("conntrack -F 2>/dev/null")
		for _, f := range flows {
			start := time.Now()
			f.goes()
			require.Less(t, f.reset(t, start), time.Second)
		}
		name, _, err := ask(w.pc, "tcp", at(v6, 80))
		require.NoError(t, err)
		require.Equal(t, "b", name)
		for _, p := range atB() {
			require.NotContains(t, string(p.payload), ofA)
		}
	}
}
