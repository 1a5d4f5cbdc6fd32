package held

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func pfx(l ...string) (out []netip.Prefix) {
	for _, s := range l {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// shown is a book as text: closed ranges with the minutes since t0.
func shown(b Book) (out []string) {
	for _, r := range b.Ranges {
		s := r.Prefix.String()
		if !r.Closed.IsZero() {
			s += fmt.Sprintf(" closed %d", int(r.Closed.Sub(t0).Minutes()))
		}
		out = append(out, s)
	}
	return out
}

func TestFollow(t *testing.T) {
	type step struct {
		routes, own, letGo []netip.Prefix
		want               []string
	}
	for name, steps := range map[string][]step{
		"leaves and comes back": {
			{routes: pfx("10.1.0.0/24", "10.2.0.0/24"), want: []string{"10.1.0.0/24", "10.2.0.0/24"}},
			{routes: pfx("10.1.0.0/24"), want: []string{"10.1.0.0/24", "10.2.0.0/24 closed 1"}},
			{routes: pfx("10.1.0.0/24"), want: []string{"10.1.0.0/24", "10.2.0.0/24 closed 1"}},
			{want: []string{"10.1.0.0/24 closed 3", "10.2.0.0/24 closed 1"}},
			{routes: pfx("10.2.0.0/24"), want: []string{"10.1.0.0/24 closed 3", "10.2.0.0/24"}},
		},
		"a wider one of a peer's has it": {
			{routes: pfx("10.1.2.0/24"), want: []string{"10.1.2.0/24"}},
			{routes: pfx("10.1.0.0/16"), want: []string{"10.1.0.0/16"}},
			{want: []string{"10.1.0.0/16 closed 2"}},
		},
		"a part of it lives": {
			{routes: pfx("10.1.0.0/16"), want: []string{"10.1.0.0/16"}},
			{routes: pfx("10.1.2.0/24"), want: []string{"10.1.0.0/16 closed 1", "10.1.2.0/24"}},
			{want: []string{"10.1.0.0/16 closed 1", "10.1.2.0/24 closed 2"}},
		},
		"its halves live": {
			{routes: pfx("10.1.0.0/16"), want: []string{"10.1.0.0/16"}},
			{routes: pfx("10.1.0.0/17", "10.1.128.0/17"), want: []string{"10.1.0.0/17", "10.1.128.0/17"}},
			{routes: pfx("10.1.0.0/17"), want: []string{"10.1.0.0/17", "10.1.128.0/17 closed 2"}},
		},
		"the node's own now": {
			{routes: pfx("10.1.2.0/24"), want: []string{"10.1.2.0/24"}},
			{own: pfx("10.1.0.0/16"), want: nil},
		},
		"let go by the config": {
			{routes: pfx("10.1.0.0/24", "10.2.0.0/24"), letGo: pfx("10.1.0.0/16"), want: []string{"10.1.0.0/24", "10.2.0.0/24"}},
			{letGo: pfx("10.1.0.0/16"), want: []string{"10.2.0.0/24 closed 1"}},
		},
		"one in another, both gone": {
			{routes: pfx("10.0.0.0/8", "10.3.0.0/16"), want: []string{"10.0.0.0/8", "10.3.0.0/16"}},
			{want: []string{"10.0.0.0/8 closed 1", "10.3.0.0/16 closed 1"}},
		},
		"IPv6": {
			{routes: pfx("fd10:1::/64", "10.1.0.0/24"), want: []string{"10.1.0.0/24", "fd10:1::/64"}},
			{routes: pfx("fd10::/16"), want: []string{"10.1.0.0/24 closed 1", "fd10::/16"}},
		},
	} {
		var b Book
		for i, s := range steps {
			b = b.Follow(s.routes, s.own, s.letGo, t0.Add(time.Duration(i)*time.Minute))
			require.Equal(t, s.want, shown(b), "%s, step %d", name, i)
		}
	}
}

// Whatever comes and goes: what was ever routed is routed or closed, and never open,
// until it is let go; and no range is there twice.
func TestNothingOpens(t *testing.T) {
	prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(rapid.IntRange(0, 3).Draw(t, "b")), byte(rapid.IntRange(0, 3).Draw(t, "c")), 0}), rapid.IntRange(8, 26).Draw(t, "bits")).Masked()
	})
	rapid.Check(t, func(t *rapid.T) {
		var b Book
		var ever []netip.Prefix
		for i := range rapid.IntRange(1, 8).Draw(t, "netmaps") {
			routes := rapid.SliceOfNDistinct(prefix, 0, 6, rapid.ID).Draw(t, "routes")
			ever = append(ever, routes...)
			b = b.Follow(routes, nil, nil, t0.Add(time.Duration(i)*time.Minute))
			have := spans(b.Prefixes())
			for _, p := range ever {
				if !have.have(p) {
					t.Fatalf("%s is open: %v", p, shown(b))
				}
			}
			only := spans(ever)
			seen := map[netip.Prefix]bool{}
			for _, r := range b.Ranges {
				if seen[r.Prefix] || !only.have(r.Prefix) {
					t.Fatalf("%s is there twice, or was never routed: %v", r.Prefix, shown(b))
				}
				seen[r.Prefix] = true
			}
			text, err := b.Encode()
			if err != nil {
				t.Fatal(err)
			}
			again, err := Decode(text)
			if err != nil || !again.Equal(b) {
				t.Fatalf("%v: %v became %v", err, shown(b), shown(again))
			}
		}
	})
}

// A hub that has new ranges routed all the time fills the book, and nothing is
// forgotten for it: neighbours are put together first, then there is no room.
func TestBounds(t *testing.T) {
	var b Book
	var l []netip.Prefix
	for i := range 2 * mergeAbove {
		l = append(l, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	b = b.Follow(l, nil, nil, t0)
	b = b.Follow(nil, nil, nil, t0)
	require.Equal(t, []string{"10.0.0.0/13 closed 0"}, shown(b))
	require.Equal(t, MaxRanges-1, b.Room())
	l = l[:0]
	for i := range MaxClosed {
		l = append(l, netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 7), byte(i << 1), 0}), 24)) // no neighbours
	}
	b = b.Follow(l, nil, nil, t0)
	require.Len(t, b.Ranges, MaxClosed+1)
	require.Positive(t, b.Room())
	b = b.Follow(nil, nil, nil, t0)
	require.Zero(t, b.Room())
	text, err := b.Encode()
	require.NoError(t, err)
	require.Less(t, len(text), maxFile/2)
	full := Book{}
	for i := range MaxRanges {
		full.Ranges = append(full.Ranges, Range{netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, byte(i >> 8), byte(i), 0}), 128), t0})
	}
	text, err = full.Encode()
	require.NoError(t, err)
	require.Less(t, len(text), maxFile)
}

func TestRelease(t *testing.T) {
	b := Book{}.Follow(pfx("10.1.0.0/24", "10.2.0.0/16", "10.3.0.0/24", "10.3.1.0/24"), nil, nil, t0).Follow(pfx("10.1.0.0/24"), nil, nil, t0)
	for p, want := range map[string]string{
		"10.2.3.0/24": "10.2.3.0/24 is a part of 10.2.0.0/16, which is held closed as a whole; release that",
		"10.1.0.0/24": "10.1.0.0/24: nothing of it is held closed: a peer has it now",
		"10.1.0.0/25": "a peer has it now",
		"10.9.0.0/24": "10.9.0.0/24: nothing of it is held closed; see 'causeway-agent status'",
	} {
		same, out, err := b.Release(netip.MustParsePrefix(p))
		require.ErrorContains(t, err, want, p)
		require.Empty(t, out)
		require.True(t, same.Equal(b))
	}
	nested := Book{}.Follow(pfx("10.0.0.0/8", "10.3.0.0/16"), nil, nil, t0).Follow(nil, nil, nil, t0)
	_, _, err := nested.Release(netip.MustParsePrefix("10.3.0.0/16"))
	require.ErrorContains(t, err, "10.3.0.0/16 is a part of 10.0.0.0/8")
	nested, out, err := nested.Release(netip.MustParsePrefix("10.0.0.0/8"))
	require.NoError(t, err)
	require.Len(t, out, 2)
	require.Empty(t, nested.Ranges)
	next, out, err := b.Release(netip.MustParsePrefix("10.2.0.0/15"))
	require.NoError(t, err)
	require.Len(t, out, 3)
	require.Equal(t, []string{"10.1.0.0/24"}, shown(next))
}

func TestExceptions(t *testing.T) {
	resolver := Exception{netip.MustParseAddr("10.2.0.53"), "resolver"}
	other := Exception{netip.MustParseAddr("10.3.0.53"), "time server"}
	var b Book
	require.Equal(t, []Exception{resolver, other}, b.Except([]Exception{resolver, other}), "nothing is routed yet")
	b = b.Follow(pfx("10.2.0.0/16"), nil, nil, t0).Remember([]Exception{resolver, other})
	require.Equal(t, []Exception{resolver}, b.Exceptions)
	require.Equal(t, []Exception{resolver}, b.Except([]Exception{resolver}))
	require.Empty(t, b.Except(nil), "not used now")
	late := Exception{netip.MustParseAddr("10.2.0.54"), "resolver"}
	require.Empty(t, b.Except([]Exception{late}), "it was meant to go into the tunnel")
	b = b.Follow(nil, nil, nil, t0).Remember(nil)
	require.Equal(t, []Exception{resolver}, b.Except([]Exception{resolver, late}), "closed: the same")
	b, _, err := b.Release(netip.MustParsePrefix("10.2.0.0/16"))
	require.NoError(t, err)
	require.Empty(t, b.Follow(nil, nil, nil, t0).Remember(nil).Exceptions)
}

// A damaged file is told of; the copy stands in, and where that is damaged too,
// nothing is believed.
func TestDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "held.json")
	_, good, err := Load(path)
	require.NoError(t, err)
	require.False(t, good)
	b := Book{}.Follow(pfx("10.1.0.0/24"), nil, nil, t0).Follow(nil, nil, nil, t0)
	require.NoError(t, Save(path, b))
	got, good, err := Load(path)
	require.NoError(t, err)
	require.True(t, good)
	require.True(t, got.Equal(b))
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	for i := range whole[:len(whole)-1] { // any byte but the last line break
		bad := append([]byte{}, whole...)
		bad[i] ^= 1
		if other, err := Decode(bad); err == nil {
			require.True(t, other.Equal(b), "byte %d", i)
		}
		_, err := Decode(bad[:i])
		require.Error(t, err)
	}
	require.NoError(t, os.WriteFile(path, whole[:20], 0o600))
	got, good, err = Load(path)
	require.ErrorContains(t, err, "damaged")
	require.True(t, good)
	require.True(t, got.Equal(b), "the copy")
	require.NoError(t, os.WriteFile(Copy(path), nil, 0o600))
	_, good, err = Load(path)
	require.Error(t, err)
	require.False(t, good)
	require.NoError(t, Save(path, b))
	require.NoError(t, Remove(path))
	l, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Empty(t, l)
}

// FuzzDecode: the state directory belongs to the agent's user, and a disk may bring back
// anything. What is read keeps the rules of a book, and is written the same.
func FuzzDecode(f *testing.F) {
	b := Book{}.Follow(pfx("10.1.0.0/24", "fd10::/64"), nil, nil, t0).Remember([]Exception{{netip.MustParseAddr("10.1.0.53"), "resolver"}}).Follow(nil, nil, nil, t0)
	text, err := b.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"v":1,"sum":"","book":{"ranges":[{"prefix":"0.0.0.0/0"}]}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := Decode(in)
		if err != nil {
			return
		}
		text, err := b.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(text)
		if err != nil || !again.Equal(b) {
			t.Fatalf("%v: %+v became %+v", err, b, again)
		}
	})
}

// What is put together stays what a route may be: a quarter of all addresses is none.
func TestMergedRangesAreRoutes(t *testing.T) {
	live := pfx("2000::/3", "4000::/3", "6000::/3")
	for i := range mergeAbove {
		live = append(live, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	b := Book{}.Follow(live, nil, nil, t0).Follow(nil, nil, nil, t0)
	require.Less(t, len(b.Ranges), 10)
	require.Subset(t, b.Prefixes(), live[:3])
	text, err := b.Encode()
	require.NoError(t, err)
	read, err := Decode(text)
	require.NoError(t, err)
	require.True(t, b.Equal(read))
}
