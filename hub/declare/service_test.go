package declare

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/object"
	"causeway/hub/state"
	"causeway/hub/state/statetest"
	"causeway/protocol"
)

// Services that are wrong are refused in one line, and nothing is half done; as many as there may be have addresses of their own.
func TestServices(t *testing.T) {
	st := statetest.Open(t)
	update := func(docs []api.ApplyDocument) ([]api.ApplyStep, error) {
		var steps []api.ApplyStep
		_, err := st.Update(t.Context(), "unix:root", "apply", func(d *state.Draft) (err error) {
			steps, err = Apply(d, docs, nil, Live{Announced: nothing})
			return err
		})
		return steps, err
	}
	_, err := st.Update(t.Context(), "hub", "begin", func(d *state.Draft) error { return statetest.Fill(d, 2) })
	require.NoError(t, err)
	before := st.State()
	const good = `{"kind":"service","name":"%s","ports":[{"port":80}],"backends":[{"node":"n2"}]}`
	for bad, want := range map[string]string{
		`{"kind":"service","name":"x","ports":[{"port":80}],"weigths":{}}`:            `document 2: service x: unknown field "weigths"`,
		`{"kind":"service","name":"x","ports":[{"port":-1}]}`:                         "document 2: service x: cannot unmarshal number -1",
		`{"kind":"service","name":"x","ports":[{"port":70000}]}`:                      "document 2: service x: cannot unmarshal number 70000",
		`{"kind":"service","name":"x","ports":[{"port":80},{"port":80}]}`:             "document 2: service x: ports: port 80 needs a name where there are several",
		`{"kind":"service","name":"x","ports":[{"port":4717}]}`:                       "4717 is one of Causeway's own",
		`{"kind":"service","name":"X","ports":[{"port":80}]}`:                         `document 2: name: "X" cannot name a service`,
		`{"kind":"service","name":"x","ports":[{"port":80}],"stay":["moon"]}`:         `document 2: service x: there is no site "moon"; there are a`,
		`{"kind":"service","name":"x","ports":[{"port":80}],"vip4":"10.0.0.1"}`:       "document 2: service x: vip4: 10.0.0.1 cannot be given: it is not in the overlay; leave vip4 out, and one is chosen",
		`{"kind":"service","name":"x","ports":[{"port":80}],"segment":"prod"}`:        `document 2: service x: there is no segment "prod"`,
		`{"kind":"service","name":"x","ports":[{"port":80}],"backends":[{}]}`:         "backends: each has one of selector, node and addresses",
		`{"kind":"service","name":"x","ports":"` + strings.Repeat("x", 10<<20) + `"}`: "document 2: service x: cannot unmarshal string",
	} {
		_, err := update(documents(fmt.Sprintf(good, "ok"), bad))
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "\n")
		require.Less(t, len(err.Error()), 400)
		require.Same(t, before, st.State(), "nothing is done")
	}

	many := func(from, to int) (l []api.ApplyDocument) {
		for i := from; i < to; i++ {
			l = append(l, documents(fmt.Sprintf(good, fmt.Sprintf("s%d", i)))...)
		}
		return l
	}
	_, err = update(many(0, 10_000))
	require.ErrorContains(t, err, "at most 1048576")
	require.NotContains(t, err.Error(), "\n")
	require.Same(t, before, st.State())
	for i := 0; i < 10_000; i += 1000 {
		_, err = update(many(i, i+1000))
		require.NoError(t, err)
	}
	_, err = update(many(10_000, 10_001))
	require.ErrorContains(t, err, "there are 10000 declared objects, and no more than that may be")
	seen := map[netip.Addr]bool{}
	for _, o := range st.State().ObjectsOf(object.ServiceKind) {
		var s protocol.Service
		require.NoError(t, json.Unmarshal(o.Spec, &s))
		require.False(t, seen[s.VIP4])
		seen[s.VIP4] = true
	}
	require.Len(t, seen, 10_000)
}
