package fleet

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

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

// What a node says of backends is bounded, and fits the message that it comes in.
func TestReadinessIsBounded(t *testing.T) {
	long := strings.Repeat("x", 63)
	at := netip.MustParseAddr("fd63:7761:7900:1111:1111:1111:1111:1111")
	st := protocol.Status{Services: []protocol.ServiceReadiness{
		{Service: "No", Addr: at}, {Service: "web"}, {Service: "web", Addr: at, Ready: 3},
		{Service: "web", Addr: netip.MustParseAddr("::ffff:10.1.1.1"), Ready: protocol.NotReady, Cause: "x\x1b[2J\n" + strings.Repeat("y", 500)},
	}}
	for range protocol.MaxServiceReadiness {
		st.Services = append(st.Services, protocol.ServiceReadiness{Service: long, Addr: at, Ready: protocol.NotReady, Cause: strings.Repeat("z", protocol.MaxReadinessCause), Since: time.Now()})
	}
	CleanStatus(&st)
	require.Len(t, st.Services, protocol.MaxServiceReadiness-3)
	require.Equal(t, "10.1.1.1", st.Services[0].Addr.String())
	require.LessOrEqual(t, len(st.Services[0].Cause), protocol.MaxReadinessCause)
	require.NotContains(t, st.Services[0].Cause, "\x1b")
	b, err := json.Marshal(st)
	require.NoError(t, err)
	require.Less(t, len(b), protocol.MaxToHub)
}
