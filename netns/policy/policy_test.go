package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// spansOf are spans as text.
func spansOf(l []span) (out []string) {
	for _, s := range l {
		out = append(out, fmt.Sprintf("%s-%s %d", s.from, s.to, s.class))
	}
	return out
}

func TestFlatten(t *testing.T) {
	l, err := members("test", classes("10.0.0.0/8", Class(1), "10.1.0.0/16", Class(2), "10.1.0.0/24", Class(3), "10.1.255.255/32", Class(4), "11.0.0.0/8", Class(5), "fd10::/64", Class(6)))
	require.NoError(t, err)
	require.Equal(t, []string{"10.0.0.0-10.0.255.255 1", "10.1.0.0-10.1.0.255 3", "10.1.1.0-10.1.255.254 2", "10.1.255.255-10.1.255.255 4",
		"10.2.0.0-10.255.255.255 1", "11.0.0.0-11.255.255.255 5"}, spansOf(flatten(l, false)))
	require.Equal(t, []string{"fd10::-fd10::ffff:ffff:ffff:ffff 6"}, spansOf(flatten(l, true)))
}

// For any members and rules, what the sets and Opens say of a flow is what the config says of it, read slowly.
func TestCompileIsOpens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		class := rapid.Custom(func(t *rapid.T) Class { return Class(rapid.IntRange(1, 4).Draw(t, "class")) })
		prefix := func(net byte) *rapid.Generator[Member] {
			return rapid.Custom(func(t *rapid.T) Member {
				a := netip.AddrFrom4([4]byte{10, net, rapid.ByteRange(0, 1).Draw(t, "c"), rapid.ByteRange(0, 7).Draw(t, "d")})
				return Member{netip.PrefixFrom(a, rapid.IntRange(16, 32).Draw(t, "bits")), class.Draw(t, "of")}
			})
		}
		c := Config{Interface: "cw0", Local: rapid.SliceOfN(prefix(1), 0, 6).Draw(t, "local"), Remote: rapid.SliceOfN(prefix(2), 0, 6).Draw(t, "remote")}
		c.Allows = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Allow {
			a := Allow{From: class.Draw(t, "from"), To: class.Draw(t, "to"), Proto: rapid.SampledFrom([]Proto{Any, ICMP, TCP, UDP}).Draw(t, "proto"), Rule: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "rule"), Arrives: rapid.Bool().Draw(t, "arrives")}
			if a.Proto == TCP || a.Proto == UDP {
				a.First = rapid.Uint16Range(0, 8).Draw(t, "first")
				if a.First > 0 {
					a.Last = rapid.Uint16Range(a.First, 9).Draw(t, "last")
				}
			}
			return a
		}), 0, 8).Draw(t, "allows")
		n, err := c.normal()
		if err != nil {
			require.Contains(t, err.Error(), "of two classes")
			return
		}
		part, err := NewPart(c)
		require.NoError(t, err)
		got := compile(n)
		for k, l := range got.lists {
			for i, a := range l {
				for _, b := range l[:i] {
					apart := a.protoLast < b.protoFirst || b.protoLast < a.protoFirst || a.last < b.first || b.last < a.first
					require.True(t, apart, "%q: %v and %v overlap", k, a, b)
				}
			}
		}
		find := func(i int, a netip.Addr) Class {
			for _, s := range got.spans[i] {
				if !a.Less(s.from) && !s.to.Less(a) {
					return s.class
				}
			}
			return 0
		}
		for range 20 {
			here := netip.AddrFrom4([4]byte{10, 1, rapid.ByteRange(0, 1).Draw(t, "c"), rapid.ByteRange(0, 7).Draw(t, "d")})
			there := netip.AddrFrom4([4]byte{10, 2, rapid.ByteRange(0, 1).Draw(t, "c"), rapid.ByteRange(0, 7).Draw(t, "d")})
			proto := rapid.SampledFrom([]Proto{TCP, UDP, ICMP, 50}).Draw(t, "proto")
			port := rapid.Uint16Range(0, 10).Draw(t, "port")
			from, to, p, pairs := here, there, pair{find(2, here), find(0, there)}, got.begins
			if rapid.Bool().Draw(t, "there begins") {
				from, to, p, pairs = there, here, pair{find(0, there), find(2, here)}, got.arrives
			}
			rule, open := n.slowly(from, to, proto, port)
			asked, is := part.Opens(from, to, proto, port)
			require.Equal(t, open, is, "%s to %s %d/%d", from, to, proto, port)
			require.Equal(t, rule, asked)
			var items []item
			if p.from != 0 && p.to != 0 {
				items = got.lists[pairs[p]]
			}
			k := slices.IndexFunc(items, func(x item) bool {
				return x.protoFirst <= proto && proto <= x.protoLast && x.first <= port && port <= x.last
			})
			require.Equal(t, open, k >= 0, "%s to %s %d/%d", from, to, proto, port)
			if open {
				require.Equal(t, rule, items[k].rule)
			}
		}
	})
}

func TestRefused(t *testing.T) {
	good := func() Config {
		return Config{Interface: "cw0", Local: classes("10.1.0.0/24", Class(1)), Remote: classes("10.2.0.0/24", Class(2)), Allows: []Allow{{From: 1, To: 2, Proto: TCP, First: 1, Last: 2, Rule: "x"}}}
	}
	_, err := good().normal()
	require.NoError(t, err)
	for want, spoil := range map[string]func(*Config){
		"interface name":            func(c *Config) { c.Interface = "" },
		"of two classes":            func(c *Config) { c.Local = append(c.Local, Member{c.Local[0].Prefix, 7}) },
		"class 0 is not between":    func(c *Config) { c.Remote[0].Class = 0 },
		"class 2147483648":          func(c *Config) { c.Remote[0].Class = MaxClass + 1 },
		"remote prefix 0.0.0.0/0":   func(c *Config) { c.Remote[0].Prefix = netip.MustParsePrefix("0.0.0.0/0") },
		"without a class":           func(c *Config) { c.Allows[0].To = 0 },
		"protocol 47 is none":       func(c *Config) { c.Allows[0].Proto = 47 },
		"ports 3 to 2":              func(c *Config) { c.Allows[0].First = 3 },
		"ports 0 to 2":              func(c *Config) { c.Allows[0].First = 0 },
		"ports without tcp or udp":  func(c *Config) { c.Allows[0].Proto = ICMP },
		"a name has 1 to 127 bytes": func(c *Config) { c.Allows[0].Rule = strings.Repeat("a", MaxRule+1) },
		"a name has letters":        func(c *Config) { c.Allows[0].Rule = "a b" },
		"no plain address":          func(c *Config) { c.Own = []netip.Addr{{}} },
		"overlay range":             func(c *Config) { c.Overlay = []netip.Prefix{netip.MustParsePrefix("::/0")} },
	} {
		c := good()
		spoil(&c)
		_, err := c.normal()
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "\n")
	}
}

// Why ends were not told is known until they are, but for a right that the agent is known not to have.
func TestUntold(t *testing.T) {
	p, err := NewPart(Config{Interface: "cw0"})
	require.NoError(t, err)
	require.NoError(t, p.Untold(), "never applied")
	p.known = &known{table: NewTable()}
	for _, x := range []struct{ err, want error }{{unix.ENOBUFS, unix.ENOBUFS}, {fmt.Errorf("open a raw socket: %w", unix.EPERM), nil}, {unix.ENOBUFS, unix.ENOBUFS}, {nil, nil}} {
		p.known.table.tried(x.err)
		require.Equal(t, x.want, p.Untold())
	}
}

// classOf is the class of an address among sorted members, 0: none.
func classOf(l []Member, a netip.Addr) (c Class) {
	bits := -1
	for _, m := range l {
		if m.Prefix.Contains(a) && m.Prefix.Bits() > bits {
			c, bits = m.Class, m.Prefix.Bits()
		}
	}
	return c
}

// slowly is Part.Opens, read off the config.
func (c Config) slowly(from, to netip.Addr, proto Proto, port uint16) (string, bool) {
	if proto == icmp6 {
		proto = ICMP
	}
	f, t := classOf(c.Local, from), classOf(c.Remote, to)
	arrives := f == 0 || t == 0
	if arrives {
		f, t = classOf(c.Remote, from), classOf(c.Local, to)
	}
	name, found := "", false
	for _, a := range c.Allows {
		if f != 0 && a.From == f && a.To == t && (arrives || !a.Arrives) && (a.Proto == Any || a.Proto == proto && (a.Last == 0 || a.First <= port && port <= a.Last)) {
			if !found || a.Rule < name {
				name, found = a.Rule, true
			}
		}
	}
	return name, found
}
