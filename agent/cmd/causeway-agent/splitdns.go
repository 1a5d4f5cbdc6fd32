package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"causeway/agent/config"
	"causeway/agent/identity"
	"causeway/protocol"
)

// resolvedWait bounds what systemd-resolved takes to be told.
const resolvedWait = 20 * time.Second

func splitDNSCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "split-dns",
		Short: "Tell systemd-resolved where names of the zone are answered (run by systemd)",
		Long: "Have systemd-resolved ask the agent for names of the zone 'causeway', and for no others, while the agent answers them;\n" +
			"take that back otherwise. Address and interface are those of the configuration: what the agent writes says when alone.\n" +
			"causeway-agent-dns.service runs it, as root. Where systemd-resolved does not run nothing is done.",
		Args: exactArgs(0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(o.config)
			if err != nil {
				return err
			}
			_, err = os.Lstat(filepath.Join(o.stateDir, identity.SplitDNSFile)) // the directory is another user's: nothing of it is read
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), resolvedWait)
			defer cancel()
			return splitDNS(ctx, c, err == nil && !c.DNS.Off)
		},
	}
	o.stateFlag(cmd)
	o.configFlag(cmd)
	return cmd
}

// splitDNS has systemd-resolved ask the agent, or not, and says so for the agent, who may not look at what resolved keeps.
func splitDNS(ctx context.Context, c config.Config, on bool) error {
	if err := os.Remove(identity.SplitDNSTold); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	program, err := exec.LookPath("resolvectl")
	if err != nil {
		return nil // there is none
	}
	if err := exec.CommandContext(ctx, "systemctl", "is-active", "-q", "systemd-resolved.service").Run(); err != nil {
		return nil // and resolvectl would start it
	}
	dev, err := net.InterfaceByName(c.Tunnel.Interface)
	if err != nil && !on {
		return nil // what was told went with it
	}
	if err != nil {
		return fmt.Errorf("interface %s: %w", c.Tunnel.Interface, err)
	}
	for _, args := range resolvedCommands(dev.Name, c.DNS.Address.String(), on) {
		if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("resolvectl %s: %w: %s", args[0], err, protocol.Folded(string(out)))
		}
	}
	if !on {
		return nil
	}
	return os.WriteFile(identity.SplitDNSTold, fmt.Appendf(nil, "%d %s\n", dev.Index, c.DNS.Address), 0o644)
}

// resolvedCommands tell systemd-resolved, or have it forget. The zone is signed by nobody, and asked for on this host alone.
func resolvedCommands(dev, at string, on bool) [][]string {
	if !on {
		return [][]string{{"revert", dev}}
	}
	return [][]string{{"dnssec", dev, "no"}, {"dnsovertls", dev, "no"}, {"default-route", dev, "no"}, {"domain", dev, "~causeway"}, {"dns", dev, at}}
}
