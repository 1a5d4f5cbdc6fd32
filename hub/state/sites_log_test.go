package state

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// setSite declares fields of a site.
func setSite(d *Draft, name string, f protocol.SiteFields) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return PutObject(d, KindSite, name, b)
}

func setRanges(d *Draft, name string, ranges ...netip.Prefix) error {
	return setSite(d, name, protocol.SiteFields{Ranges: append([]netip.Prefix{}, ranges...)})
}

// sitesLog folds a log that the last version wrote which knew sites as no objects. It has each of its changes, some
// that the rules of today refuse.
func sitesLog(t *testing.T) (*State, map[uint64][]Difference) {
	t.Helper()
	b, err := os.ReadFile("testdata/sites-log.jsonl")
	require.NoError(t, err)
	s, news := New(), map[uint64][]Difference{}
	for line := range bytes.Lines(b) {
		tx, err := decodeTransaction(s.Seq+1, bytes.TrimSpace(line))
		require.NoError(t, err)
		was := s.record(tx)
		require.NoError(t, s.apply(tx))
		news[tx.Sequence] = s.differences(was)
	}
	return s, news
}

// Logs and snapshots of before fold to what they did: to the byte.
func TestSitesOfBefore(t *testing.T) {
	s, news := sitesLog(t)
	want, err := os.ReadFile("testdata/sites-snapshot.json")
	require.NoError(t, err)
	want = bytes.TrimSpace(want)
	got, err := encodeSnapshot(s, news)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
	again, _, err := decodeSnapshot(want)
	require.NoError(t, err)
	require.Empty(t, same(s, again))

	// And go on from there.
	for _, s := range []*State{s, again} {
		d := &Draft{State: s.clone(), Now: s.Time.Add(time.Hour)}
		o, err := d.FindObject(ObjectKey{KindSite, "b"})
		require.NoError(t, err)
		require.JSONEq(t, `{"ranges":["fd00:1::/32"],"max_age":"1ns","rotate_keys":"never"}`, string(o.Spec))
		require.Equal(t, Object{Kind: KindSite, Name: "b", Shape: 1, Essential: true, Spec: o.Spec, Created: epoch0.Add(3 * time.Minute), Changed: epoch0.Add(3 * time.Minute)}, o)
		require.NoError(t, setRanges(d, "b", prefix("10.9.0.0/16")), "an age that is no more allowed may stay")
		require.ErrorContains(t, setSite(d, "b", protocol.SiteFields{MaxAge: 2}), "max_age 2ns: use 1h0m0s to")
	}
}

// A site is a declared object: its one change says all of it, folds to the same table, and what a spec leaves out
// stays.
func TestSiteObjects(t *testing.T) {
	d := draft(t)
	d.Seq = 6
	n := node(t, d, 1, "a", "one")
	before := d.State.clone()
	d.changes = nil
	d.Announced(n, []netip.Prefix{prefix("10.7.0.0/24")})
	require.NoError(t, PutObject(d, KindSite, "a", json.RawMessage(`{"ranges":["10.7.0.0/16","10.1.0.0/16","10.7.0.0/16"],"rotate_keys":"30d"}`)))
	require.Equal(t, Site{Name: "a", Ranges: []netip.Prefix{prefix("10.1.0.0/16"), prefix("10.7.0.0/16")}, Created: epoch0, MaxAge: DefaultMaxAge, RotateKeys: 30 * 24 * time.Hour, Generation: 7, Changed: d.Now}, d.Sites.Get("a"))
	require.Equal(t, protocol.RouteApproved, d.Routes.Get(RouteKey{n, prefix("10.7.0.0/24")}).State, "what waits inside the ranges is approved")
	require.NoError(t, PutObject(d, KindSite, "a", json.RawMessage(`{"MAX_AGE":"forever","ranges":null}`)))
	require.Zero(t, d.Sites.Get("a").MaxAge)
	require.Len(t, d.Sites.Get("a").Ranges, 2)
	require.NoError(t, PutObject(d, KindSite, "new", json.RawMessage(`{}`)))
	require.Equal(t, DefaultMaxAge, d.Sites.Get("new").MaxAge)
	made := len(d.changes)
	require.NoError(t, PutObject(d, KindSite, "a", json.RawMessage(`{"rotate_keys":"720h","ranges":["10.7.0.0/16","10.1.0.0/16"]}`)))
	require.Len(t, d.changes, made, "what is there adds nothing")
	require.Equal(t, `site a declared: ranges 10.1.0.0/16 10.7.0.0/16; max_age 168h0m0s; rotate_keys 720h0m0s`, d.changes[0].Describe())

	for spec, want := range map[string]string{
		`{"range":1}`:                  `site b: unknown field "range"`,
		`{"ranges":["10.0.0.1/8"]}`:    "ranges: 10.0.0.1/8 has host bits set, write 10.0.0.0/8",
		`{"ranges":[""]}`:              "ranges: not a CIDR",
		`{"ranges":["10.7.1.0/24"]}`:   "10.7.1.0/24 overlaps range 10.7.0.0/16 of site a",
		`{"max_age":"1s"}`:             "max_age 1s: use 1h0m0s to 87840h0m0s, or forever",
		`{"max_age":"-1ns"}`:           "is no length of time such as 7d, nor forever",
		`{"rotate_keys":"1m"}`:         "rotate_keys 1m0s: use 1h0m0s to 87840h0m0s, or never",
		`{"ranges":["198.18.0.0/24"]}`: "overlay",
	} {
		refused := &Draft{State: d.State.clone(), Now: d.Now}
		require.ErrorContains(t, PutObject(refused, KindSite, "b", json.RawMessage(spec)), want, spec)
	}
	require.ErrorContains(t, d.Add(ObjectDeleted{KindSite, "a"}), "site a still has node one")
	require.ErrorContains(t, d.Add(ObjectDeleted{KindSite, "z"}), `there is no site "z"; there are a, b, new`)
	id := token(t, d, 9, TokenCreated{Site: "new"})
	require.NoError(t, d.Add(ObjectDeleted{KindSite, "new"}))
	require.Equal(t, TokenRevoked, d.Tokens.Get(id).State(d.Now))

	// The log says the same.
	tx := Transaction{Sequence: 7, Prev: before.hash, ID: "x", Time: d.Now, Who: "unix:root", Changes: d.changes}
	b, err := tx.encode()
	require.NoError(t, err)
	tx, err = decodeTransaction(7, b)
	require.NoError(t, err)
	folded, was := before.clone(), before.record(tx)
	require.NoError(t, folded.apply(tx))
	d.Seq, d.Time, d.hash = folded.Seq, folded.Time, folded.hash
	require.Empty(t, same(d.State, folded))
	require.Contains(t, folded.differences(was), Difference{"site a", "MaxAge", "168h0m0s", ""})

	// A shape that this build does not know ends the log in words: what follows is held against it.
	d.folding = true
	require.ErrorContains(t, d.Add(ObjectPut{Kind: KindSite, Name: "b", Shape: 2, Spec: json.RawMessage(`{}`)}), "site b: a newer causeway-hub wrote this kind of object, or its shape")
}
