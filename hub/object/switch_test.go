package object

import (
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/state"
)

// A switch is two transactions, whoever declares it, and the hub alone makes the second one.
func TestSwitch(t *testing.T) {
	d := draft(t)
	declare1 := func(more string) error {
		d.Seq++
		return declare(d, ServiceKind, "db", web+`,"mode":"single-writer"`+more+`}`)
	}
	is := func(writer, to string, epoch uint64, fenced ...string) {
		t.Helper()
		s := serviceOf(t, d.State, "db")
		require.Equal(t, []string{writer, to}, []string{s.Writer, s.To})
		require.Equal(t, epoch, s.Epoch)
		require.Equal(t, fenced, s.Fenced)
	}
	put := func(more string) { t.Helper(); require.NoError(t, declare1(more)) }
	put(`,"writer":"a"`)
	first := d.Seq + 1
	is("a", "", first)

	put(`,"writer":"b"`)
	leaving := d.Seq + 1
	is("a", "b", leaving, "a")
	o, _ := d.Object(state.ObjectKey{Kind: ServiceKind, Name: "db"})
	put(`,"writer":"b"`)
	again, _ := d.Object(o.Key())
	require.Equal(t, o, again, "a file of behind the switch says nothing new")
	require.NoError(t, declare(d, ServiceKind, "db", string(o.Spec)), "nor does what get shows")
	is("a", "b", leaving, "a")
	put(`,"writer":"b","sticky":"client"`)
	is("a", "b", leaving, "a")

	// Back, in one transaction; who means the switch of before comes late.
	put(`,"writer":"a"`)
	back := d.Seq + 1
	is("a", "", back)
	require.True(t, state.IsKind(EndSwitch(d, "db", leaving), state.Conflict))
	is("a", "", back)

	put(`,"writer":"b"`)
	leaving = d.Seq + 1
	require.True(t, state.IsKind(EndSwitch(d, "db", back), state.Conflict))
	require.True(t, state.IsKind(LiftFence(d, "db", leaving), state.Conflict))
	d.Seq++
	require.NoError(t, EndSwitch(d, "db", leaving))
	ended := d.Seq + 1
	is("b", "", ended, "a")
	require.Error(t, EndSwitch(d, "db", ended))

	// On before all have heard: both are blocked until the third serves, or the first one again.
	put(`,"writer":"a"`)
	leaving = d.Seq + 1
	is("b", "a", leaving, "a", "b")
	d.Seq++
	require.NoError(t, EndSwitch(d, "db", leaving))
	is("a", "", d.Seq+1, "b")
	epoch := d.Seq + 1
	d.Seq++
	require.NoError(t, LiftFence(d, "db", epoch))
	is("a", "", epoch)

	// By force, out of a switch and without one.
	put(`,"writer":"b"`)
	d.Seq++
	require.NoError(t, ForceSwitch(d, "db", "b"))
	is("b", "", d.Seq+1, "a")
	d.Seq++
	require.NoError(t, ForceSwitch(d, "db", "a"))
	is("a", "", d.Seq+1, "b")

	for more, want := range map[string]string{
		`,"writer":"a","to":"b"`:                      "to: the hub says it while a service is switched",
		`,"writer":"a","fenced":["a"]`:                "fenced: the hub says it",
		`,"writer":"a","lease":"1s"`:                  "lease: 1s is neither 0s nor between 15s and 1h0m0s",
		`,"writer":"a","lease":"2h"`:                  "lease: 2h0m0s is neither",
		`,"writer":"a","headless":true,"lease":"15s"`: "a headless service has none",
		`,"writer":"b","epoch":1`:                     "the writer was switched since",
	} {
		require.ErrorContains(t, declare1(more), want, more)
	}
	require.ErrorContains(t, declare(d, ServiceKind, "web", web+`,"lease":"15s"}`), "only mode single-writer has them")
	put(`,"writer":"a","headless":true`)
	is("a", "", serviceOf(t, d.State, "db").Epoch)
	put(`,"writer":"b","headless":true`)
	is("b", "", d.Seq+1)
	require.NoError(t, declare(d, ServiceKind, "db", web+`}`))
	is("", "", 0)
	require.True(t, state.IsKind(ForceSwitch(d, "db", "a"), state.Invalid))
	require.Error(t, ForceSwitch(d, "nobody", "a"))
}
