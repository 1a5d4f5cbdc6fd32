package object

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/state"
)

func declare(d *state.Draft, kind, name, spec string) error {
	return state.PutObject(d, kind, name, json.RawMessage(spec))
}

// talking is a draft with a segment and two policies, of a transaction before.
func talking(t testing.TB) *state.Draft {
	t.Helper()
	d := draft(t)
	require.NoError(t, declare(d, SegmentKind, "prod", `{"sites":["a"]}`))
	require.NoError(t, declare(d, PolicyKind, "main", `{"rules":[{"name":"x","from":{"segment":"prod"},"to":{"site":"b"},"allow":["icmp"]}]}`))
	require.NoError(t, declare(d, PolicyKind, "more", `{"rules":[{"name":"y","from":{"node":"b1"},"to":{"site":"b"},"allow":["icmp"]}]}`))
	d.Seq++
	return d
}

// changed makes and asks to confirm a change of talking in which something is made, changed and taken away.
func changed(t testing.TB, d *state.Draft) {
	t.Helper()
	was := Talk(d.State)
	require.NoError(t, declare(d, SegmentKind, "dev", `{"sites":["b"]}`))
	require.NoError(t, declare(d, PolicyKind, "main", `{"rules":[{"name":"x","across":["prod","dev"],"from":{"segment":"dev"},"to":{"site":"a"},"allow":["any"]}]}`))
	require.NoError(t, d.Add(state.ObjectDeleted{Kind: PolicyKind, Name: "more"}))
	require.NoError(t, AskToConfirm(d, was, "unix:olga", time.Minute))
	d.Seq++
}

// specs are what is declared, by name.
func specs(st *state.State) map[string]string {
	out := map[string]string{}
	for _, o := range Talk(st) {
		out[o.Key().String()] = string(o.Spec)
	}
	return out
}

func TestGoBack(t *testing.T) {
	d := talking(t)
	before := specs(d.State)
	changed(t, d)
	p := Confirming(d.State)
	require.Equal(t, d.Now.Add(time.Minute), p.Deadline)
	require.Equal(t, "unix:olga", p.Who)
	require.Equal(t, []state.ObjectKey{{Kind: SegmentKind, Name: "dev"}, {Kind: PolicyKind, Name: "main"}, {Kind: PolicyKind, Name: "more"}}, p.Objects)

	// Meanwhile they stay as they are, and so does what they go back to.
	const wait = "a change of who may talk by unix:olga goes back at 2001-09-09 01:47:40 UTC unless it is confirmed: first 'causeway policy confirm', or 'causeway policy confirm --back'"
	require.EqualError(t, declare(d, SegmentKind, "prod", `{"sites":["c"]}`), wait)
	require.EqualError(t, d.Add(state.ObjectDeleted{Kind: PolicyKind, Name: "main"}), wait)
	require.NoError(t, declare(d, SegmentKind, "prod", `{"sites":["a"]}`), "it is so already")
	require.ErrorContains(t, state.Rename(d, "b1", "b2"), "confirmation 3 names node b1")
	require.Error(t, declare(d, confirmationKind, "9", `{}`))
	require.NotContains(t, state.ObjectKinds(), confirmationKind)

	require.Empty(t, p.Overtaken(d.State))
	require.NoError(t, GoBack(d))
	require.Equal(t, before, specs(d.State))
	require.Nil(t, Confirming(d.State))
	require.ErrorContains(t, GoBack(d), "no change of who may talk waits")
	require.ErrorContains(t, Confirm(d), "no change of who may talk waits")
}

func TestConfirm(t *testing.T) {
	d := talking(t)
	changed(t, d)
	after := specs(d.State)
	require.NoError(t, Confirm(d))
	require.Equal(t, after, specs(d.State))
	require.NoError(t, d.Add(state.ObjectDeleted{Kind: PolicyKind, Name: "main"}))

	// A change of nothing waits for nothing; times have bounds.
	was := Talk(d.State)
	require.NoError(t, AskToConfirm(d, was, "unix:olga", time.Minute))
	require.Nil(t, Confirming(d.State))
	for _, bad := range []time.Duration{time.Second, 25 * time.Hour, -time.Minute} {
		require.ErrorContains(t, AskToConfirm(d, was, "unix:olga", bad), "between 30s and 24h0m0s")
	}
}

// What a hub changed that knows of no confirmations stays as that left it.
func TestGoBackIsOvertaken(t *testing.T) {
	d := talking(t)
	changed(t, d)
	main, _ := d.Object(state.ObjectKey{Kind: PolicyKind, Name: "main"})
	main.Generation = d.Seq + 5
	d.Objects.Set(main.Key(), main)
	d.Seq += 5
	after := specs(d.State)
	require.Equal(t, "policy main was changed since", Confirming(d.State).Overtaken(d.State))
	require.NoError(t, GoBack(d))
	require.Equal(t, after, specs(d.State))
	require.Nil(t, Confirming(d.State))
}
