package policy

import (
	"context"
	"errors"
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

	"github.com/mdlayher/netlink"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
	"causeway/netns/lab"
)

// large is a config of n remote prefixes in classes, with eight local ones that have rules with
// ten others each.
func large(n, classes int) Config {
	c := Config{Interface: "cw0"}
	for i := range n {
		a := netip.AddrFrom4([4]byte{byte(11 + i>>16), byte(i >> 8), byte(i), 0})
		c.Remote = append(c.Remote, Member{netip.PrefixFrom(a, 24), Class(1000 + i%classes)})
	}
	for l := range 8 {
		c.Local = append(c.Local, Member{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(l), 0}), 24), Class(1 + l)})
		for k := range 40 {
			r := Class(1000 + (l*61+k*7)%classes)
			p := []uint16{22, 53, 80, 443, 5432, 6379, 8080, 9000}[k%8]
			name := fmt.Sprintf("rule-%d-%d", l, k%8)
			c.Allows = append(c.Allows, Allow{From: r, To: Class(1 + l), Proto: TCP, First: p, Last: p, Rule: name}, Allow{From: Class(1 + l), To: r, Proto: UDP, First: p, Last: p, Rule: name})
		}
	}
	return c
}

// processor returns a function that says how much of it was used since, in ms for each of n.
func processor(b *testing.B) func() {
	used := func() int64 {
		var r unix.Rusage
		require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &r))
		return r.Utime.Nano() + r.Stime.Nano()
	}
	start := used()
	return func() { b.ReportMetric(float64(used()-start)/1e6/float64(b.N), "cpu-ms/op") }
}

// The whole table, one prefix changed, one rule changed, at the size of a large cluster.
func BenchmarkSet(b *testing.B) {
	for _, n := range []int{1000, 30000} {
		l := lab.New(b)
		h := l.Host("h")
		c := large(n, 500)
		t := NewTable()
		set := func(c Config) {
			require.NoError(b, h.Do(func() error { return t.Set(c) }))
		}
		b.Run(fmt.Sprintf("whole-%d", n), func(b *testing.B) {
			defer processor(b)()
			for range b.N {
				t.have = nil
				set(c)
			}
		})
		b.Run(fmt.Sprintf("prefix-%d", n), func(b *testing.B) {
			defer processor(b)()
			for i := range b.N {
				c.Remote[n/2].Class = Class(1000 + i%2)
				set(c)
			}
		})
		b.Run(fmt.Sprintf("rule-%d", n), func(b *testing.B) {
			defer processor(b)()
			for i := range b.N {
				d := c
				if i%2 == 0 {
					d.Allows = c.Allows[1:]
				}
				set(d)
			}
		})
		b.Run(fmt.Sprintf("look-%d", n), func(b *testing.B) {
			defer processor(b)()
			for range b.N {
				require.NoError(b, h.Do(func() error {
					differs, err := t.Differs()
					if differs {
						err = errors.New("nobody touched it")
					}
					return err
				}))
			}
		})
	}
}

// Under a flood, 1,000 replacements of rules and prefixes (in a soak, else 150): no packet of a closed pair arrives,
// and of the open ones none is lost to the table.
func TestReplaced(t *testing.T) {
	lab.Counts(t)
	w := newWorld(t)
	var bad net.PacketConn
	require.NoError(t, w.pa.Do(func() (err error) { bad, err = net.ListenPacket("udp", ":6000"); return err }))
	defer bad.Close()
	w.serve(w.pa, 5000, 443)
	base := []Allow{{From: podsB, To: podsA, Proto: UDP, First: 5000, Last: 5000, Rule: "open"}, {From: podsB, To: podsA, Proto: TCP, First: 443, Last: 443, Rule: "open"}}
	more := large(200, 50)
	w.configA.Remote = append(w.configA.Remote, more.Remote...)
	w.allow(base...)
	stop := make(chan struct{})
	var done sync.WaitGroup
	var sent atomic.Uint64
	for _, to := range []string{"10.1.0.11:6000", "[fd10:1::11]:6000"} {
		c, err := dial(w.pb, "udp", to)
		require.NoError(t, err)
		done.Go(func() {
			defer c.Close()
			// Not as fast as can be: what queues on the way drop is no matter here.
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
					for range 10 {
						c.Write([]byte("flood"))
						sent.Add(1)
					}
				}
			}
		})
	}
	var flows []*steady
	for _, to := range []string{"10.1.0.11", "fd10:1::11"} {
		for range 3 {
			flows = append(flows, w.steady(w.pb, "udp", net.JoinHostPort(to, "5000")), w.steady(w.pb, "tcp", net.JoinHostPort(to, "443")))
		}
	}
	start := time.Now()
	n := 150
	if os.Getenv("CAUSEWAY_SOAK") != "" {
		n = 1000
	}
	for i := range n {
		l := append(base[:2:2], Allow{From: podsB, To: podsA, Proto: TCP, First: uint16(i + 1), Last: uint16(i + 10), Rule: "other-" + strconv.Itoa(i%7)}, Allow{From: podsA, To: podsB, Proto: UDP, First: 1, Last: 9, Rule: "back"})
		if i%3 == 0 {
			l = append(l, Allow{From: podB2, To: podsA, Proto: Any, First: 0, Last: 0, Rule: "all"})
		}
		for k := range 20 {
			w.configA.Remote[len(w.configA.Remote)-1-k].Class = Class(1000 + (i+k)%50)
		}
		w.allow(l...)
	}
	took := time.Since(start)
	answers := 0
	for _, s := range flows {
		answers += s.end(t)
	}
	close(stop)
	done.Wait()
	// A packet that is let through ends the wait for those that were not.
	w.allow(append(base, Allow{From: podsB, To: podsA, Proto: UDP, First: 6000, Last: 6000, Rule: "end"})...)
	c, err := dial(w.pb, "udp", "10.1.0.11:6000")
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write([]byte("end"))
	require.NoError(t, err)
	b := make([]byte, 10)
	require.NoError(t, bad.SetReadDeadline(time.Now().Add(10*time.Second)))
	size, _, err := bad.ReadFrom(b)
	require.NoError(t, err)
	require.Equal(t, "end", string(b[:size]), "a packet of a closed pair arrived")
	t.Logf("%d replacements in %s, of %d packets of a closed pair none passed, %d answers in %d open flows, none lost", n, took.Round(time.Millisecond), sent.Load(), answers, len(flows))
}

// The first rules come, and the last go, 60 times (in a soak, 400) in the middle of transfers that are open before, with and
// after them: none is reset or stops.
func TestFirstAndLast(t *testing.T) {
	lab.Counts(t)
	w := newWorld(t)
	// Conntrack is there before and after, as on a host: the agent's own table needs it.
	w.a.Sh("nft 'add table inet tracks; add chain inet tracks c { type filter hook input priority 0; }; add rule inet tracks c ct state new counter'")
	w.configA.Remote = append(w.configA.Remote, large(3000, 50).Remote...)
	for i := range Class(50) { // in the map of ports too there is much to do
		w.configA.Allows = append(w.configA.Allows, Allow{From: 1000 + i, To: podsA, Proto: TCP, First: 100, Last: 200 + uint16(i), Rule: "other"})
	}
	for _, p := range [][2]Class{{podsA, podsB}, {podsB, podsA}, {nodeA, podsB}} {
		w.configA.Allows = append(w.configA.Allows, Allow{From: p[0], To: p[1], Proto: TCP, First: 7000, Last: 7999, Rule: "open"}, Allow{From: p[0], To: p[1], Proto: UDP, First: 5000, Last: 5000, Rule: "open"})
	}
	w.serve(w.pb, 5000)
	w.serve(w.pa, 5000)
	var transfers []*end
	stop := make(chan struct{})
	var sending sync.WaitGroup
	for i, to := range []string{"10.2.0.11", "fd10:2::11"} {
		for k, from := range []*lab.Host{w.pa, w.a} {
			c, s := w.pairOf(from, w.pb, to, 7000+10*i+k, false)
			transfers = append(transfers, c, s)
			sending.Go(func() { // both ways, as fast as it goes
				b := make([]byte, 1000)
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := c.conn.Write(b); err != nil {
						return // its end tells
					}
					s.conn.Write(b[:1])
				}
			})
		}
	}
	flows := []*steady{w.steady(w.pa, "udp", "10.2.0.11:5000"), w.steady(w.pb, "udp", "[fd10:1::11]:5000")}
	n := 60
	if os.Getenv("CAUSEWAY_SOAK") != "" {
		n = 400
	}
	for range n {
		require.NoError(t, w.a.Do(func() error {
			return errors.Join(NewTable().Set(w.configA), kernel.DeleteTable(TableName))
		}))
	}
	close(stop)
	var bytes int64
	for i, e := range transfers {
		select {
		case <-e.done:
			t.Errorf("end %d was cut after %d bytes: %v", i, e.n.Load(), e.err)
		default:
		}
		bytes += e.n.Load()
	}
	for _, e := range transfers {
		e.conn.Close()
	}
	sending.Wait()
	for _, f := range flows {
		f.end(t)
	}
	require.NotZero(t, bytes)
	t.Logf("%d times, %d bytes in %d transfers", n, bytes, len(transfers)/2)
}

// What others do to the table is seen without reading its elements, and put right; what they
// do elsewhere, and what is done here, is no matter.
func TestDrift(t *testing.T) {
	w := newWorld(t)
	w.allow(Allow{From: podsB, To: podsA, Proto: TCP, First: 443, Last: 443, Rule: "web"})
	w.serve(w.pa, 443, 80)
	var events <-chan struct{}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, w.a.Do(func() (err error) { events, err = w.tableA.Watch(ctx); return err }))
	mend := func() (m bool) {
		t.Helper()
		require.NoError(t, w.a.Do(func() (err error) {
			if m, err = w.tableA.Differs(); m {
				err = w.tableA.Set(w.tableA.have.config)
			}
			return err
		}))
		return m
	}
	list := func() string {
		var out []string
		for line := range strings.Lines(w.a.Sh("nft -s list table inet causeway-policy")) {
			out = append(out, strings.TrimSpace(line))
		}
		slices.Sort(out) // in which order chains and sets are listed is no matter
		return strings.Join(out, "\n")
	}
	require.False(t, mend())
	w.a.Sh("nft 'add table inet other; add chain inet other c; add rule inet other c accept; delete table inet other'")
	w.allow(Allow{From: podsB, To: podsA, Proto: TCP, First: 443, Last: 443, Rule: "web"}, Allow{From: podsB, To: podsA, Proto: TCP, First: 80, Last: 80, Rule: "more"})
	require.False(t, mend())
	good := list()
	for _, c := range []string{
		"delete table inet causeway-policy",
		"flush ruleset",
		"flush chain inet causeway-policy in",
		"insert rule inet causeway-policy judge-in accept",
		"flush map inet causeway-policy remote4",
		"add element inet causeway-policy remote4 { 10.77.0.0/16 : 0xb }",
		"add element inet causeway-policy ports { 0x80000009 . tcp . 1-9 : goto allow-web }",
		"chain inet causeway-policy in { policy drop; }",
	} {
		select {
		case <-events: // of what was done before
		default:
		}
		w.a.Sh("nft '" + c + "'")
		start := time.Now()
		select {
		case <-events:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: not seen", c)
		}
		require.True(t, mend(), c)
		took := time.Since(start)
		require.Equal(t, good, list(), c)
		require.Equal(t, passed, try(w.pb, "tcp", "10.1.0.11:443"))
		require.Equal(t, refused, try(w.pb, "tcp", "10.1.0.11:22"))
		require.False(t, mend())
		t.Logf("%s: back after %s", c, took.Round(10*time.Microsecond))
	}
	cancel()
	for range events {
	}
}

// A listening that breaks begins again, and what was done meanwhile counts as touched, though it shows in no number.
func TestListensAgain(t *testing.T) {
	w := newWorld(t)
	w.allow(Allow{From: podsB, To: podsA, Proto: TCP, First: 443, Last: 443, Rule: "web"})
	opened, may := make(chan *netlink.Conn, 1), make(chan error)
	listen := w.tableA.stand.Listen
	w.tableA.stand.Listen = func() (c *netlink.Conn, err error) {
		if err := <-may; err != nil {
			return nil, err
		}
		if err = w.a.Do(func() (err error) { c, err = listen(); return err }); err == nil {
			opened <- c
		}
		return c, err
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { may <- nil }()
	events, err := w.tableA.Watch(ctx)
	require.NoError(t, err)
	differs := func() (d bool) {
		require.NoError(t, w.a.Do(func() (err error) { d, err = w.tableA.Differs(); return err }))
		return d
	}
	require.False(t, differs())
	for range 2 {
		require.NoError(t, (<-opened).Close())
		<-events // it broke
		require.NoError(t, w.a.Do(func() error { return w.tableA.Set(w.tableA.have.config) }))
		w.a.Sh("nft 'add element inet causeway-policy remote4 { 10.77.0.0/16 : 0xb }'")
		require.False(t, differs(), "nobody hears it")
		may <- errors.New("no socket") // and it is tried again
		may <- nil
		<-events
		require.True(t, differs())
		require.NoError(t, w.a.Do(func() error { return w.tableA.Set(w.tableA.have.config) }))
		require.NotContains(t, w.a.Sh("nft list map inet causeway-policy remote4"), "10.77.")
	}
	w.a.Sh("nft 'add element inet causeway-policy remote4 { 10.77.0.0/16 : 0xb }'")
	<-events
	require.True(t, differs())
	cancel()
	for range events {
	}
}

// An agent that starts anew knows nothing of the table that is there: it writes it whole, and what
// is open loses nothing by that.
func TestStartedAnew(t *testing.T) {
	w := newWorld(t)
	w.serve(w.pa, 443, 5000)
	web := []Allow{{From: podsB, To: podsA, Proto: TCP, First: 443, Last: 443, Rule: "web"}, {From: podsB, To: podsA, Proto: UDP, First: 5000, Last: 5000, Rule: "web"}}
	w.allow(append(web, Allow{From: podsB, To: podA2, Proto: TCP, First: 1, Last: 9, Rule: "gone"})...)
	flows := []*steady{w.steady(w.pb, "tcp", "10.1.0.11:443"), w.steady(w.pb, "udp", "10.1.0.11:5000")}
	for range 50 {
		w.tableA = NewTable()
		w.allow(web...)
	}
	for _, f := range flows {
		f.end(t)
	}
	require.NotContains(t, w.a.Sh("nft list table inet causeway-policy"), "gone")
	require.Equal(t, refused, try(w.pb, "tcp", "10.1.0.12:5"))
	// One of another shape is made anew.
	w.a.Sh("nft delete table inet causeway-policy")
	w.a.Sh("nft 'add table inet causeway-policy; add set inet causeway-policy remote4 { type ipv6_addr; }; add chain inet causeway-policy in { type filter hook input priority 5; }'")
	w.tableA = NewTable()
	w.allow(web...)
	require.Equal(t, passed, try(w.pb, "tcp", "10.1.0.11:443"))
}
