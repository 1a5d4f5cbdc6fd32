package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
	"causeway/protocol"
)

// nextVersion is packagesVersion with another patch level.
func nextVersion(patch int) string {
	return strings.Replace(packagesVersion, "1.2.3", fmt.Sprintf("1.2.%d", patch), 1)
}

// All that can become of an upgrade; a soak has it. TestSystemdAgent has a good one and
// one that goes back by itself.
//
// Not parallel: a machine is heavy.
func TestSystemdUpgrade(t *testing.T) {
	if !soak() {
		return // TestSystemdAgent stands for it
	}
	p := builtPackages(t)
	m, s, nodes := agentMachine(t)
	m.install(p, "causeway-agent")
	m.join(s, nodes[0].Pod, nodes[1].Pod)
	m.upgrades(t, p, s, nodes[0].Pod, nodes[1].Pod)
}

// upgrades runs 'causeway node upgrade' of a real service: a good release under traffic, a
// broken one that goes back by itself, and what the hub is told of each. A soak also has
// one that never finds its hub, one that nobody whom the host trusts has signed, downgrades, and
// a host that loses power meanwhile.
func (m *machine) upgrades(t *testing.T, p Packages, s *System, me, other *Pod) {
	key, err := p.PublicKey()
	require.NoError(t, err)
	program, err := os.ReadFile(filepath.Join(m.Root, "usr/bin/causeway-agent"))
	require.NoError(t, err)
	put := func(key, version, minimum string, program []byte) {
		require.NoError(t, s.PutRelease(step(t), key, version, minimum, program))
	}
	upgrade := func(args ...string) (string, error) {
		return s.CLI(within(t, stepTimeout*2), append([]string{"node", "upgrade"}, args...)...)
	}
	refused := func(want string, args ...string) {
		t.Helper()
		_, err := upgrade(args...)
		require.ErrorContains(t, err, want)
	}
	node := func() api.Node {
		list, err := s.Nodes(step(t))
		require.NoError(t, err)
		return list["n1"]
	}
	runs := func(version string) {
		t.Helper()
		require.Contains(t, m.do("causeway-agent --version"), version)
		require.Equal(t, version, node().AgentVersion)
		says := "this is " + version + ", "
		if version == packagesVersion {
			says += "as the package manager says"
		} else {
			says += "the package manager names "
		}
		require.Contains(t, m.do("causeway-agent doctor || :"), says)
		m.joined(s, "n1", me, other)
		for _, left := range []string{"usr/bin/causeway-agent.previous", "usr/bin/causeway-agent.new", "var/lib/causeway-agent-upgrade/pending.json", "var/lib/causeway-agent/upgrade"} {
			require.NoError(t, Wait(t, func() error {
				if _, err := os.Lstat(filepath.Join(m.Root, left)); !errors.Is(err, os.ErrNotExist) {
					return fmt.Errorf("%s is left: %v", left, err)
				}
				return nil
			}))
		}
	}
	patched := func(old, new string) []byte {
		b, err := Patched(program, old, new)
		require.NoError(t, err)
		return b
	}
	v4, v5, v6, v7 := nextVersion(4), nextVersion(5), nextVersion(6), nextVersion(7)

	refused("the hub has no release: put the files of 'make package' into", "n1")
	put(p.Key(), v4, packagesVersion, patched(packagesVersion, v4))
	refused("node n1 does not let its hub upgrade it", "n1")
	m.do(`printf 'upgrade:\n  allow: true\n  keys: ["` + key + `"]\n' >/etc/causeway/agent.yaml
		d=/etc/systemd/system/causeway-agent-upgrade.service.d; mkdir -p $d
		sed -n 's/^ExecStart=\(.*\)install-upgrade.*/[Service]\nExecStart=\nExecStart=\1install-upgrade --within 10s --settle 1s'"'"'/p' /usr/lib/systemd/system/causeway-agent-upgrade.service >$d/quick.conf
		systemctl daemon-reload; systemctl reload causeway-agent`)
	require.NoError(t, Wait(t, func() error {
		_, err := upgrade("n1", "--version", "9.9.9")
		if err == nil || !strings.Contains(err.Error(), "no release 9.9.9") {
			return fmt.Errorf("%v", err)
		}
		return nil
	}))

	// No release has named a minimum here yet: the package's version is one.
	t.Run("below the package", func(t *testing.T) {
		old := nextVersion(1)
		put(p.Key(), old, old, patched(packagesVersion, old))
		require.NoError(t, Wait(t, func() error { // the hub may not have heard of the reload yet
			_, err := upgrade("n1", "--version", old)
			if err == nil {
				return lab.Permanent(errors.New("it was taken back"))
			}
			if !strings.Contains(err.Error(), old+" is below "+packagesVersion+", which this host's package installed; upgrade.downgrade of the host's configuration allows it") {
				return err
			}
			return nil
		}))
		require.Equal(t, packagesVersion+"\n", m.do("cat /usr/lib/causeway-agent/version"))
		require.Contains(t, m.do("causeway-agent --version"), packagesVersion)
		require.Equal(t, packagesVersion, node().AgentVersion)
	})
	t.Run("good", func(t *testing.T) {
		_, err := s.Serve(step(t), other.Host)
		require.NoError(t, err)
		f := startTraffic(t, s, me, other)
		var out string
		// By the command that doctor prints, once the hub has heard of the reload.
		c := &curing{t: t, s: s}
		var mend []string
		require.NoError(t, lab.Wait(step(t), "doctor to name the command", func(ctx context.Context) error {
			text, _, out := c.finding(ctx, "agent-version", "n1")
			if mend = strings.Fields(text); len(mend) < 3 || mend[0] != "causeway" {
				return errors.New(out)
			}
			return nil
		}))
		require.Equal(t, []string{"causeway", "node", "upgrade"}, mend[:3])
		t.Logf("applied: %s", strings.Join(mend, " "))
		require.NoError(t, Wait(t, func() error {
			if out, err = upgrade(mend[3:]...); err != nil && !strings.Contains(err.Error(), "does not let its hub") && !strings.Contains(err.Error(), "mend that first") && !strings.Contains(err.Error(), "not connected") {
				return lab.Permanent(err)
			}
			return err
		}))
		require.Regexp(t, `State +done`, out)
		runs(v4)
		t.Logf("longest gap of a connection: %.1f s", f.end(t))
		require.Equal(t, &api.NodeUpgrade{Version: v4, State: protocol.UpgradeDone}, node().Upgrade)
		refused("run "+v4+" already", "n1", "--version", v4)
	})
	failed := func(t *testing.T, version, want string) {
		t.Helper()
		_, err := upgrade("n1", "--version", version)
		require.ErrorContains(t, err, "the upgrade to "+version+" stopped: node n1: ")
		require.ErrorContains(t, err, want)
		runs(v4)
		show, err := s.CLI(step(t), "node", "show", "n1")
		require.NoError(t, err)
		require.Contains(t, show, want)
		events, err := s.CLI(step(t), "events")
		require.NoError(t, err)
		require.Contains(t, events, "upgrade to "+version+" failed: ")
	}
	t.Run("exits at once", func(t *testing.T) {
		put(p.Key(), v5, packagesVersion, []byte("#!/bin/sh\n[ \"$1\" != --version ] || { echo causeway-agent version "+v5+"; exit 0; }\nexit 3\n"))
		failed(t, v5, v4+" is back")
	})
	more := func(name string, f func(t *testing.T)) {
		if soak() {
			t.Run(name, f)
		}
	}
	more("never finds its hub", func(t *testing.T) {
		b, err := Patched(patched(packagesVersion, v6), "causeway probe v1\n", "causeway probe v0\n")
		require.NoError(t, err)
		put(p.Key(), v6, packagesVersion, b)
		failed(t, v6, "version "+v6+" was not well within 10s (hub: no hub answers")
	})
	more("signed by somebody else", func(t *testing.T) {
		foreign := filepath.Join(t.TempDir(), "key")
		sh(t, `ssh-keygen -q -t ed25519 -N '' -f "$1"`, foreign)
		put(foreign, v7, packagesVersion, patched(packagesVersion, v7))
		failed(t, v7, "signed by a key that is not trusted here")
	})
	more("below the minimum", func(t *testing.T) {
		old := nextVersion(0)
		put(p.Key(), old, old, patched(packagesVersion, old))
		failed(t, old, old+" is below "+packagesVersion)
	})
	more("back", func(t *testing.T) {
		put(p.Key(), packagesVersion, packagesVersion, program)
		_, err := upgrade("n1", "--version", packagesVersion)
		require.NoError(t, err)
		runs(packagesVersion)
	})
	more("plug pulled while it proves itself", func(t *testing.T) {
		m.do("rm -r /etc/systemd/system/causeway-agent-upgrade.service.d; systemctl daemon-reload")
		_, err := upgrade("n1", "--version", v6, "--no-wait")
		require.NoError(t, err)
		require.NoError(t, Wait(t, func() error {
			_, err := os.Lstat(filepath.Join(m.Root, "var/lib/causeway-agent-upgrade/pending.json"))
			return err
		}))
		m.reboot(true)
		require.NoError(t, Wait(t, func() error {
			out, err := upgrade("--status")
			if !strings.Contains(out, packagesVersion+" is back") {
				return fmt.Errorf("%w\n%s", err, out)
			}
			return nil
		}))
		runs(packagesVersion)
	})
	audit, err := s.CLI(step(t), "audit", "-o", "wide")
	require.NoError(t, err)
	require.Contains(t, audit, "node upgrade to "+v4)

	m.do("rm -rf /etc/systemd/system/causeway-agent-upgrade.service.d; systemctl daemon-reload")
}
