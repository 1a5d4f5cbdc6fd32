package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// errState says that something is not in the state that is waited for.
func errState(s string) error { return errors.New("it is: " + s) }

// Wait asks f until it returns nil, for the time of a step.
func Wait(t *testing.T, f func() error) error {
	t.Helper()
	return lab.Wait(step(t), "it", func(context.Context) error { return f() })
}

// requireOrdinary checks that a process has no root and no capability.
func requireOrdinary(t *testing.T, pid int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000"} {
		require.Contains(t, string(b), want)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	require.NoError(t, err)
	for _, fd := range fds {
		if l, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name())); err == nil {
			require.NotEqual(t, "/dev/net/tun", l)
		}
	}
}

// relayed is how many bytes the hub has forwarded.
func relayed(t *testing.T, w *World) uint64 {
	t.Helper()
	var st api.Status
	require.NoError(t, w.Ask(step(t), &st, "status"))
	return st.Relay.ForwardedBytes
}
