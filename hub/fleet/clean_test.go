package fleet

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// What an agent says is shown on the terminals of those who run the hub.
func TestNothingOfAnAgentReachesATerminal(t *testing.T) {
	const bad = "x\x1b[2J\n"
	h := protocol.Hello{AgentVersion: bad, Engine: bad, Features: []string{bad}, Labels: map[string]string{"rack\x1b": "a", "row": "a\x1b[2J", "zone": "eu"}}
	CleanHello(&h)
	zoned := netip.AddrPortFrom(netip.MustParseAddr("fe80::1").WithZone(bad), 5)
	st := protocol.Status{Paths: []protocol.PathStatus{{Name: bad, Path: bad, Addr: zoned}, {}},
		Conditions: []protocol.Condition{{Name: bad, Cause: bad, DependsOn: []string{bad}}}}
	CleanStatus(&st)
	a := protocol.NetmapAck{Refused: []protocol.RefusedPart{{Prefix: bad, Reason: bad}}, Errors: []string{bad}}
	CleanAck(&a)
	b, err := json.Marshal([]any{h.AgentVersion, h.Engine, h.Features, h.Labels, st.Paths, st.Conditions, a})
	require.NoError(t, err)
	require.NotContains(t, strings.ToLower(string(b)), `\u001b`)
	require.NotContains(t, string(b), `\n`)
	require.Equal(t, map[string]string{"zone": "eu"}, h.Labels, "a bad label takes no other with it")
	require.Equal(t, "[fe80::1]:5", st.Paths[0].Addr.String())
	require.False(t, st.Paths[1].Addr.IsValid())
}
