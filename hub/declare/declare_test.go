package declare

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

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
			steps, err = Apply(d, docs, nil, Live{Announced: nothing})
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
		`{"kind":"site","name":"c","range":1}`:                          `document 4: site c: unknown field "range"`,
		`{"kind":"site","name":"c","ranges":["10.1.2.0/24"]}`:           "document 4: ",
		`{"kind":"site","name":"c","ranges":["10.9.0.1/16"]}`:           "document 4: site c: ranges: 10.9.0.1/16 has host bits set, write 10.9.0.0/16",
		`{"kind":"site","name":"C"}`:                                    `document 4: name: "C" cannot name a site`,
		`{"kind":"site","name":"c","max_age":"1s"}`:                     "document 4: max_age 1s: use",
		`{"kind":"node","name":"n"}`:                                    "document 4: there is no node n; a host becomes one by 'causeway-agent join'",
		`{"kind":"route","node":"n","prefix":"10.0.0.0/8","state":"x"}`: `document 4: state: "x"; use approved or rejected`,
		`{"kind":"limit","name":"m","site":"z","bytes":1}`:              `document 4: limit m: there is no site "z"`,
		`{"kind":"pod","name":"m"}`:                                     `document 4: kind "pod" is not known; use flowlog, limit, node, policy, route, segment, service or site`,
		`{"name":"m"}`:                                                  "document 4: kind is missing; use flowlog, limit, node, policy, route, segment, service or site",
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
		{Object: "site a", Action: "create", Diff: []string{"+ name: a", "+ max_age: 720h0m0s", "+ ranges: 10.1.0.0/16, 10.2.0.0/16"}},
		{Object: "site b", Action: "create", Diff: []string{"+ name: b"}},
		{Object: "limit l", Action: "create", Diff: []string{"+ name: l", "+ between: a, b", "+ bytes: 9007199254740993"}},
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

// What is selected and has no document goes, in the transaction of what comes; in any order that is
// possible.
func TestPrune(t *testing.T) {
	begin := func() *state.Draft {
		d := &state.Draft{State: state.New()}
		require.NoError(t, d.Add(state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4}}))
		_, err := Apply(d, documents(`{"kind":"site","name":"a","ranges":["10.1.0.0/16"]}`, `{"kind":"site","name":"b"}`,
			`{"kind":"limit","name":"a-old","site":"a","bytes":1}`, `{"kind":"limit","name":"b-old","site":"b","bytes":1}`), nil, Live{Announced: nothing})
		require.NoError(t, err)
		return d
	}
	for _, c := range []struct {
		docs, prune []string
		gone        []string
		err         string
	}{
		// a new name for the same site; another site that has the range of one that goes
		{docs: []string{`{"kind":"limit","name":"a-new","site":"a","bytes":1}`}, prune: []string{"limit"}, gone: []string{"limit a-old", "limit b-old"}},
		{docs: []string{`{"kind":"limit","name":"a-new","site":"a","bytes":1}`}, prune: []string{"limit/a-*"}, gone: []string{"limit a-old"}},
		{docs: []string{`{"kind":"site","name":"c","ranges":["10.1.0.0/16"]}`}, prune: []string{"site", "limit"}, gone: []string{"limit a-old", "limit b-old", "site a", "site b"}},
		// b-old names b until its document says otherwise
		{docs: []string{`{"kind":"site","name":"a"}`, `{"kind":"LIMIT","name":"a-old","site":"a","bytes":1}`, `{"kind":"limit","name":"b-old","between":["a","c"],"bytes":2}`, `{"kind":"site","name":"c"}`}, prune: []string{"site"}, err: `document 3: limit b-old: there is no site "c"`},
		{docs: []string{`{"kind":"site","name":"a"}`, `{"kind":"site","name":"c"}`, `{"kind":"limit","name":"b-old","between":["a","c"],"bytes":2}`}, prune: []string{"site"}, gone: []string{"site b"}},
		{docs: []string{`{"kind":"site","name":"a"}`}, prune: []string{"site"}, err: "site b cannot be pruned: limit b-old names site b; first delete it, or change it: causeway delete limit b-old"},
		{docs: []string{`{"kind":"site","name":"a"}`}, prune: []string{"limit/z*"}},
		{docs: []string{`{"kind":"site","name":"a"}`}, prune: []string{"node"}, err: `prune: kind "node" is not known, or cannot be pruned; use flowlog, limit, policy, segment, service, site`},
		{docs: []string{`{"kind":"site","name":"a"}`}, prune: []string{"limit/["}, err: `prune "limit/[": write KIND, or KIND/PATTERN such as limit/sh-*`},
		{docs: []string{`{"kind":"site","name":"a"}`}, prune: []string{"limit/"}, err: `prune "limit/": write KIND`},
	} {
		d := begin()
		steps, err := Apply(d, documents(c.docs...), c.prune, Live{Announced: nothing})
		if c.err != "" {
			require.ErrorContains(t, err, c.err)
			continue
		}
		require.NoError(t, err, c.prune)
		var gone []string
		for _, s := range steps[len(c.docs):] {
			require.Equal(t, "delete", s.Action)
			gone = append(gone, s.Object)
		}
		require.Equal(t, c.gone, gone, c.prune)
	}
}

// Thousands go in moments, in which nothing else may be decided.
func TestPruneThousands(t *testing.T) {
	d := &state.Draft{State: state.New()}
	require.NoError(t, d.Add(state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4}}))
	var docs []string
	for i := range 3000 {
		docs = append(docs, fmt.Sprintf(`{"kind":"site","name":"s%d"}`, i), fmt.Sprintf(`{"kind":"limit","name":"l%d","site":"s%d","bytes":1}`, i, i))
	}
	_, err := Apply(d, documents(docs...), nil, Live{Announced: nothing})
	require.NoError(t, err)
	begin := time.Now()
	steps, err := Apply(d, documents(`{"kind":"site","name":"left"}`), []string{"limit", "site"}, Live{Announced: nothing})
	require.NoError(t, err)
	require.Len(t, steps, 6001)
	require.Less(t, time.Since(begin), 10*time.Second)
}

// Every kind that this hub knows has a document for files, and the other way round.
func TestDocumentsAreKinds(t *testing.T) {
	require.Equal(t, state.ObjectKinds(), api.ObjectKinds())
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
		steps, err := Apply(d, []api.ApplyDocument{{Document: b}}, nil, Live{Announced: nothing})
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		require.NotEmpty(t, steps[0].Object)
	})
}

// Thousands of documents in one transaction, in which nothing else is decided, take as long as they
// are many: none is held against all the others.
func TestManyDocuments(t *testing.T) {
	const few, many = 1000, 8000
	processor := func() time.Duration { // garbage included, whatever else the machine does
		var u unix.Rusage
		require.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	apply := func(n int) (took time.Duration) {
		d := &state.Draft{State: state.New(), Now: time.Now()}
		require.NoError(t, d.Add(state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6}}))
		for _, ranges := range []string{`"10.%d.%d.0/26","fd01:%x:%x::/64"`, `"10.%d.%d.64/26","fd02:%x:%x::/64"`} { // makes, changes
			docs := make([]api.ApplyDocument, n)
			for i := range docs {
				docs[i].Document = fmt.Appendf(nil, `{"kind":"site","name":"s-%d","ranges":[`+ranges+`]}`, i, i/200, i%200, i/200, i%200)
			}
			begin := processor()
			_, err := Apply(d, docs, nil, Live{Announced: nothing})
			require.NoError(t, err)
			took += processor() - begin
		}
		return took
	}
	best := func(n int) time.Duration { return min(apply(n), apply(n), apply(n)) }
	a, b := best(few), best(many)
	t.Logf("%d documents of sites in %s of processor, %d in %s", 2*few, a, 2*many, b)
	require.Less(t, b, 3*many/few*a, "8 times as many take 24 times as long at most: 64 if each is held against all")
}
