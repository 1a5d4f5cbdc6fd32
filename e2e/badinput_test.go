package e2e

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// Bad input ends in one line that says what, where and what to do.
func TestBadInput(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 1)
	n, host := nodes[0], nodes[0].Host
	joinSmall(t, s, nodes, 1)
	require.NoError(t, s.WaitReady(step(t), "n1"))
	require.NoError(t, n.Proc.Stop(step(t)))
	dir := host.Dir()
	write := func(name, text string) string {
		f := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(f, []byte(text), 0o644))
		return f
	}
	closed := filepath.Join(dir, "closed")
	require.NoError(t, os.Mkdir(closed, 0o555))
	bin := s.Bin
	run := func(config string) []string {
		return []string{bin.Agent, "run", "--state-dir", n.StateDir, "--debug-socket", n.Socket, "--config", config}
	}
	hub := func(args ...string) []string {
		return append([]string{bin.Hub, "run", "--data-dir", filepath.Join(dir, "other"), "--admin-socket", filepath.Join(dir, "other.sock"), "--public-host", "203.0.113.21"}, args...)
	}
	for name, c := range map[string]struct {
		args []string
		user *lab.User
		want []string
	}{
		"hub, unknown flag":          {hub("--nosuch"), nil, []string{"--nosuch"}},
		"hub, unknown config key":    {hub("--config", write("hub1.yaml", "nosuchkey: 1\n")), nil, []string{"hub1.yaml", "nosuchkey"}},
		"hub, bad overlay":           {hub("--overlay", "10.0.0.0/99"), nil, []string{"10.0.0.0/99"}},
		"hub, no data directory":     {[]string{bin.Hub, "run", "--data-dir", closed + "/data", "--admin-socket", closed + "/s", "--public-host", "203.0.113.21"}, lab.Nobody, []string{closed}},
		"hub, config file missing":   {hub("--config", dir+"/missing.yaml"), nil, []string{"missing.yaml"}},
		"agent, unknown flag":        {append(run(n.Config), "--nosuch"), nil, []string{"--nosuch"}},
		"agent, unknown command":     {[]string{bin.Agent, "nosuch"}, nil, []string{"nosuch"}},
		"agent, unknown config key":  {run(write("agent1.yaml", "nosuchkey: 1\n")), nil, []string{"agent1.yaml", "nosuchkey"}},
		"agent, bad CIDR":            {run(write("agent2.yaml", "routes:\n  - 10.0.0.0/99\n")), nil, []string{"agent2.yaml", "10.0.0.0/99"}},
		"agent, bad accept":          {run(write("agent3.yaml", "accept:\n  - everything\n")), nil, []string{"agent3.yaml", "everything"}},
		"agent, neither root nor":    {[]string{bin.Agent, "run", "--state-dir", filepath.Join(dir, "nobody"), "--debug-socket", dir + "/nobody.sock", "--config", n.Config}, lab.Nobody, nil},
		"agent, not joined":          {[]string{bin.Agent, "run", "--state-dir", filepath.Join(dir, "none"), "--debug-socket", n.Socket, "--config", n.Config}, nil, []string{"join"}},
		"agent, status without run":  {[]string{bin.Agent, "status", "--debug-socket", filepath.Join(dir, "none.sock")}, nil, []string{"none.sock"}},
		"cli, unknown flag":          {[]string{bin.CLI, "--socket", s.Hub.Socket, "status", "--nosuch"}, nil, []string{"--nosuch"}},
		"cli, no hub":                {[]string{bin.CLI, "--socket", filepath.Join(dir, "none.sock"), "status"}, nil, []string{"none.sock"}},
		"cli, unknown site":          {[]string{bin.CLI, "--socket", s.Hub.Socket, "token", "create", "--site", "nosuchsite"}, nil, []string{"nosuchsite"}},
		"cli, bad site name":         {[]string{bin.CLI, "--socket", s.Hub.Socket, "site", "create", "Not_A_Label"}, nil, []string{"Not_A_Label"}},
		"cli, bad route":             {[]string{bin.CLI, "--socket", s.Hub.Socket, "token", "create", "--site", "s1", "--route", "10.0.0.0/99"}, nil, []string{"10.0.0.0/99"}},
		"cli, unknown node":          {[]string{bin.CLI, "--socket", s.Hub.Socket, "route", "approve", "nosuchnode", "10.9.0.0/16"}, nil, []string{"nosuchnode"}},
		"cli, bad ttl":               {[]string{bin.CLI, "--socket", s.Hub.Socket, "token", "create", "--site", "s1", "--ttl", "soon"}, nil, []string{"soon"}},
		"cli, unknown output format": {[]string{bin.CLI, "--socket", s.Hub.Socket, "node", "list", "-o", "xml"}, nil, []string{"xml"}},
	} {
		t.Run(name, func(t *testing.T) {
			// The hub's user owns its admin socket's directory; the admin is root.
			_, err := hostOf(s, c.args, host).RunAs(within(t, 20*time.Second), c.user, c.args...)
			requireOneLine(t, err, c.want...)
		})
	}

	t.Run("agent, no TUN device", func(t *testing.T) {
		// A mount namespace with an empty /dev/net.
		_, err := host.Run(within(t, 20*time.Second), append([]string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /dev/net && exec "$@"`, "sh"}, run(n.Config)...)...)
		requireOneLine(t, err, "/dev/net/tun")
	})
	t.Run("agent, without CAP_NET_ADMIN", func(t *testing.T) {
		_, err := host.Run(within(t, 20*time.Second), append([]string{"setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"}, run(n.Config)...)...)
		requireOneLine(t, err, "CAP_NET_ADMIN")
	})
	t.Run("agent, state directory in use", func(t *testing.T) {
		require.NoError(t, n.Start())
		require.NoError(t, s.WaitReady(step(t), "n1"))
		_, err := host.Run(within(t, 20*time.Second), run(n.Config)...)
		requireOneLine(t, err, n.StateDir)
	})
	t.Run("hub away at start", func(t *testing.T) {
		// Not an error: the agent waits for its hub and says so.
		require.NoError(t, n.Proc.Stop(step(t)))
		s.Hub.Proc.Kill()
		require.NoError(t, n.Start())
		require.NoError(t, lab.Wait(step(t), "health to name the hub", func(ctx context.Context) error {
			out, err := n.Agent(ctx, "health")
			if err != nil && out == "" {
				return err
			}
			if !n.Proc.Running() {
				return lab.Permanent(errState("the agent ended: " + n.Proc.Output()))
			}
			return nil
		}))
	})
}

// hostOf is where a command runs: the admin CLI on the hub's host.
func hostOf(s *System, args []string, other *lab.Host) *lab.Host {
	if args[0] == s.Bin.CLI {
		return s.Hub.Host
	}
	return other
}
