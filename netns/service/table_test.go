package service

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
	"causeway/netns/lab"
	"causeway/netns/netnstest"
)

// there is what the kernel has of services and dead backends.
func there(t *testing.T, b *Table) (out []string) {
	t.Helper()
	c, err := nftables.New()
	require.NoError(t, err)
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: TableName}
	sets, err := c.GetSets(table)
	require.NoError(t, err)
	for _, s := range sets {
		require.True(t, strings.HasSuffix(s.Name, fmt.Sprintf("-%d", b.have.epoch)), "%s is left over", s.Name)
		l, err := c.GetSetElements(s)
		require.NoError(t, err)
		name, _, _ := strings.Cut(s.Name, "-")
		for _, e := range l {
			out = append(out, fmt.Sprintf("%s %x %x %x %v", name, e.Key, e.KeyEnd, e.Val, e.IntervalEnd))
		}
	}
	slices.Sort(out)
	return out
}

// settled is there when the kernel has its hash tables in order: while it makes one larger, a list may leave out some and have others twice.
func settled(t *testing.T, b *Table) (out []string) {
	t.Helper()
	for again := 0; again < 2; again++ {
		kernel.PacketsPassed()
		l := there(t, b)
		if !slices.Equal(l, out) {
			again = 0
		}
		out = l
	}
	return out
}

// Whatever is written after whatever else, in parts or whole: the kernel has the same as if it had been written at once.
func TestWritten(t *testing.T) {
	netnstest.Namespace(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	addr := func(v6 bool, net byte) netip.Addr {
		if v6 {
			return netip.AddrFrom16([16]byte{0xfd, net, 15: byte(1 + rnd.IntN(4))})
		}
		return netip.AddrFrom4([4]byte{10, net, 0, byte(1 + rnd.IntN(4))})
	}
	random := func() Config {
		c := Config{Interface: "cw0", Range: prefixesOf("10.9.0.0/24", "fd09::/64")}
		if rnd.IntN(3) == 0 {
			c.Interface = "cw1"
		}
		all := prefixesOf("10.1.0.0/24", "10.1.1.0/24", "10.1.0.0/16", "10.5.0.0/24", "fd01::/64", "fd01::/48", "fd05::/64", "0.0.0.0/1")
		for _, p := range all[:7] {
			if rnd.IntN(2) == 0 {
				c.Local = append(c.Local, p)
			}
		}
		for range rnd.IntN(3) {
			c.Own = append(c.Own, addr(rnd.IntN(2) == 0, 8))
		}
		seen := map[key]bool{}
		for range rnd.IntN(12) {
			v6 := rnd.IntN(2) == 0
			s := Service{addr(v6, 9), []uint8{tcp, udp}[rnd.IntN(2)], uint16(1 + rnd.IntN(2)), rnd.IntN(2) == 0, nil, nil}
			if seen[s.key()] {
				continue
			}
			seen[s.key()] = true
			for range []int{0, 64, 256}[rnd.IntN(3)] {
				s.Slots = append(s.Slots, netip.AddrPortFrom(addr(v6, 2), uint16(80+rnd.IntN(2))))
			}
			c.Services = append(c.Services, s)
		}
		for range rnd.IntN(4) {
			c.Dead = append(c.Dead, Backend{tcp, netip.AddrPortFrom(addr(rnd.IntN(2) == 0, 2), 80)})
		}
		return c
	}
	b := NewTable()
	for i := range 60 {
		c := random()
		require.NoError(t, b.Set(c))
		if rnd.IntN(4) == 0 {
			d := random()
			c.Services, c.Dead = d.Services, d.Dead
			require.NoError(t, b.Switch(c.Services, c.Dead))
		}
		got := settled(t, b)
		fresh := NewTable()
		require.NoError(t, fresh.Set(c))
		require.Equal(t, settled(t, fresh), got, "round %d", i)
		b.have.epoch = fresh.have.epoch // it wrote over it
		normal, err := NewPart(Config{Interface: c.Interface, Range: c.Range, Own: c.Own, Local: c.Local}, nil)
		require.NoError(t, err)
		require.Equal(t, normal.host, *b.host)
		require.True(t, reflect.DeepEqual(fresh.Config(), b.Config()))
		if rnd.IntN(5) == 0 {
			netnstest.Sh(t, "nft delete table inet causeway-service") // and nobody listens: the next change finds it gone
		}
	}
}

// What others do to the table is seen without reading its elements, and Apply puts right what the last Switch said, while what is open goes on.
func TestDrift(t *testing.T) {
	w := newWorld(t)
	w.serve("a", "b")
	base := w.config
	var part *Part
	apply := func() {
		t.Helper()
		next, err := NewPart(base, w.table)
		require.NoError(t, err)
		w.on(func() error {
			if part == nil {
				return next.Apply(t.Context(), nil)
			}
			return next.Apply(t.Context(), part)
		})
		part = next
	}
	require.NoError(t, w.table.Switch(services(64, "a"), nil)) // before anybody said what the host is
	apply()
	t.Cleanup(func() { part.Close() })
	w.on(func() error { return w.table.Switch(services(64, "b"), backends("a")) })
	drift := func() (d bool) {
		w.on(func() error {
			missing, extra, err := part.Drift(t.Context())
			d = len(missing)+len(extra) > 0
			return err
		})
		return d
	}
	list := func() string {
		var out []string
		for line := range strings.Lines(w.n.Sh("nft -s list table inet causeway-service | sed 's/-[0-9]* / /; s/-[0-9]*$//; s/seed.*//'")) {
			out = append(out, strings.TrimSpace(line))
		}
		slices.Sort(out)
		return strings.Join(out, "\n")
	}
	require.False(t, drift())
	for range 20 { // quick changes of our own, and others' elsewhere
		w.on(func() error { return w.table.Switch(services(64, "a"), nil) })
		w.n.Sh("nft 'add table inet other; delete table inet other'")
		w.on(func() error { return w.table.Switch(services(64, "b"), backends("a")) })
	}
	require.False(t, drift())
	good := list()
	open := []*flow{w.open("pc", false, "idle"), w.open("lan", true, "idle"), w.open("n", false, "idle")}
	for _, c := range []string{
		"delete table inet causeway-service",
		"flush ruleset",
		"flush chain inet causeway-service forward",
		"insert rule inet causeway-service pre accept",
		"flush map inet causeway-service spread64-v4-EPOCH",
		"add element inet causeway-service dead4-EPOCH { 10.3.0.11 . tcp . 8080 }",
		"add element inet causeway-service same4-EPOCH { 10.77.0.0/16 . 10.77.0.0/16 }",
		"add chain inet causeway-service mine { type filter hook forward priority 0; policy drop; }",
		"add set inet causeway-service mine { type ipv4_addr; }",
		"chain inet causeway-service forward { policy drop; }",
		"add table inet causeway-service { flags dormant; }",
	} {
		w.n.Sh("nft '" + strings.ReplaceAll(c, "EPOCH", fmt.Sprint(w.table.have.epoch)) + "'")
		start := time.Now()
		require.NoError(t, lab.Wait(within(t), c, func(context.Context) error {
			if !drift() {
				return errors.New("not seen")
			}
			return nil
		}))
		apply()
		took := time.Since(start)
		require.Equal(t, good, list(), c)
		name, _, err := ask(w.pc, "tcp", at(false, 80))
		require.NoError(t, err, c)
		require.Equal(t, "b", name)
		for _, f := range open {
			_, _, err := answer(f.conn)
			require.NoError(t, err, "%s: %s", c, f.what)
		}
		require.False(t, drift(), c)
		t.Logf("%s: back after %s", c, took.Round(10*time.Microsecond))
	}
	// Another's flush, and a switch before anybody looked.
	w.n.Sh("nft flush ruleset")
	w.on(func() error { return w.table.Switch(services(64, "a"), nil) })
	name, _, err := ask(w.pc, "tcp", at(false, 80))
	require.NoError(t, err)
	require.Equal(t, "a", name)
	// A netmap that says more of the host says nothing of services.
	base.Local = append(base.Local, netip.MustParsePrefix("172.16.9.0/24"))
	apply()
	name, seen, err := ask(w.n, "tcp", at(false, 80))
	require.NoError(t, err)
	require.Equal(t, []string{"a", "198.18.0.1"}, []string{name, seen})
	// Nothing is written once the part is closed, but the next one knows what was said.
	require.NoError(t, part.Close())
	w.on(func() error {
		if err := kernel.DeleteTable(TableName); err != nil {
			return err
		}
		return w.table.Switch(services(64, "b"), nil)
	})
	require.Empty(t, w.n.Sh("nft list tables | grep service || :"))
	apply()
	name, _, err = ask(w.pc, "tcp", at(false, 80))
	require.NoError(t, err)
	require.Equal(t, "b", name)
	require.False(t, drift())
}

// Others flush all rules: until the table is back what is open goes on, whatever it does, and what begins meanwhile waits for it.
func TestFlushed(t *testing.T) {
	lab.Counts(t)
	w := newWorld(t)
	w.serve("a", "b")
	base := w.config
	part, err := NewPart(base, w.table)
	require.NoError(t, err)
	w.on(func() error { return errors.Join(part.Apply(t.Context(), nil), w.table.Switch(services(64, "a"), nil)) })
	t.Cleanup(func() { require.NoError(t, part.Close()) })
	var flows []*flow
	for _, from := range []string{"pc", "lan", "far", "n"} {
		for _, v6 := range []bool{false, true} {
			for _, how := range []string{"talks", "idle"} {
				f := w.open(from, v6, how)
				f.goes()
				flows = append(flows, f)
			}
		}
	}
	w.r.Sh("ip route add blackhole 198.19.0.0/16; ip -6 route add blackhole fd63:7761:7900::8:0/112") // as the engine, which has no peer for them
	w.n.Sh("nft flush ruleset")
	require.Equal(t, "table inet causeway-hooks\n", w.n.Sh("nft list tables"))
	var begun sync.WaitGroup
	for _, from := range []string{"pc", "lan", "n"} {
		begun.Go(func() {
			name, _, err := ask(w.host(from), "tcp", at(false, 80))
			if err != nil || name != "a" {
				t.Errorf("%s: %q: %v", from, name, err)
			}
		})
	}
	require.NoError(t, lab.Wait(within(t), "connections that were begun", func(context.Context) error {
		if n := strings.Count(w.n.Sh("conntrack -L -d "+vip4+" 2>/dev/null"), "SYN_SENT"); n != 3 {
			return fmt.Errorf("%d", n)
		}
		return nil
	}))
	w.on(func() error { return part.Apply(t.Context(), part) })
	begun.Wait()
	for _, f := range flows {
		select {
		case <-f.done:
			t.Errorf("%s: %v", f.what, f.err)
		default:
		}
	}
	require.NoError(t, part.Close())
	require.Equal(t, "table inet causeway-service\n", w.n.Sh("nft list tables"))
}

// An agent that is gone leaves all as it is. One that starts anew writes the table whole, and neither what is open nor what begins
// meanwhile loses anything by that.
func TestStartedAnew(t *testing.T) {
	lab.Counts(t)
	w := newWorld(t)
	w.serve("a", "b")
	w.set(services(64, "a", "b"))
	w.config.Services = nil
	flows := []*flow{w.open("pc", false, "idle"), w.open("lan", true, "idle"), w.open("n", false, "idle"), w.open("far", true, "idle")}
	stop := make(chan struct{})
	var all sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	begun := 0
	for _, from := range []string{"pc", "lan", "n"} {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				_, _, err := ask(w.host(from), "tcp", at(from == "lan", 80))
				mu.Lock()
				begun++
				if err != nil {
					failed = append(failed, fmt.Errorf("from %s: %w", from, err))
				}
				mu.Unlock()
			}
		})
	}
	n := 15
	if soak() {
		n = 100
	}
	for range n {
		w.table = NewTable()
		part, err := NewPart(w.config, w.table)
		require.NoError(t, err)
		w.on(func() error { return part.Apply(t.Context(), nil) })
		name, _, err := ask(w.pc, "tcp", at(false, 80)) // which finds what was there
		require.NoError(t, err)
		require.Contains(t, []string{"a", "b"}, name)
		w.on(func() error {
			missing, extra, err := part.Drift(t.Context())
			require.Empty(t, append(missing, extra...))
			return errors.Join(err, w.table.Switch(services(64, "a", "b"), nil), part.Close())
		})
	}
	for i := range n { // and of the host alone
		w.config.Local = append(w.config.Local[:4:4], netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(i), 0}), 24))
		w.set(services(64, "a", "b"))
	}
	for range n { // and of slots
		w.set(services(64, "b", "a"))
		w.set(services(256, "a", "b"))
		w.set(services(64, "a", "b"))
	}
	close(stop)
	all.Wait()
	require.Empty(t, failed)
	for _, f := range flows {
		_, _, err := answer(f.conn)
		require.NoError(t, err, f.what)
	}
	t.Logf("%d connections begun meanwhile, none failed", begun)
	// One of another shape is made anew.
	w.n.Sh("nft delete table inet causeway-service; nft 'add table inet causeway-service; add chain inet causeway-service pre { type filter hook input priority 5; }; add set inet causeway-service range4-7 { type ipv6_addr; }'")
	w.table = NewTable()
	w.set(services(64, "a"))
	name, _, err := ask(w.pc, "tcp", at(false, 80))
	require.NoError(t, err)
	require.Equal(t, "a", name)
}

// The agent's switching and the host's applying go on at once.
func TestConcurrent(t *testing.T) {
	w := newWorld(t)
	w.serve("a", "b")
	part, err := NewPart(w.config, w.table)
	require.NoError(t, err)
	w.on(func() error { return part.Apply(t.Context(), nil) })
	t.Cleanup(func() { part.Close() })
	var all sync.WaitGroup
	for k := range 3 {
		all.Go(func() {
			for i := range 20 {
				require.NoError(t, w.n.Do(func() error {
					switch k {
					case 0:
						return w.table.Switch(services(64, []string{"a", "b"}[i%2]), backends([]string{"b", "a"}[i%2]))
					case 1:
						c := w.config
						c.Local = c.Local[:i%4]
						p, err := NewPart(c, w.table)
						if err == nil {
							err = p.Apply(t.Context(), part)
						}
						if err == nil {
							_, _, err = p.Drift(t.Context())
						}
						return err
					}
					_, err1 := w.table.Release(t.Context(), backends("a"))
					_, err2 := w.table.Prod(t.Context(), backends("a"))
					_, err3 := w.table.Flows(t.Context())
					return errors.Join(err1, err2, err3)
				}))
			}
		})
	}
	all.Wait()
	w.on(func() error { return w.table.Switch(services(64, "b"), nil) })
	name, _, err := ask(w.lan, "tcp", at(false, 80))
	require.NoError(t, err)
	require.Equal(t, "b", name)
}

// many are n services of 64 slots, each with backends of its own: e of them, every second at site 0.
func many(n, e int) (out []Service) {
	for i := range n {
		s := Service{netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)}), tcp, 80, false, make([]netip.AddrPort, 64), nil}
		for k := range s.Slots {
			x := i*e + k%e
			s.Slots[k] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(x>>16) | byte(k%2)<<7, byte(x >> 8), byte(x)}), 8080)
		}
		out = append(out, s)
	}
	return out
}

// without are services without site 0.
func without(l []Service) (out []Service) {
	for _, s := range l {
		x := slices.Clone(s.Slots)
		for k := range x {
			if k%2 == 0 {
				x[k] = x[k+1]
			}
		}
		s.Slots = x
		out = append(out, s)
	}
	return out
}

// 10,000 services of 50 backends each: cold, started anew, one changed, and a site with backends of 1,000 of them dead.
func BenchmarkSet(b *testing.B) {
	l := lab.New(b)
	h := l.Host("h")
	c := Config{Interface: "cw0", Range: prefixesOf("198.19.0.0/16")}
	for _, n := range []int{1000, 10_000} {
		c.Services = many(n, 50)
		gone := slices.Clone(c.Services)
		copy(gone, without(c.Services[:1000]))
		var dead []Backend
		for _, s := range c.Services[:1000] {
			for k := 0; k < 50; k += 2 {
				dead = append(dead, Backend{tcp, s.Slots[k]})
			}
		}
		t := NewTable()
		set := func(services []Service, dead []Backend) {
			c := c
			c.Services, c.Dead = services, dead
			require.NoError(b, h.Do(func() error { return t.Set(c) }))
		}
		ctx, cancel := context.WithCancel(b.Context())
		require.NoError(b, h.Do(func() error { _, err := t.Watch(ctx); return err }))
		b.Run(fmt.Sprintf("cold-%d", n), func(b *testing.B) {
			defer processor(b)()
			runtime.GC()
			before, kernelBefore := rss(), kernelMemory()
			for range b.N {
				b.StopTimer()
				require.NoError(b, h.Do(func() error { kernel.DeleteTable(TableName); return nil }))
				t.have = nil
				b.StartTimer()
				set(c.Services, nil)
			}
			b.ReportMetric(float64(rss()-before)/(1<<20), "more-rss-MB") // at the most
			b.ReportMetric(float64(kernelMemory()-kernelBefore)/(1<<20), "kernel-MB")
		})
		b.Run(fmt.Sprintf("anew-%d", n), func(b *testing.B) {
			defer processor(b)()
			for range b.N {
				t.have = nil
				set(c.Services, nil)
			}
		})
		b.Run(fmt.Sprintf("one-%d", n), func(b *testing.B) {
			defer processor(b)()
			for i := range b.N {
				x := slices.Clone(c.Services)
				if i%2 == 0 {
					x[n/2].Slots = gone[0].Slots
				}
				set(x, nil)
			}
		})
		b.Run(fmt.Sprintf("site-%d", n), func(b *testing.B) {
			defer processor(b)()
			for i := range b.N {
				if i%2 == 0 {
					set(gone, dead)
				} else {
					set(c.Services, nil)
				}
			}
		})
		cancel()
	}
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

// rss is the most memory that this process had, in bytes.
func rss() (n int64) {
	b, _ := os.ReadFile("/proc/self/status")
	if _, after, ok := strings.Cut(string(b), "VmHWM:"); ok {
		fmt.Sscanf(after, "%d", &n)
	}
	return n << 10
}

// kernelMemory is what the kernel has for itself, all of the machine's, in bytes.
func kernelMemory() (n int64) {
	b, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(b)) {
		var kb int64
		name, value, _ := strings.Cut(line, ":")
		if fmt.Sscanf(value, "%d", &kb); slices.Contains([]string{"Slab", "VmallocUsed", "Percpu"}, name) {
			n += kb << 10
		}
	}
	return n
}
