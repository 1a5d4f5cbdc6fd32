package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"causeway/agent/config"
	"causeway/agent/debug"
	"causeway/agent/identity"
	"causeway/netns"
	"causeway/protocol"
)

const (
	// stopWait is how long an agent that was asked to leave may take to end.
	stopWait = 10 * time.Second
	// askWait is how long an agent that runs may take to answer.
	askWait = 30 * time.Second
	// reachWait is how long a hub is looked for where no agent runs.
	reachWait = 8 * time.Second
)

func leaveCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Take everything back and tell the hub",
		Long: "End this node: tell the hub, stop the agent, remove interface, routes, rules and identity, so that\n" +
			"the host is as it was before 'join'. Without a hub it does all but telling it.",
		Args: exactArgs(0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return leave(cmd, o) },
	}
	o.stateFlag(cmd)
	o.configFlag(cmd)
	o.socketFlag(cmd)
	return cmd
}

func leave(cmd *cobra.Command, o *options) error {
	ctx := cmd.Context()
	c, err := config.Load(o.config)
	if err != nil {
		return err
	}
	client, err := o.agent(cmd, true)
	if err != nil {
		return err
	}
	if err := netns.CheckHost(); errors.Is(err, netns.ErrPrivilege) {
		return err
	}
	id, idErr := identity.Peek(o.stateDir)
	told, why := false, ""
	asked, cancel := context.WithTimeout(ctx, askWait)
	r, err := client.Leave(asked)
	cancel()
	switch {
	case err == nil:
		told, why = r.Told, r.Error
	case !errors.Is(err, debug.ErrNotRunning):
		return err
	case o.whoseState(cmd, err) != nil:
		return o.whoseState(cmd, err)
	case idErr == nil:
		if err := tellHub(ctx, o, c); err != nil {
			if errors.Is(err, identity.ErrLocked) {
				return fmt.Errorf("an agent runs on %s but does not answer on %s; give its socket with --debug-socket, or stop it first", o.stateDir, o.socket)
			}
			why = err.Error()
		} else {
			told = true
		}
	}

	var s *identity.Store
	if _, err := os.Stat(o.stateDir); err == nil {
		if s, err = openWithin(ctx, o.stateDir, stopWait); err != nil {
			return fmt.Errorf("the agent has not stopped: %w", err)
		}
		defer s.Close()
	}
	host := netns.NewHost(o.stateDir, zerolog.Nop())
	if err := idle(ctx, c.Tunnel.Interface, stopWait); err != nil {
		return err
	}
	if err := host.Remove(ctx, netns.Config{Interface: c.Tunnel.Interface, Mark: netns.DefaultMark, Table: netns.DefaultTable, Overlay: id.Overlay}); err != nil {
		return fmt.Errorf("take back the host's network: %w; run 'causeway-agent leave' again", err)
	}
	if l := host.Left(); len(l) > 0 {
		fmt.Fprintf(cmd.OutOrStdout(), "what these settings were before is not known, because the record of it was damaged; they are left as they are: %s\n", strings.Join(l, ", "))
	}
	if s != nil {
		if err := s.RemoveAll(id.MadeDir); err != nil {
			return err
		}
	}
	if d := filepath.Dir(o.socket); filepath.Base(d) == "causeway" {
		// If it is empty: a hub on this host has its socket there too. With the
		// sticky bit it is the packages', for the services of several users.
		if st, err := os.Stat(d); err == nil && st.Mode()&os.ModeSticky == 0 {
			os.Remove(d)
		}
	}
	out := cmd.OutOrStdout()
	switch {
	case errors.Is(idErr, identity.ErrNotJoined) && !told && why == "":
		fmt.Fprintln(out, "this host had not joined; what was left of an agent is removed")
	case idErr != nil && !told:
		fmt.Fprintf(out, "what was left of an agent is removed; the hub could not be told, as nobody knows which node this was (%s): 'causeway node list' there shows it as unreachable, then 'causeway node revoke NODE'\n", protocol.Folded(idErr.Error()))
	case told:
		fmt.Fprintf(out, "node %s has left; the hub was told\n", id.Name)
	default:
		fmt.Fprintf(out, "node %s has left; the hub could not be told (%s): run 'causeway node revoke %s' there\n", id.Name, protocol.Folded(why), id.Name)
	}
	return nil
}

// idle waits until nobody holds the device any more that is about to be removed: whoever still does
// is an agent of another state directory.
func idle(ctx context.Context, dev string, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		used, err := netns.InUse(dev)
		if err != nil || !used {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("a running agent has interface %s, and it is not the one of this state directory: the host's network is left alone; give that agent's --state-dir and --debug-socket, or the --config that names this one's interface", dev)
		case <-t.C:
		}
	}
}

// openWithin waits for the state directory until the agent has let go of it.
func openWithin(ctx context.Context, dir string, wait time.Duration) (*identity.Store, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		s, err := identity.Open(dir)
		if !errors.Is(err, identity.ErrLocked) {
			return s, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-t.C:
		}
	}
}
