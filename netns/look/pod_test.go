package look

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/netns/netnstest"
	"causeway/protocol"
)

// A namespace elsewhere on the machine that has a pod's address by chance is not taken
// for the pod.
func TestPodsBehindThisHostAlone(t *testing.T) {
	netnstest.Namespace(t)
	space := func(script string) int {
		c := exec.Command("unshare", "-n", "sh", "-ec", script+"; exec sleep 600")
		require.NoError(t, c.Start())
		t.Cleanup(func() { c.Process.Kill(); c.Wait() })
		return c.Process.Pid
	}
	const addr = "10.1.0.9"
	flow := Flow{Local: netip.MustParseAddr(addr), Remote: netip.MustParseAddr("10.2.0.9"), Proto: protocol.FlowICMP}
	alien := space("ip link set lo up; ip addr add " + addr + "/24 dev lo")
	pod := space("while ! ip link show eth0; do sleep 0.05; done; ip link set eth0 up; ip addr add " + addr + "/24 dev eth0")
	has := func(pid int) func(context.Context) error {
		return func(context.Context) error {
			if !hasAddress(fmt.Sprintf("/proc/%d/net", pid), flow.Local) {
				return fmt.Errorf("process %d has no %s", pid, addr)
			}
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, lab.Wait(ctx, "the alien's address", has(alien)))
	require.Empty(t, spacesOf(flow))
	require.NoError(t, lab.Wait(ctx, "the pod's namespace", func(context.Context) error {
		return exec.Command("ip", "link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(pod)).Run()
	}))
	require.NoError(t, lab.Wait(ctx, "the pod's address", has(pod)))
	got := spacesOf(flow)
	require.Len(t, got, 1)
	require.Equal(t, pod, got[0].PID)
}

func TestParseSocket(t *testing.T) {
	for in, want := range map[string]string{
		"0100007F:1F90":                         "127.0.0.1:8080",
		"00000000:01BB":                         "0.0.0.0:443",
		"00000000000000000000000000000000:1BA8": "[::]:7080",
		"B80D0120000000000000000001000000:0050": "[2001:db8::1]:80",
	} {
		got, ok := parseSocket(in)
		require.True(t, ok, in)
		require.Equal(t, want, got.String())
	}
	for _, in := range []string{"", "0100007F", "zz:1", "0100:1", "0100007F:12345"} {
		_, ok := parseSocket(in)
		require.False(t, ok, in)
	}
}
