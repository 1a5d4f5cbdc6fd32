package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// A limit of memory that an operator gives by GOMEMLIMIT stays, and hub and agent say so.
// (That of a control group: TestHostileNATSInMemoryGroup.)
func TestMemoryLimitIsTold(t *testing.T) {
	t.Parallel()
	l, hub, nodes := smallHosts(t, 1)
	s, err := PrepareSystem(l, binaries(t), hub, HubAddr)
	require.NoError(t, err)
	s.Hub.Env = []string{"GOMEMLIMIT=200MiB"}
	require.NoError(t, s.StartHub(step(t)))
	require.NoError(t, nodes[0].Host.Settle(step(t)))
	require.NoError(t, s.CreateSite(step(t), "s1"))
	n, err := s.Join(step(t), NodeSpec{Name: "n1", Site: "s1", Host: nodes[0].Host, Env: []string{"GOMEMLIMIT=100MiB"}})
	require.NoError(t, err)
	for p, want := range map[*lab.Process]string{s.Hub.Proc: `"bytes":209715200`, n.Proc: `"bytes":104857600`} {
		require.NoError(t, p.WaitOutput(step(t), "memory limit, by GOMEMLIMIT"))
		require.Contains(t, p.Output(), want)
	}
}
