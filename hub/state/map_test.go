package state

import (
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/protocol"
)

// checkMap holds a Map to the map of Go that has the same in it, in the order of less.
func checkMap[K comparable, V comparable](t *rapid.T, m Map[K, V], want map[K]V, compare func(a, b K) int, some K) {
	require.Equal(t, len(want), m.Len())
	require.Equal(t, len(want) == 0, m.IsZero())
	keys := slices.SortedFunc(maps.Keys(want), compare)
	require.Equal(t, len(keys), len(slices.Collect(m.Keys())))
	i := 0
	for k, v := range m.All() {
		require.Equal(t, keys[i], k)
		require.Equal(t, want[k], v)
		got, ok := m.Find(k)
		require.True(t, ok)
		require.Equal(t, v, got)
		i++
	}
	v, ok := want[some]
	got, found := m.Find(some)
	require.Equal(t, ok, found)
	require.Equal(t, ok, m.Has(some))
	require.Equal(t, v, got)
	require.Equal(t, v, m.Get(some))
	from, _ := slices.BinarySearchFunc(keys, some, compare)
	for k := range m.From(some) {
		require.Equal(t, keys[from], k)
		from++
	}
	require.Equal(t, len(keys), from)
	for range m.All() { // one may end early
		break
	}
}

// mapProperty changes copies of a Map at random, and maps of Go beside them: what is done to one copy is
// seen in no other.
func mapProperty[K comparable](t *testing.T, compare func(a, b K) int, key func(int) K) {
	rapid.Check(t, func(t *rapid.T) {
		got, want := make([]Map[K, int], 3), []map[K]int{{}, {}, {}}
		n := 0
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			at := rapid.IntRange(0, 2).Draw(t, "copy")
			// A node of the tree has at most 32 entries: three levels take some thousand.
			first, many, stride := rapid.IntRange(0, 3000).Draw(t, "first"), rapid.SampledFrom([]int{1, 2, 40, 1500}).Draw(t, "many"), rapid.SampledFrom([]int{1, 7, -1}).Draw(t, "stride")
			what := rapid.SampledFrom([]string{"set", "set", "delete", "copy"}).Draw(t, "what")
			if what == "copy" {
				to := (at + 1) % 3
				got[to], want[to] = got[at], maps.Clone(want[at])
			} else {
				for i := range many {
					k := key((first + i*stride + 10_000) % 10_000)
					if n++; what == "set" {
						got[at].Set(k, n)
						want[at][k] = n
					} else {
						got[at].Delete(k)
						delete(want[at], k)
					}
				}
			}
		}
		some := key(rapid.IntRange(0, 10_000).Draw(t, "some"))
		for i := range got {
			checkMap(t, got[i], want[i], compare, some)
		}
		b, err := json.Marshal(got[0])
		require.NoError(t, err)
		plain, err := json.Marshal(want[0])
		require.NoError(t, err)
		require.Equal(t, string(plain), string(b))
	})
}

func TestMapProperty(t *testing.T) {
	t.Run("numbers", func(t *testing.T) {
		mapProperty(t, func(a, b protocol.NodeNumber) int { return int(a) - int(b) }, func(i int) protocol.NodeNumber { return protocol.NodeNumber(i) })
	})
	t.Run("objects", func(t *testing.T) {
		mapProperty(t, CompareKeys, func(i int) ObjectKey { return ObjectKey{string(rune('a' + i%3)), string(rune('a' + i/3))} })
	})
}

// Routes are in the order in which they are shown, and a node's are together.
func TestMapOfRoutes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, want := New(), map[RouteKey]Route{}
		addr := func() netip.Addr {
			if rapid.Bool().Draw(t, "6") {
				return netip.AddrFrom16([16]byte{0xfd, 15: rapid.Byte().Draw(t, "byte")})
			}
			return netip.AddrFrom4([4]byte{10, rapid.Byte().Draw(t, "byte")})
		}
		for range rapid.IntRange(0, 200).Draw(t, "routes") {
			p, err := addr().Prefix(rapid.SampledFrom([]int{0, 8, 9, 15, 16, 32}).Draw(t, "bits"))
			require.NoError(t, err)
			k := RouteKey{protocol.NodeNumber(rapid.IntRange(1, 5).Draw(t, "node")), p}
			want[k] = Route{RouteKey: k}
			s.Routes.Set(k, want[k])
		}
		require.Equal(t, len(want), s.Routes.Len())
		all := slices.Collect(maps.Values(want))
		SortRoutes(all)
		for n := range protocol.NodeNumber(7) {
			var of []Route
			for _, r := range all {
				if r.Node == n {
					of = append(of, r)
				}
			}
			require.Equal(t, of, s.NodeRoutes(n))
		}
	})
}

// A state that was handed out stays what it was, whatever is decided on copies of it, and one that is changed in
// place comes to the same as a chain of copies, and as a snapshot.
func TestStateProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := &Draft{State: New(), Now: epoch0}
		require.NoError(t, d.Add(ClusterCreated{protocol.ClusterPublicKey{1}, 1, []netip.Prefix{protocol.DefaultOverlay4}}))
		var handed []*State
		var was []string
		text := func(s *State) string {
			b, err := encodeSnapshot(s, nil)
			require.NoError(t, err)
			return string(b)
		}
		var changes []Change
		chain := d.State.clone()
		chain.hash, d.hash = hashOf(nil), hashOf(nil)
		for i := range rapid.IntRange(1, 40).Draw(t, "steps") {
			cs := anyChanges(t, d.State, byte(i+1))
			next := &Draft{State: chain.clone(), Now: epoch0}
			before := text(chain)
			var err error
			for _, c := range cs {
				err = errors.Join(err, next.Add(c))
			}
			require.Equal(t, before, text(chain), "the state it was decided on")
			if err != nil {
				continue // and d is none the wiser
			}
			for _, c := range cs {
				require.NoError(t, d.Add(c))
			}
			changes = append(changes, cs[0])
			chain = next.State
			handed, was = append(handed, chain), append(was, text(chain))
		}
		require.Equal(t, text(d.State), text(chain))
		require.Empty(t, same(d.State, chain))
		for i, s := range handed {
			require.Equal(t, was[i], text(s), "%d: %s", i, changes[i].Describe())
		}
		again, _, err := decodeSnapshot([]byte(text(chain)))
		require.NoError(t, err)
		require.Empty(t, same(chain, again))
	})
}

// anyChanges draws a change, or those of a join, which s may refuse.
func anyChanges(t *rapid.T, s *State, fresh byte) []Change {
	number := protocol.NodeNumber(rapid.IntRange(1, 6).Draw(t, "number"))
	site := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "site")
	p := rapid.SampledFrom([]netip.Prefix{prefix("10.1.0.0/16"), prefix("10.1.2.0/24"), prefix("10.2.0.0/16")}).Draw(t, "prefix")
	spec, err := json.Marshal(protocol.SiteFields{Ranges: []netip.Prefix{p}, MaxAge: protocol.Forever})
	require.NoError(t, err)
	switch rapid.IntRange(0, 14).Draw(t, "change") {
	case 0, 1:
		return []Change{SiteCreated{site, nil}}
	case 2:
		return []Change{SiteRanges{site, []netip.Prefix{p}}}
	case 3:
		return []Change{SiteDeleted{site}}
	case 4, 5, 6:
		id, h := protocol.TokenID{fresh}, secretOf(fresh).Hash()
		return []Change{TokenCreated{ID: id, Hash: h[:], Site: site, Expires: epoch0.Add(time.Hour)}, TokenRedeemed{id, s.NextNumber},
			NodeJoined{Number: s.NextNumber, Name: string('a' + rune(number)), Site: site, WireGuardKey: key(fresh), IdentityKey: identity(fresh).Public(), Token: id}}
	case 7, 8:
		return []Change{RouteAnnounced{Node: number, Prefix: p, State: protocol.RouteApproved, By: ByToken}}
	case 9:
		return []Change{RouteDecided{number, p, protocol.RouteRejected, "x"}}
	case 10:
		return []Change{RouteWithdrawn{number, p}}
	case 11:
		return []Change{NodeGone{number, GoneLeft}}
	case 12:
		return []Change{ObjectPut{Kind: KindSite, Name: site, Shape: 1, Spec: spec}}
	case 13:
		return []Change{ObjectDeleted{KindSite, site}}
	}
	return []Change{NodeRenamed{number, string('a' + rune(fresh%8))}}
}
