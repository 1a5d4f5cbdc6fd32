package e2e

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// Podman loads the images and runs them: a hub without root, configured by its
// environment, and an agent that joins it and comes up.
func TestImages(t *testing.T) {
	t.Parallel()
	p := builtPackages(t)
	bin := binaries(t)
	l := lab.New(t)
	inet := l.Switch("inet")
	host := l.Host("hub").Link("eth0", inet, HubAddr+"/24").Sysctl("net.ipv4.ip_unprivileged_port_start=0")
	node := l.Host("n1").Link("eth0", inet, "203.0.113.21/24")
	require.NoError(t, host.Settle(step(t)))
	hub, agent := host.Podman("10.88.1.0/24"), node.Podman("10.88.2.0/24")
	id, err := hub.Run(step(t), "pull", "-q", "oci:"+p.Image("causeway-hub"))
	require.NoError(t, err)
	_, err = hub.Run(step(t), "run", "-d", "--name", "hub", "--network", "host", "-e", "CAUSEWAY_HUB_PUBLIC_HOST="+HubAddr, id)
	require.NoError(t, err)
	s, err := PrepareSystem(l, bin, host, HubAddr)
	require.NoError(t, err)
	require.NoError(t, Wait(t, func() error {
		pid, err := hub.Process(step(t), "hub")
		if err != nil {
			return err
		}
		s.Hub.Socket = filepath.Join("/proc", pid, "root/run/causeway/hub.sock")
		return s.CreateSite(step(t), "s1")
	}))
	status, err := host.Run(step(t), "cat", filepath.Join(filepath.Dir(filepath.Dir(filepath.Dir(filepath.Dir(s.Hub.Socket)))), "status"))
	require.NoError(t, err)
	require.Contains(t, status, "Uid:\t65532\t")
	require.Contains(t, status, "CapEff:\t0000000000000000")
	out, err := hub.Run(step(t), "exec", "hub", "/usr/bin/causeway", "site", "list")
	require.NoError(t, err)
	require.Contains(t, out, "s1")

	id, err = agent.Run(step(t), "pull", "-q", "oci:"+p.Image("causeway-agent"))
	require.NoError(t, err)
	token, err := s.Token(step(t), "s1")
	require.NoError(t, err)
	state := []string{"--network", "host", "-v", "state:/var/lib/causeway-agent"}
	_, err = agent.Run(step(t), append(append([]string{"run", "--rm"}, state...), id, "join", "--name", "n1", token)...)
	require.NoError(t, err)
	// The image has no nft: this host's, with its libraries.
	_, err = agent.Run(step(t), append(append([]string{"run", "-d", "--name", "agent", "--privileged", "-v", "/usr/sbin/nft:/usr/sbin/nft:ro",
		"-v", "/usr/lib:/usr/lib:ro", "-v", "/lib:/lib:ro", "-v", "/lib64:/lib64:ro"}, state...), id)...)
	require.NoError(t, err)
	if err := s.WaitReady(step(t), "n1"); err != nil {
		log, _ := agent.Run(step(t), "logs", "agent")
		require.NoError(t, err, log)
	}
}
