package state

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// same compares states, their inner tables included.
func same(a, b *State) string {
	return cmp.Diff(a, b, cmp.Transformer("plain", func(m interface{ plain() any }) any { return m.plain() }), cmp.Exporter(func(reflect.Type) bool { return true }), cmpopts.EquateEmpty(), cmpopts.IgnoreTypes((*newest)(nil), []Thing(nil)),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) }))
}

// full fills v with something that is not its zero value, so that no field of a state, those of later included,
// can be forgotten in a snapshot.
func full(v reflect.Value, n *int) {
	*n++
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = time.Unix(int64(1e9+*n), 0).UTC()
		return
	case *netip.Prefix:
		*x = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(*n), 0, 0}), 16)
		return
	case *protocol.RouteState:
		*x = protocol.RouteApproved
		return
	case *json.RawMessage:
		*x = json.RawMessage(fmt.Sprintf(`{"n":%d}`, *n))
		return
	case *ObjectKey:
		*x = ObjectKey{"kind", fmt.Sprintf("name-%d", *n)}
		return
	}
	if set := v.Addr().MethodByName("Set"); set.IsValid() && set.Type().NumIn() == 2 { // a Map
		for range 2 {
			k, e := reflect.New(set.Type().In(0)).Elem(), reflect.New(set.Type().In(1)).Elem()
			full(k, n)
			full(e, n)
			set.Call([]reflect.Value{k, e})
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				full(v.Field(i), n)
			}
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		full(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		full(v.Index(0), n)
		full(v.Index(1), n)
	case reflect.Array:
		for i := range v.Len() {
			full(v.Index(i), n)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range 2 {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			full(k, n)
			full(e, n)
			v.SetMapIndex(k, e)
		}
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64, reflect.Int32:
		v.SetInt(int64(*n))
	case reflect.Uint8:
		v.SetUint(uint64(*n % 251))
	case reflect.Uint, reflect.Uint64, reflect.Uint32, reflect.Uint16:
		v.SetUint(uint64(*n))
	default:
		panic(v.Type())
	}
}

// A snapshot holds every field of a state.
func TestSnapshotHoldsEverything(t *testing.T) {
	st, n := New(), 0
	full(reflect.ValueOf(st).Elem(), &n)
	st.Routes = Routes{}
	for i := range 3 {
		var r Route
		full(reflect.ValueOf(&r).Elem(), &n)
		r.Node += protocol.NodeNumber(i)
		st.Routes.Set(r.RouteKey, r)
	}
	var nodes Map[protocol.NodeNumber, Node]
	for _, x := range st.Nodes.All() { // by their own numbers
		nodes.Set(x.Number, x)
	}
	st.Nodes = nodes
	for _, x := range st.Nodes.All() {
		st.identities.Set(x.IdentityKey, x.Number)
		st.keys.Set(x.WireGuardKey, x.Number)
	}
	st.keys.Set(protocol.WireGuardPublicKey{7}, 3) // of long ago
	st.hash = hashOf([]byte("x"))
	news := map[uint64][]Difference{st.Seq: {{"site a", "Ranges", "", "10.0.0.0/8"}}}
	b, err := encodeSnapshot(st, news)
	require.NoError(t, err)
	got, gotNews, err := decodeSnapshot(b)
	require.NoError(t, err)
	require.Empty(t, same(st, got))
	require.Equal(t, news, gotNews)
	again, err := encodeSnapshot(got, gotNews)
	require.NoError(t, err)
	require.Equal(t, string(b), string(again))

	for i := range b { // no byte of it can change unnoticed
		x := bytes.Clone(b)
		x[i] ^= 1
		if got, _, err := decodeSnapshot(x); err == nil {
			require.Empty(t, same(st, got), "byte %d: %q", i, b[max(0, i-20):i+1])
		}
	}
}

// What a newer version writes is refused, not read without what is new in it.
func TestSnapshotOfANewerVersion(t *testing.T) {
	st := New()
	st.hash = hashOf(nil)
	b, err := encodeSnapshot(st, nil)
	require.NoError(t, err)
	_, _, err = decodeSnapshot(bytes.Replace(b, []byte(`"v":1`), []byte(`"v":2`), 1))
	require.ErrorIs(t, err, errNewer)
	_, body, _ := bytes.Cut(b, []byte{'\n'})
	_, _, err = decodeSnapshot(snapshotOf(t, append([]byte(`{"policies":1,`), body[1:]...)))
	require.ErrorIs(t, err, errNewer)
}

// A damaged or made-up snapshot, archive or block of the store ends in an error, never in a panic or without bound.
func FuzzSnapshot(f *testing.F) {
	st := New()
	st.hash = hashOf(nil)
	b, err := encodeSnapshot(st, nil)
	require.NoError(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if st, news, err := decodeSnapshot(b); err == nil {
			if _, err := encodeSnapshot(st, news); err != nil {
				t.Fatal(err)
			}
		}
		if st, _, err := decodeSnapshot(snapshotOf(t, b)); err == nil && st == nil {
			t.Fatal("half a state")
		}
	})
}

func FuzzArchive(f *testing.F) {
	b, err := pack([][]byte{[]byte(`{"v":1}`), []byte(`{"v":1,"who":"x"}`)})
	require.NoError(f, err)
	f.Add(b, uint64(2))
	f.Fuzz(func(t *testing.T, b []byte, want uint64) {
		if lines, err := unpack(b, want); err == nil && uint64(len(lines)) != want {
			t.Fatal("not what was asked for")
		}
	})
}

// jsonObject finds the end of what a transaction may be in any bytes.
func FuzzSearch(f *testing.F) {
	f.Add([]byte(`{"v":1,"why":"\"}{"}xx`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n := jsonObject(b); n > len(b) {
			t.Fatal(n)
		}
	})
}

// snapshotOf is a snapshot with that body, its checksum right.
func snapshotOf(t testing.TB, body []byte) []byte {
	sum := sha256.Sum256(body)
	head, err := json.Marshal(snapshotHead{snapshotFormat, snapshotVersion, len(body), sum[:]})
	require.NoError(t, err)
	return append(append(head, '\n'), body...)
}

// mute is a vault that lists its files and says why it returns none.
type mute struct {
	dirVault
	err error
}

func (m mute) Get(context.Context, string) ([]byte, error) { return nil, m.err }

// A snapshot that cannot be asked for now is none that is damaged: a hub may not end because of it.
func TestSnapshotOutOfReach(t *testing.T) {
	dir := dirVault(t.TempDir())
	b, err := encodeSnapshot(&State{Seq: 7, hash: make([]byte, sha256.Size)}, nil)
	require.NoError(t, err)
	require.NoError(t, dir.Put(t.Context(), fmt.Sprintf(snapshotName, 7), b))
	load := func(v Vault, least uint64) (*State, error) {
		st, _, err := loadSnapshot(t.Context(), v, least, 9, zerolog.Nop())
		return st, err
	}
	st, err := load(dir, 0)
	require.NoError(t, err)
	require.Equal(t, uint64(7), st.Seq)
	_, err = load(mute{dir, fmt.Errorf("%w: timeout", errNotAsked)}, 0)
	require.ErrorIs(t, err, errNotAsked)
	for _, v := range []Vault{mute{dir, errors.New("digests do not match")}, mute{dir, fs.ErrNotExist}} {
		st, err = load(v, 0)
		require.NoError(t, err)
		require.Nil(t, st)
	}
	st, err = load(mute{dir, errNotAsked}, 8)
	require.NoError(t, err)
	require.Nil(t, st, "none that would do")
}
