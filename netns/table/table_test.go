package table

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"go4.org/netipx"

	"causeway/netns"
	"causeway/netns/internal/kernel"
	"causeway/netns/lab"
	"causeway/netns/netnstest"
)

var sh = netnstest.Sh

// run is a run of addresses with a number, as '10.0.0.0/24' or '10.0.0.1-10.0.0.9'.
func run(s string, v uint32) Element {
	if x, err := netip.ParsePrefix(s); err == nil {
		return Element{netipx.RangeOfPrefix(x), v}
	}
	return Element{netipx.MustParseIPRange(s), v}
}

// saddr loads the IPv4 source address.
func saddr() expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
}

// isIPv4 is 'meta nfproto ipv4', which nft has before an address and does not print.
func isIPv4() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{2}}}
}

func config(closed, class, closed6 []Element) Config {
	drop := append(isIPv4(), saddr(), &expr.Lookup{SourceRegister: 1, SetName: "closed"}, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
	mark := append(isIPv4(), saddr(), &expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: "class"}, &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})
	return Config{Kind: "test",
		Sets: []Set{{Name: "closed", Elements: closed}, {Name: "class", Map: true, Elements: class}, {Name: "closed6", IPv6: true, Elements: closed6}},
		Chains: []Chain{{Name: "in", Hook: nftables.ChainHookPrerouting, HookName: "prerouting", Priority: -170,
			Rules: []Rule{{"ip saddr @closed counter drop", drop}, {"meta mark set ip saddr map @class", mark}}}}}
}

func part(t *testing.T, c Config) *Table {
	t.Helper()
	p, err := New(c)
	require.NoError(t, err)
	return p
}

// world is a host with a plan that has a part, and one that applies it.
type world struct {
	*netns.Host
	t     *testing.T
	state string
	last  *Table
}

func newWorld(t *testing.T) *world {
	netnstest.Host(t)
	w := &world{t: t, state: t.TempDir()}
	w.Host = netns.NewHost(w.state, zerolog.Nop())
	t.Cleanup(func() {
		if w.last != nil {
			w.last.Close()
		}
	})
	return w
}

func plan(t *testing.T, parts ...netns.Part) netns.Plan {
	t.Helper()
	p, err := netns.NewPlan(netns.Config{Interface: "cw0", MTU: 1380, Mark: netns.DefaultMark, Table: netns.DefaultTable, Overlay: []netip.Addr{netip.MustParseAddr("198.18.0.2")}, Parts: parts})
	require.NoError(t, err)
	return p
}

func (w *world) apply(c Config) {
	w.t.Helper()
	w.last = part(w.t, c)
	require.NoError(w.t, w.Apply(context.Background(), plan(w.t, w.last)))
}

func (w *world) drift() []netns.Drift {
	w.t.Helper()
	d, err := w.Drift(context.Background(), netns.Kinds...)
	require.NoError(w.t, err)
	return d
}

// there is the table as nft has it, without what counts, and its elements as the kernel has them.
func there(t *testing.T) string { t.Helper(); return content(t, "causeway-test") }

// content is the table.
func content(t *testing.T, table string) string {
	t.Helper()
	return strings.Replace(sh(t, "nft -s -t list table inet "+table), "table inet "+table, "table", 1) + elements(t, table)
}

func elements(t *testing.T, table string) (out string) {
	t.Helper()
	c, err := nftables.New()
	require.NoError(t, err)
	sets, err := c.GetSets(&nftables.Table{Name: table, Family: nftables.TableFamilyINet})
	require.NoError(t, err)
	for _, s := range sets {
		l, err := c.GetSetElements(s)
		require.NoError(t, err)
		var lines []string
		for _, e := range l {
			if zero := len(strings.Trim(string(e.Key), "\x00")) == 0; zero && e.IntervalEnd {
				continue // with which nft begins a set
			}
			lines = append(lines, fmt.Sprintf("%s %x %v %x", s.Name, e.Key, e.IntervalEnd, e.Val))
		}
		slices.Sort(lines)
		out += strings.Join(lines, "\n") + "\n"
	}
	return out
}

var (
	closed = []Element{run("10.1.0.0/16", 0), run("10.2.0.1-10.2.0.9", 0), run("255.255.255.0/24", 0)}
	class  = []Element{run("10.3.0.0/24", 7), run("10.3.1.0/24", 8), run("10.4.0.0/16", 7)}
)

// A part of the plan is applied, compared, and mended like the plan's own kinds, whatever others do to it.
func TestPart(t *testing.T) {
	w := newWorld(t)
	w.apply(config(closed, class, []Element{run("fd00:1::/64", 0)}))
	require.Empty(t, w.drift())
	found, err := w.Found(context.Background(), plan(t, w.last).Config)
	require.NoError(t, err)
	require.Equal(t, plan(t, w.last).Lines(), found)
	made := there(t)

	// The lines are commands that make the same.
	sh(t, strings.ReplaceAll(strings.Join(w.last.Lines(), "\n"), "causeway-test", "other"))
	require.Equal(t, made, content(t, "other"))
	sh(t, "nft delete table inet other")
	require.Empty(t, w.drift(), "others' tables are no concern of it")

	watch, err := w.Watch(t.Context())
	require.NoError(t, err)
	for _, x := range []struct{ do, missing, extra string }{
		{"nft delete element inet causeway-test closed { 10.2.0.1-10.2.0.9 }", "nft 'add element inet causeway-test closed { 10.2.0.1-10.2.0.9 }'", ""},
		{"nft delete element inet causeway-test class { 10.3.1.0/24 }", "nft 'add element inet causeway-test class { 10.3.1.0/24 : 0x00000008 }'", ""},
		{"nft add element inet causeway-test closed { 10.9.0.7 }", "", "# element inet causeway-test closed { 10.9.0.7 }\n# element inet causeway-test closed { an end before 10.9.0.8 }"},
		{"nft 'delete element inet causeway-test class { 10.4.0.0/16 }; add element inet causeway-test class { 10.4.0.0/16 : 9 }'", "nft 'add element inet causeway-test class { 10.4.0.0/16 : 0x00000007 }'", "# element inet causeway-test class { 10.4.0.0 }"},
		{"nft flush set inet causeway-test closed6", "nft 'add element inet causeway-test closed6 { fd00:1::/64 }'", ""},
		{"nft delete table inet causeway-test", strings.Join(w.last.structure(), "\n"), ""},
		{"nft flush ruleset", strings.Join(w.last.structure(), "\n"), ""},
		{"nft insert rule inet causeway-test in accept", "", "# chains, rules or sets of nftables table causeway-test are not those that were put there"},
		{"nft flush chain inet causeway-test in", "", "# chains, rules or sets of nftables table causeway-test are not those that were put there"},
		{"nft 'add chain inet causeway-test in { policy drop; }'", "", "# chains, rules or sets of nftables table causeway-test are not those that were put there"},
		{"nft 'add table inet causeway-test { flags dormant; }'", "", "# chains, rules or sets of nftables table causeway-test are not those that were put there"},
	} {
		sh(t, x.do)
		var d []netns.Drift
		require.NoError(t, lab.Wait(t.Context(), "the kernel's word", func(context.Context) error {
			for _, c := range <-watch {
				if c.Kind == netns.Parts {
					return nil
				}
			}
			return fmt.Errorf("nothing of a part after %s", x.do)
		}))
		for _, y := range w.drift() {
			if y.Kind == netns.Parts {
				d = append(d, y)
			}
		}
		require.Len(t, d, 1, x.do)
		require.Equal(t, "causeway-test", d[0].Subject)
		require.Equal(t, x.missing, strings.Join(d[0].Missing, "\n"), x.do)
		require.Equal(t, x.extra, strings.Join(d[0].Extra, "\n"), x.do)
		require.NoError(t, w.Mend(context.Background(), d))
		require.Equal(t, made, there(t), x.do)
		require.NoError(t, w.Apply(context.Background(), w.Last())) // what 'flush ruleset' took beside it
		require.Empty(t, w.drift(), x.do)
	}
}

// What others undid is told of by the next apply, which changes the elements that differ and makes nothing anew; and leave takes
// the table away.
func TestNextPart(t *testing.T) {
	w := newWorld(t)
	before := sh(t, "nft -s list ruleset")
	w.apply(config(closed, class, nil))
	handles := func() string {
		h, err := kernel.NftHandles("causeway-test")
		require.NoError(t, err)
		return h
	}
	was := handles()
	sh(t, "nft delete element inet causeway-test closed { 10.1.0.0/16 }")
	c := config(closed, append(class[1:len(class):len(class)], run("10.5.0.0/16", 3)), nil)
	c.Sets[1].Elements[1].Value = 6
	w.apply(c)
	l := w.PutRight()
	require.Len(t, l, 1)
	require.Equal(t, []string{"nft 'add element inet causeway-test closed { 10.1.0.0/16 }'"}, l[0].Missing)
	require.Equal(t, was, handles())
	require.Empty(t, w.drift())
	now := there(t)
	w.Host = netns.NewHost(w.state, zerolog.Nop()) // a restart: nothing is known, and all is made anew
	require.NoError(t, w.last.Close())
	w.apply(c)
	require.NotEqual(t, was, handles())
	require.Equal(t, now, there(t))

	// Other rules are another table.
	c.Chains[0].Rules = c.Chains[0].Rules[:1]
	w.apply(c)
	require.NotContains(t, there(t), "meta mark set")
	require.Empty(t, w.drift())

	// A plan without it has none, and leave none of what a run before put there, whatever the record says.
	require.NoError(t, w.Apply(context.Background(), plan(t)))
	require.NotContains(t, sh(t, "nft list tables"), "causeway-test")
	w.apply(c)
	require.NoError(t, os.WriteFile(filepath.Join(w.state, "host.json"), []byte("{"), 0o600))
	require.NoError(t, os.RemoveAll(filepath.Join(w.state, "host.json~")))
	var log strings.Builder
	require.NoError(t, netns.NewHost(w.state, zerolog.New(&log)).Remove(context.Background(), plan(t).Config))
	require.Contains(t, log.String(), "the record of the host's settings is damaged")
	require.Equal(t, before, sh(t, "nft -s list ruleset"))
}

// What a part cannot do is told as its own, and takes nothing else with it.
func TestPartFails(t *testing.T) {
	w := newWorld(t)
	c := config(nil, nil, nil)
	c.Chains[0].Rules[0].Exprs = []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: "nobody"}}
	err := w.Apply(context.Background(), plan(t, part(t, c)))
	var f netns.Failures
	require.ErrorAs(t, err, &f)
	require.Len(t, f.Of(netns.Parts), 1)
	require.Len(t, f, 1)
	require.Contains(t, err.Error(), "parts: set nftables table causeway-test: ")
	require.Empty(t, w.drift())
	require.NotContains(t, sh(t, "nft list tables"), "causeway-test")
	for _, l := range [][]netns.Part{{part(t, Config{Kind: "docker"})}, {part(t, Config{Kind: "a b"})}, {part(t, Config{Kind: "x"}), part(t, Config{Kind: "x"})}} {
		_, err := netns.NewPlan(netns.Config{Interface: "cw0", MTU: 1380, Mark: netns.DefaultMark, Table: netns.DefaultTable, Overlay: []netip.Addr{netip.MustParseAddr("198.18.0.2")}, Parts: l})
		require.ErrorContains(t, err, "is no name for one part of the plan alone")
	}
	for _, s := range []Set{
		{Name: "s", Elements: []Element{run("10.0.0.0/8", 0), run("10.1.0.0/16", 0)}}, {Name: "s", Elements: []Element{run("fd00::/16", 0)}},
		{Name: "s", Elements: []Element{run("10.0.0.0/8", 1)}}, {Name: "s", Map: true, Elements: []Element{run("10.0.0.0/8", 1), run("10.255.255.255/32", 2)}},
	} {
		_, err := New(Config{Kind: "x", Sets: []Set{s}})
		require.Error(t, err, "%v", s)
	}
}

// Whatever is declared next, and whatever others did to elements meanwhile, is there afterwards as declared.
func TestElementsAsDeclared(t *testing.T) {
	w := newWorld(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	some := func(numbers bool) (out []Element) {
		for i := range 40 {
			if rnd.IntN(3) > 0 {
				continue
			}
			n := 1 + rnd.IntN(16)
			e := run(fmt.Sprintf("10.0.%d.0-10.0.%d.%d", i, i, n), 0)
			if n == 16 && i < 39 {
				e = run(fmt.Sprintf("10.0.%d.0-10.0.%d.255", i, i), 0) // the next one begins where it ends
			}
			if numbers {
				e.Value = 1 + uint32(rnd.IntN(2))
			}
			out = append(out, e)
		}
		return out
	}
	// declared are the elements as the kernel should have them.
	declared := func() string {
		out := ""
		for _, s := range w.last.Sets {
			var lines []string
			for _, e := range s.Elements {
				for _, x := range s.element(e) {
					lines = append(lines, fmt.Sprintf("%s %x %v %x", s.Name, x.Key, x.IntervalEnd, x.Val))
				}
			}
			slices.Sort(lines)
			out += strings.Join(lines, "\n") + "\n"
		}
		return out
	}
	remade := 0
	for range 60 {
		was := ""
		if w.last != nil {
			was = w.last.seen.handles
		}
		w.apply(config(some(false), some(true), nil))
		if w.last.seen.handles != was {
			remade++
		}
		require.Equal(t, declared(), elements(t, "causeway-test"))
		require.Empty(t, w.drift())
		script := ""
		for _, s := range w.last.Sets[:2] { // others take some, and put some there
			for i, e := range s.Elements {
				if rnd.IntN(6) == 0 {
					script += "delete " + command(w.last.elementLine(s, e))
				} else if i == 0 && rnd.IntN(2) == 0 {
					script += "add " + command(w.last.elementLine(s, run("10.1.0.0/24", 0)))
				}
			}
		}
		if script != "" {
			sh(t, "nft -f - <<'X'\n"+script+"X")
		}
		if rnd.IntN(2) == 0 {
			require.NoError(t, w.Mend(context.Background(), w.drift()))
			require.Equal(t, declared(), elements(t, "causeway-test"))
			require.Empty(t, w.drift())
		}
	}
	require.Equal(t, 1, remade, "elements are changed one by one")
}

// command is a line of Lines without 'nft add' and its quotes.
func command(l string) string {
	return strings.TrimSuffix(strings.TrimPrefix(l, "nft 'add "), "'") + "\n"
}

// TestPartAtScale tells what a part with 30,000 prefixes costs. Nothing of it is listed but where notifications were lost.
func TestPartAtScale(t *testing.T) {
	netnstest.Namespace(t)
	const n = 30_000
	elements := make([]Element, n)
	for i := range elements {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 10<<24|uint32(i)<<8)
		elements[i] = Element{netipx.RangeOfPrefix(netip.PrefixFrom(netip.AddrFrom4(a), 24)), uint32(i)}
	}
	timed := func(what string, f func()) {
		begun := time.Now()
		f()
		t.Logf("%-60s %7.1f ms", what, float64(time.Since(begun).Microseconds())/1000)
	}
	c := config(nil, elements, nil)
	next := func() Config {
		c.Sets[1].Elements = append([]Element(nil), elements...)
		return c
	}
	ctx := context.Background()
	var p, q *Table
	timed("made", func() { p = part(t, next()); require.NoError(t, p.Apply(ctx, nil)) })
	t.Cleanup(func() { p.Close() })
	drift := func(want int) {
		missing, extra, err := p.Drift(ctx)
		require.NoError(t, err)
		require.Len(t, append(missing, extra...), want)
	}
	timed("nothing happened", func() { drift(0) })
	elements[777].Value = 1 << 20
	timed("what is declared is sorted and checked", func() { q = part(t, next()) })
	timed("one element changed", func() { require.NoError(t, q.Apply(ctx, p)); p = q })
	timed("nothing happened but that", func() { drift(0) })
	sh(t, "nft add table inet other")
	timed("others have changed something", func() { drift(0) })
	sh(t, "nft delete element inet causeway-test class { 10.5.5.0/24 }")
	timed("others have taken an element", func() { drift(1) })
	timed("it is put back", func() { require.NoError(t, p.Apply(ctx, p)) })
	drift(0)
	require.False(t, p.seen.lost)
	sh(t, "nft delete element inet causeway-test class { 10.5.5.0/24 }")
	p.seen.lost = true
	timed("it was not heard what others did: listed", func() { drift(1) })
	timed("it is put back", func() { require.NoError(t, p.Apply(ctx, p)) })
	drift(0)
	sh(t, "nft flush map inet causeway-test class")
	timed("others have emptied the map", func() { drift(mostLines + 1) })
	timed("it is put back", func() { require.NoError(t, p.Apply(ctx, p)) })
	drift(0)
	require.Equal(t, 2*n, strings.Count(content(t, "causeway-test"), "\nclass "))
}
