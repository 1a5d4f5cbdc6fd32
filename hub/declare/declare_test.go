package declare

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	_ "causeway/hub/object"
	"causeway/hub/state"
	"causeway/hub/state/statetest"
	"causeway/protocol"
)

func nothing(protocol.NodeNumber) []netip.Prefix { return nil }

func documents(l ...string) (out []api.ApplyDocument) {
	for _, s := range l {
		out = append(out, api.ApplyDocument{Document: json.RawMessage(s)})
	}
	return out
}

// All documents are one transaction: the last one's mistake leaves nothing of the others.
func TestAllOrNothing(t *testing.T) {
	st := statetest.Open(t)
	update := func(docs []api.ApplyDocument) ([]api.ApplyStep, error) {
		var steps []api.ApplyStep
		_, err := st.Update(t.Context(), "unix:root", "apply", func(d *state.Draft) (err error) {
			steps, err = Apply(d, docs, Live{Announced: nothing})
			return err
		})
		return steps, err
	}
	_, err := st.Update(t.Context(), "hub", "begin", func(d *state.Draft) error {
		if err := d.Add(state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6}}); err != nil {
			return err
		}
		return d.Add(state.HubAdded{Number: 1})
	})
	require.NoError(t, err)
	before := st.State()
	good := documents(`{"kind":"site","name":"a","ranges":["10.2.0.0/16","10.1.0.0/16"],"max_age":"30d"}`, `{"kind":"Site","name":"b"}`, `{"kind":"limit","name":"l","between":["b","a"],"bytes":9007199254740993}`)
	for bad, want := range map[string]string{
		`{"kind":"site","name":"c","range":1}`:                          `document 4: unknown field "range"`,
		`{"kind":"site","name":"c","ranges":["10.1.2.0/24"]}`:           "document 4: ",
		`{"kind":"site","name":"c","ranges":["10.9.0.1/16"]}`:           "document 4: ranges: 10.9.0.1/16 has host bits set, write 10.9.0.0/16",
		`{"kind":"site","name":"C"}`:                                    `document 4: name: "C" cannot name a site`,
		`{"kind":"site","name":"c","max_age":"1s"}`:                     "document 4: max_age 1s: use",
		`{"kind":"node","name":"n"}`:                                    "document 4: there is no node n; a host becomes one by 'causeway-agent join'",
		`{"kind":"route","node":"n","prefix":"10.0.0.0/8","state":"x"}`: `document 4: state: "x"; use approved or rejected`,
		`{"kind":"limit","name":"m","site":"z","bytes":1}`:              `document 4: limit m: there is no site "z"`,
		`{"kind":"pod","name":"m"}`:                                     `document 4: kind "pod" is not known; use site, node, route or limit`,
		`{"name":"m"}`:                                                  "document 4: kind is missing; use site, node, route or limit",
		`[1]`:                                                           "document 4: it is no document",
		`{"kind":"limit","name":["x"]}`:                                 "document 4: it is no document",
	} {
		_, err := update(append(good[:3:3], documents(bad)...))
		require.ErrorContains(t, err, want, bad)
		require.NotContains(t, err.Error(), "\n")
		require.Same(t, before, st.State(), "nothing is done: %s", bad)
	}
	steps, err := update(good)
	require.NoError(t, err)
	require.Equal(t, []api.ApplyStep{
		{Object: "site a", Action: "create", Diff: []string{"+ name: a", "+ ranges: 10.1.0.0/16, 10.2.0.0/16", "+ max_age: 720h0m0s"}},
		{Object: "site b", Action: "create", Diff: []string{"+ name: b"}},
		{Object: "limit l", Action: "create", Diff: []string{"+ name: l", `+ between: ["a","b"]`, "+ bytes: 9007199254740993"}},
	}, steps)
	require.Equal(t, before.Seq+1, st.State().Seq, "one transaction")
	steps, err = update(good)
	require.NoError(t, err)
	for _, s := range steps {
		require.Equal(t, "none", s.Action, s.Object)
	}
	require.Equal(t, before.Seq+1, st.State().Seq, "what is there already is no transaction")
	steps, err = update(documents(`{"kind":"site","name":"a","ranges":[],"rotate_keys":"30d"}`, `{"kind":"limit","name":"l","between":["a","b"],"packets":5}`))
	require.NoError(t, err)
	require.Equal(t, []api.ApplyStep{
		{Object: "site a", Action: "change", Diff: []string{"- ranges: 10.1.0.0/16, 10.2.0.0/16", "- rotate_keys: never", "+ rotate_keys: 720h0m0s"}},
		{Object: "limit l", Action: "change", Diff: []string{"- bytes: 9007199254740993", "+ packets: 5"}},
	}, steps)
	site := st.State().Sites.Get("a")
	require.Empty(t, site.Ranges)
	require.Equal(t, "720h0m0s", site.MaxAge.String(), "what is left out stays")
}

// Every kind that this hub knows has a document for files, and the other way round.
func TestDocumentsAreKinds(t *testing.T) {
	want := append([]string{"node", "route", "site"}, state.ObjectKinds()...)
	require.ElementsMatch(t, want, slices.Collect(maps.Keys(api.Documents)))
}

// FuzzApply: documents are hostile; whatever they hold, steps or one line come back.
func FuzzApply(f *testing.F) {
	for _, s := range []string{`{"kind":"site","name":"a","ranges":["10.0.0.0/8"],"max_age":"72h","rotate_keys":"never"}`, `{"kind":"node","name":"n","labels":{"a":"b"},"drained":true}`,
		`{"kind":"route","node":"n","prefix":"fd00::/8","state":"approved"}`, `{"kind":"limit","name":"l","node":"*","packets":1}`, `{"kind":"limit","name":"l","between":["s","s"],"spec":{}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &state.Draft{State: state.New()}
		require.NoError(t, d.Add(state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4}}))
		require.NoError(t, d.Add(state.SiteCreated{Name: "s"}))
		steps, err := Apply(d, []api.ApplyDocument{{Document: b}}, Live{Announced: nothing})
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		require.NotEmpty(t, steps[0].Object)
	})
}
