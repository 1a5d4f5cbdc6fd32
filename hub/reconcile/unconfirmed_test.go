package reconcile

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/object"
	"causeway/hub/state"
)

// What nobody confirmed goes back by itself, also when no hub ran at its time: all of it stands in the log.
func TestUnconfirmedGoesBack(t *testing.T) {
	w := newWorld(t, 2, nil)
	main := state.ObjectKey{Kind: object.PolicyKind, Name: "main"}
	w.update("declare", func(d *state.Draft) error {
		return state.PutObject(d, main.Kind, main.Name, json.RawMessage(`{"rules":[{"name":"x","from":{"site":"a"},"to":{"site":"a"},"allow":["icmp"]}]}`))
	})
	before, _ := w.store.State().Object(main)
	// As it stands in the log: fields keep their names.
	w.update("apply", func(d *state.Draft) error {
		if err := state.PutObject(d, main.Kind, main.Name, json.RawMessage(`{"rules":[]}`)); err != nil {
			return err
		}
		return d.Add(state.ObjectPut{Kind: "confirmation", Name: "1", Shape: 1,
			Spec: json.RawMessage(`{"deadline":"2026-01-02T03:04:05Z","who":"unix:olga","kind":"policy","name":"main","before":{"shape":1,"spec":` + string(before.Spec) + `}}`)})
	})
	require.Equal(t, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), object.Confirming(w.store.State()).Deadline)
	w.run()
	w.eventually(func() bool { return object.Confirming(w.store.State()) == nil }, "it goes back")
	after, _ := w.store.State().Object(main)
	require.JSONEq(t, string(before.Spec), string(after.Spec))
	w.eventually(func() bool {
		p := w.fleet.Policy()
		return p != nil && p.Sequence == w.store.State().Seq && p.Compiled != nil
	}, "it is in force")
	txs, err := w.store.Audit(t.Context(), 0, 1)
	require.NoError(t, err)
	require.Equal(t, "hub", txs[0].Who)
	require.Equal(t, "not confirmed in time: it goes back", txs[0].Why)
}
