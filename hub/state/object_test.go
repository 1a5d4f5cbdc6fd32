package state

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// tint is a kind for tests: its objects name one site, and perhaps one another.
type tint struct{}

type tintSpec struct {
	Site string `json:"site"`
	Like string `json:"like,omitempty"` // another tint
}

func (tint) Kind() string  { return "tint" }
func (tint) Shape() uint32 { return 2 }

func (tint) Essential() bool { return false }

func (tint) Canonical(spec json.RawMessage) (json.RawMessage, error) {
	var v tintSpec
	if err := json.Unmarshal(spec, &v); err != nil {
		return nil, errors.New("no tint")
	}
	return json.Marshal(v)
}

func (tint) Check(st *State, o Object) error {
	return Found(st, tint{}.Names(o))
}

func (tint) Names(o Object) []ObjectKey {
	var v tintSpec
	_ = json.Unmarshal(o.Spec, &v) // Canonical wrote it
	out := []ObjectKey{{KindSite, v.Site}}
	if v.Like != "" {
		out = append(out, ObjectKey{"tint", v.Like})
	}
	return out
}

func init() { RegisterKind(tint{}) }

func TestObjects(t *testing.T) {
	d := draft(t)
	d.Seq = 41
	red := ObjectKey{"tint", "red"}
	require.NoError(t, PutObject(d, "tint", "red", json.RawMessage(` {"site":"a"} `)))
	want := Object{Kind: "tint", Name: "red", Shape: 2, Spec: json.RawMessage(`{"site":"a"}`), Generation: 42, Created: d.Now, Changed: d.Now}
	require.Equal(t, want, d.Objects.Get(red))
	n := len(d.changes)
	require.NoError(t, PutObject(d, "tint", "red", json.RawMessage(`{ "site": "a" }`)))
	require.Len(t, d.changes, n, "what is there adds nothing")
	d.Seq, d.Now = 50, d.Now.Add(time.Hour)
	require.NoError(t, PutObject(d, "tint", "red", json.RawMessage(`{"site":"b"}`)))
	require.Equal(t, uint64(51), d.Objects.Get(red).Generation)
	require.Equal(t, want.Created, d.Objects.Get(red).Created)
	require.Equal(t, d.Now, d.Objects.Get(red).Changed)
	require.ErrorContains(t, PutObject(d, "tint", "red", json.RawMessage(`{"site":"z"}`)), `tint red: there is no site "z"`)

	d = draft(t)
	require.NoError(t, PutObject(d, "tint", "red", json.RawMessage(`{"site":"b"}`)))
	require.ErrorContains(t, d.Add(SiteDeleted{"b"}), "tint red names site b")
	require.ErrorContains(t, PutObject(d, "tint", "pink", json.RawMessage(`{"site":"b","like":"none"}`)), `tint pink: there is no tint "none"`)
	d = draft(t)
	require.NoError(t, PutObject(d, "tint", "red", json.RawMessage(`{"site":"b"}`)))
	require.NoError(t, PutObject(d, "tint", "pink", json.RawMessage(`{"site":"b","like":"red"}`)))
	require.ErrorContains(t, d.Add(ObjectDeleted{"tint", "red"}), "tint pink names tint red; first delete it, or change it: causeway delete tint pink")
	require.NoError(t, PutObject(d, "tint", "pink", json.RawMessage(`{"site":"b","like":"pink"}`)))
	require.NoError(t, d.Add(ObjectDeleted{"tint", "pink"}), "one that names itself is named by nobody else")
	require.NoError(t, d.Add(ObjectDeleted{"tint", "red"}))
	d = draft(t)
	require.ErrorContains(t, d.Add(ObjectPut{Kind: "tint", Name: "big", Shape: 2, Spec: make(json.RawMessage, maxSpec+1)}), "at most 65536")
	for i := range maxObjects {
		d.Objects.Set(ObjectKey{"tint", string(rune('a'+i%26)) + time.Duration(i).String()}, Object{})
	}
	require.True(t, IsKind(PutObject(d, "tint", "blue", json.RawMessage(`{"site":"a"}`)), Full))
}

// What a newer hub declared is kept, is told of, and cannot be changed here; whether anything
// may be planned without it, it says itself.
func TestStrangeObjects(t *testing.T) {
	d := draft(t)
	require.ErrorContains(t, d.Add(ObjectPut{Kind: "moon", Name: "x", Shape: 1}), "a newer causeway-hub wrote this kind")
	require.ErrorContains(t, d.Add(ObjectPut{Kind: "tint", Name: "x", Shape: 3}), "a newer causeway-hub wrote this kind")
	d.folding = true // as out of a log
	require.NoError(t, d.Add(ObjectPut{Kind: "moon", Name: "x", Shape: 1, Spec: json.RawMessage(`{"of":["tin"]}`)}))
	l, essential := d.Strange()
	require.Equal(t, []ObjectKey{{"moon", "x"}}, l)
	require.False(t, essential)
	require.NoError(t, d.Add(ObjectPut{Kind: "tint", Name: "x", Shape: 3, Essential: true, Spec: json.RawMessage(`{}`)}))
	l, essential = d.Strange()
	require.Len(t, l, 2)
	require.True(t, essential)
	// What another hub took is taken, though it knew less of what forbids it: else the log ended here.
	require.NoError(t, d.Add(ObjectPut{Kind: "tint", Name: "lost", Shape: 2, Spec: json.RawMessage(`{"site":"z"}`)}))
	require.NoError(t, d.Add(ObjectDeleted{"tint", "lost"}))
	d.folding = false
	require.ErrorContains(t, PutObject(d, "moon", "x", nil), "there is no kind")
	require.ErrorContains(t, d.Add(ObjectDeleted{"moon", "x"}), "delete it there")
	require.NoError(t, d.Add(SiteDeleted{"b"}), "nobody knows what it names")
	d.folding = true
	require.NoError(t, d.Add(ObjectDeleted{"moon", "x"}))

	s, _, err := func() (*State, map[uint64][]Difference, error) {
		d.hash = hashOf([]byte("x"))
		b, err := encodeSnapshot(d.State, nil)
		require.NoError(t, err)
		return decodeSnapshot(b)
	}()
	require.NoError(t, err)
	require.Equal(t, d.Objects.plain(), s.Objects.plain())
}

// together is a kind that is checked with others.
type together struct {
	ObjectKind
	by *Together
}

func (k together) Together() *Together { return k.by }

// Kinds that are checked together are checked once.
func TestCheckedOnce(t *testing.T) {
	n := 0
	by := &Together{Check: func(*State, time.Time) error { n++; return nil }}
	for _, kind := range []string{"test-a", "test-b"} {
		objectKinds[kind] = together{by: by}
		defer delete(objectKinds, kind)
	}
	require.NoError(t, CheckAll(&Draft{}, []string{"test-a", "site", "test-b", "test-a"}))
	require.Equal(t, 1, n)
}
