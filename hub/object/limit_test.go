package object

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/state"
	"causeway/protocol"
	"causeway/tunnel"
)

// draft has sites a, b and c, nodes a1 (2) and a2 (3) at a and b1 (4) at b.
func draft(t testing.TB) *state.Draft {
	t.Helper()
	d := &state.Draft{State: state.New(), Now: time.Unix(1e9, 0).UTC()}
	add := func(c state.Change) { t.Helper(); require.NoError(t, d.Add(c)) }
	add(state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6}})
	add(state.HubAdded{Number: 1})
	for _, s := range []string{"a", "b", "c"} {
		add(state.SiteCreated{Name: s})
	}
	for i, n := range []string{"a1", "a2", "b1"} {
		b := byte(i + 1)
		hash := protocol.TokenSecret{b}.Hash()
		add(state.TokenCreated{ID: protocol.TokenID{b}, Hash: hash[:], Site: n[:1], Expires: d.Now.Add(time.Hour)})
		require.NoError(t, state.Redeem(d, state.RedeemRequest{Token: protocol.TokenID{b}, Secret: protocol.TokenSecret{b}, WireGuardKey: protocol.WireGuardPublicKey{b}, IdentityKey: protocol.IdentityPublicKey{b}, Name: n}))
	}
	return d
}

func put(d *state.Draft, name, spec string) error {
	return state.PutObject(d, LimitKind, name, json.RawMessage(spec))
}

func TestLimitsAreRefused(t *testing.T) {
	for spec, want := range map[string]string{
		``:                                           "EOF",
		`{"site":"a","packets":1}{}`:                 "something follows the document",
		`{"site":"a","pakets":1}`:                    `unknown field "pakets"`,
		`{"site":"a","packets":-1}`:                  "cannot unmarshal number -1",
		`{"packets":1}`:                              "say whom it is for",
		`{"site":"a","node":"a1","packets":1}`:       "say whom it is for",
		`{"site":"a"}`:                               "say how much",
		`{"node":"A!","packets":1}`:                  "cannot name a node",
		`{"site":"*","packets":1}`:                   "cannot name a site",
		`{"between":["a"],"packets":1}`:              "write two sites",
		`{"between":["a","a"],"packets":1}`:          "write two sites",
		`{"between":["a","!"],"packets":1}`:          "cannot name a site",
		`{"between":["a","z"],"packets":1}`:          `there is no site "z"`,
		`{"node":"z9","packets":1}`:                  `there is no node "z9"`,
		`{"site":"a","bytes":5}`:                     "limit here is for the same",
		`{"between":["c","b"],"bytes":5}`:            "limit there is for the same",
		`{"site":"b","bytes":184467440737095516160}`: "cannot unmarshal number",
	} {
		d := draft(t)
		require.NoError(t, put(d, "here", `{"site":"a","packets":1}`))
		require.NoError(t, put(d, "there", `{"between":["b","c"],"packets":1}`))
		err := put(d, "x", spec)
		require.ErrorContains(t, err, want, spec)
		require.NotContains(t, err.Error(), "\n")
	}
	d := draft(t)
	require.ErrorContains(t, state.PutObject(d, "nonsense", "x", nil), `there is no kind "nonsense" of objects; there are flowlog, limit`)
	require.ErrorContains(t, put(d, "No", `{"site":"a","packets":1}`), `limit name "No": use`)
}

// What a limit names stays as long as it does; a node may go all the same.
func TestWhatLimitsName(t *testing.T) {
	d := draft(t)
	require.NoError(t, put(d, "one", `{"node":"b1","packets":1}`))
	require.NoError(t, put(d, "two", `{"between":["c","a"],"packets":1}`))
	require.ErrorContains(t, d.Add(state.SiteDeleted{Name: "c"}), "limit two names site c; first delete it, or change it: causeway delete limit two")
	require.ErrorContains(t, state.Rename(d, "b1", "b2"), "limit one names node b1")
	require.NoError(t, state.Rename(d, "a1", "a9"))
	require.NoError(t, state.Remove(d, 4, state.GoneRevoked), "whoever has to go goes")
	require.Empty(t, RelayBounds(d.State), "nobody is bound by a limit of a node that is gone")
	require.NoError(t, d.Add(state.ObjectDeleted{Kind: LimitKind, Name: "two"}))
	require.NoError(t, d.Add(state.SiteDeleted{Name: "c"}))
	require.ErrorContains(t, d.Add(state.ObjectDeleted{Kind: LimitKind, Name: "two"}), "there is no limit \"two\"; see 'causeway get limit'")
}

func TestRelayBounds(t *testing.T) {
	d := draft(t)
	require.Nil(t, RelayBounds(d.State))
	for name, spec := range map[string]string{
		"between": `{"between":["b","a"],"bytes":10}`, "nobody": `{"between":["c","a"],"bytes":10}`,
		"each": `{"node":"*","packets":3}`, "node": `{"node":"a2","packets":4,"bytes":5}`, "site": `{"site":"a","packets":6}`,
	} {
		require.NoError(t, put(d, name, spec))
	}
	n := func(l ...protocol.NodeNumber) []protocol.NodeNumber { return l }
	require.Equal(t, []tunnel.RelayBound{
		{Name: "between", Rate: tunnel.RelayRate{Bytes: 10}, From: n(2, 3), To: n(4), Both: true},
		{Name: "each/a1", Rate: tunnel.RelayRate{Packets: 3}, From: n(2)},
		{Name: "each/a2", Rate: tunnel.RelayRate{Packets: 3}, From: n(3)},
		{Name: "each/b1", Rate: tunnel.RelayRate{Packets: 3}, From: n(4)},
		{Name: "node", Rate: tunnel.RelayRate{Packets: 4, Bytes: 5}, From: n(3)},
		{Name: "site", Rate: tunnel.RelayRate{Packets: 6}, From: n(2, 3)},
	}, RelayBounds(d.State))
}

// Each that is declared is held against all others without reading them all again: a file of thousands
// takes moments, in which nothing else may be decided.
func TestManyLimits(t *testing.T) {
	d := draft(t)
	const sites = 110
	for i := range sites {
		require.NoError(t, d.Add(state.SiteCreated{Name: fmt.Sprintf("s%d", i)}))
	}
	begin, n := time.Now(), 0
	for i := range sites {
		for j := range i {
			n++
			require.NoError(t, put(d, fmt.Sprintf("l%d", n), fmt.Sprintf(`{"between":["s%d","s%d"],"packets":1}`, i, j)))
		}
	}
	require.Less(t, time.Since(begin), 10*time.Second, "%d limits", n)
	require.ErrorContains(t, put(d, "x", `{"between":["s2","s1"],"bytes":1}`), "limit l3 is for the same")
	// What was let go of may be taken.
	require.NoError(t, put(d, "l3", `{"site":"s1","bytes":1}`))
	require.NoError(t, put(d, "x", `{"between":["s2","s1"],"bytes":1}`))
	require.NoError(t, d.Add(state.ObjectDeleted{Kind: LimitKind, Name: "x"}))
	require.NoError(t, put(d, "y", `{"between":["s1","s2"],"bytes":1}`))
	require.ErrorContains(t, put(d, "l3", `{"between":["s1","s2"],"bytes":1}`), "limit y is for the same")
}
