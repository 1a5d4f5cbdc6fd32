package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// A backend that nobody asks whether it is ready, and that refuses: after some connections the client's node leaves it for a while, says
// why, and what is open at the other one stays.
func TestServiceRefused(t *testing.T) {
	lab.Counts(t)
	s, nodes := newSmall(t, 3)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	here, two, three := nodes[0].Pod, nodes[1].Pod, nodes[2].Pod
	startServer(t, s, three)
	applyText(t, s, fmt.Sprintf(`kind: service
name: web
ports: [{name: who, port: 80, target: 7005}]
backends:
- {site: s2, addresses: [%s]}
- {site: s3, addresses: [%s]}
prefer: order
order: [s2, s3]
health: {type: none}
`, two.V4, three.V4))
	vip := vipOf(t, s, "web")
	connect := func() error {
		_, err := here.Host.Run(step(t), "bash", "-c", "exec 3<>/dev/tcp/"+vip+"/80")
		return err
	}
	require.NoError(t, Wait(t, func() error {
		if err := connect(); err == nil || !strings.Contains(err.Error(), "refused") {
			return fmt.Errorf("not refused yet: %v", err)
		}
		return nil
	}))
	tries := 0
	require.NoError(t, Wait(t, func() error { tries++; return connect() }))
	t.Logf("refused %d times", tries)
	require.Less(t, tries, 60, "a look each second, of some tries each")
	held := startClient(t, s, here.Host, "connected to "+three.V4, "wait", vip+":80", "-streams", "5", "-every", "50ms")
	var v protocol.ServicesView
	require.NoError(t, nodes[0].ask(step(t), protocol.DebugServices, &v))
	require.Len(t, v.Services, 1)
	for _, e := range v.Services[0].Endpoints {
		if e.Addr.String() == two.V4 {
			require.False(t, e.Use)
			require.Regexp(t, `^it refused \d+ connections in a row$`, e.Why)
		}
	}
	// Now it serves, and has its connections again.
	startServer(t, s, two)
	require.NoError(t, Wait(t, func() error {
		out, err := here.Host.Run(step(t), s.Bin.Labtool, "gaps", vip+":80", "-every", "2ms", "-streams", "20")
		if err != nil || !strings.Contains(out, two.V4) {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	}))
	var a waited
	require.NoError(t, held.End(step(t), &a))
	require.Equal(t, 5, a.Open, a.Errors)
}
