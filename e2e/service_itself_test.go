package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A pod that is its own only backend, on a bridge that hands frames to netfilter: its port is put into hairpin mode while the service is there.
func TestServiceOfItself(t *testing.T) {
	s, nodes := newSmall(t, 1)
	n := nodes[0]
	joinSmall(t, s, nodes, 1)
	require.NoError(t, s.WaitReady(step(t), "n1"))
	startServer(t, s, n.Pod)
	n.Host.Sh("ls /proc/sys/net/bridge/bridge-nf-call-iptables >/dev/null; ping -c1 -W2 " + n.Pod.V4 + " >/dev/null; ping -c1 -W2 " + n.Pod.V6 + " >/dev/null")
	hairpin := func() string { return n.Host.Sh("bridge -d link show | grep -o 'hairpin o[nf]*' | paste -sd' '") }
	require.Equal(t, "hairpin off\n", hairpin())
	applyText(t, s, fmt.Sprintf(`kind: service
name: web
ports: [{port: 80, target: 7005}]
backends:
- {site: s1, addresses: [%s, "%s"]}
`, n.Pod.V4, n.Pod.V6))
	vip := vipOf(t, s, "web")
	for _, from := range []string{"pod", "host"} {
		h := n.Pod.Host
		if from == "host" {
			h = n.Host
		}
		require.NoError(t, Wait(t, func() error {
			out, err := h.Run(step(t), s.Bin.Labtool, "gaps", vip+":80", "-every", "5ms", "-streams", "20")
			if err != nil || !strings.Contains(out, n.Pod.V4) {
				return fmt.Errorf("%v: %s", err, out)
			}
			return nil
		}), from)
	}
	require.Equal(t, "hairpin on\n", hairpin())
	_, err := s.CLI(step(t), "delete", "service", "web", "--yes")
	require.NoError(t, err)
	require.NoError(t, Wait(t, func() error {
		if got := hairpin(); got != "hairpin off\n" {
			return fmt.Errorf("%s", got)
		}
		return nil
	}))
}
