package object

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/state"
	"causeway/protocol"
)

// Who logs, and what is refused.
func TestFlowLog(t *testing.T) {
	for spec, want := range map[string][]protocol.NodeNumber{
		`{}`:                      {2, 3, 4},
		`{"sites":["a"]}`:         {2, 3},
		`{"nodes":["b1","a1"]}`:   {2, 4},
		`{"labels":{"rack":"x"}}`: nil,
		`{"sites":["c","b","b"]}`: {4},
	} {
		d := draft(t)
		require.NoError(t, state.PutObject(d, FlowLogKind, "all", json.RawMessage(spec)), spec)
		o, ok := d.Object(state.ObjectKey{Kind: FlowLogKind, Name: "all"})
		require.True(t, ok)
		_, nodes := o.Tells(d.State)
		require.Equal(t, want, nodes, spec)
	}
	for spec, want := range map[string]string{
		`{"sites":["z"]}`:                       `there is no site "z"`,
		`{"nodes":["z"]}`:                       `there is no node "z"`,
		`{"sites":["a"],"labels":{"rack":"x"}}`: "by one of sites, nodes and labels",
		`{"sites":["A"]}`:                       `sites: "A" cannot name a site`,
		`{"nodes":["A"]}`:                       `nodes: "A" cannot name a node`,
		`{"sample":2}`:                          `unknown field "sample"`,
	} {
		err := state.PutObject(draft(t), FlowLogKind, "all", json.RawMessage(spec))
		require.ErrorContains(t, err, want, spec)
		require.NotContains(t, err.Error(), "\n")
	}
}
