package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/agent/config"
	"causeway/agent/debug"
	"causeway/agent/upgrade"
	"causeway/internal/flagenv"
	"causeway/protocol"
)

// serviceName is the service that an upgrade starts anew.
const serviceName = "causeway-agent.service"

// proof are the conditions of a new version that has found its hub: a session, a
// netmap, and inventory that was acknowledged.
var proof = []string{"tunnel", "hub", "control", "netmap", "nats"}

func upgradeCommand(o *options) *cobra.Command {
	i := upgrade.Installer{}
	cmd := &cobra.Command{
		Use:   "install-upgrade",
		Short: "Install the release that the agent has fetched (run by systemd)",
		Long: "Install the release that the agent has fetched from its hub, if upgrade.allow of the configuration lets it and one of\n" +
			"upgrade.keys signed it: the program is replaced, the service started anew, and if that does not find its hub within\n" +
			"--within, the program that was there before comes back. causeway-agent-upgrade.service runs it, as root.",
		Args: exactArgs(0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			logs, err := newLogs(os.Stderr, "info")
			if err != nil {
				return err
			}
			c, err := config.Load(o.config)
			if err != nil {
				return err
			}
			if o.socket == "" {
				o.socket = c.Debug.Socket
			}
			if i.Packaged, err = upgrade.ReadPackaged(upgrade.PackagedFile); err != nil {
				return err
			}
			i.StateDir, i.Arch, i.Version, i.Settings, i.Log = o.stateDir, runtime.GOARCH, version, c.Upgrade, logs.Logger()
			i.Service = systemd{o.socket, o.stateDir}
			return i.Run(cmd.Context())
		},
	}
	o.stateFlag(cmd)
	o.configFlag(cmd)
	o.socketFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&i.Dir, "upgrade-dir", upgrade.DefaultDir, "directory of results, for root alone to write")
	f.StringVar(&i.Program, "program", upgrade.DefaultProgram, "what is replaced")
	flagenv.DurationVar(f, &i.Within, "within", time.Minute, "how long a new version may take to find its hub")
	flagenv.DurationVar(f, &i.Settle, "settle", 6*time.Second, "how long it has to stay well") // more than a StatusInterval
	return cmd
}

// systemd is the agent's service, asked by its debug socket.
type systemd struct{ socket, stateDir string }

func (systemd) Restart(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "systemctl", "restart", "--no-block", serviceName).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl restart: %w: %s", err, protocol.Folded(string(out)))
	}
	return nil
}

func (s systemd) Probe(ctx context.Context) (version, problem string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var st debug.Status
	if err := debug.NewClient(s.socket).Get(ctx, protocol.DebugStatus, &st); err != nil {
		return "", "the service is " + show(ctx, "SubState") + ", result " + show(ctx, "Result") + ": it does not answer"
	}
	if s.stateDir != "" && st.StateDir != "" && !sameDir(st.StateDir, s.stateDir) {
		return st.Version, "the agent that answers on " + s.socket + " is that of " + st.StateDir + ", not of " + s.stateDir
	}
	for _, name := range proof {
		found := false
		for _, c := range st.Conditions {
			if c.Name == name && !c.OK {
				return st.Version, name + ": " + c.Cause
			}
			found = found || c.Name == name
		}
		if !found {
			return st.Version, "it tells nothing of " + name
		}
	}
	return st.Version, ""
}

func (systemd) Restarts(ctx context.Context) int {
	n, err := strconv.Atoi(show(ctx, "NRestarts"))
	if err != nil {
		return 0
	}
	return n
}

// show is a property of the service.
func show(ctx context.Context, property string) string {
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--value", "-p", property, serviceName).Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
