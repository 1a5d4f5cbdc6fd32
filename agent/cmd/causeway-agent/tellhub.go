package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"causeway/agent"
	"causeway/agent/config"
	"causeway/agent/identity"
	"causeway/protocol"
)

// tellGrace is how long an agent that has told its hub may take to end.
const tellGrace = 5 * time.Second

// tellHub runs an agent just long enough to tell a hub that this node leaves. Root does that as
// the owner of the state directory, with the service's capability: an agent writes there, and
// whoever owns it may have put there what he likes.
func tellHub(ctx context.Context, o *options, c config.Config) error {
	s, err := identity.Open(o.stateDir)
	if err != nil {
		return err
	}
	fi, err := os.Stat(o.stateDir)
	if err != nil {
		s.Close()
		return err
	}
	owner := fi.Sys().(*syscall.Stat_t)
	if os.Geteuid() != 0 || owner.Uid == 0 {
		defer s.Close()
		return runToTell(ctx, s, o, c)
	}
	if err := s.Close(); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, reachWait+tellGrace)
	defer cancel()
	args := []string{"tell-hub", "--state-dir", o.stateDir, "--debug-socket", o.socket}
	if o.config != "" {
		args = append(args, "--config", o.config)
	}
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Dir, cmd.WaitDelay = "/", time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}, AmbientCaps: []uintptr{unix.CAP_NET_ADMIN}, Pdeathsig: syscall.SIGKILL}
	var said strings.Builder
	cmd.Stderr = &said
	err = cmd.Run()
	if text := strings.TrimPrefix(protocol.Folded(said.String()), "causeway-agent: "); err != nil && text != "" {
		return errors.New(text)
	}
	if err != nil {
		return fmt.Errorf("tell the hub as user %d: %w", owner.Uid, err)
	}
	return nil
}

// tellCommand is the half of tellHub that is not root's.
func tellCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "tell-hub", Hidden: true, Short: "Tell the hub that this node leaves (run by leave)", Args: exactArgs(0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(o.config)
			if err != nil {
				return err
			}
			s, err := identity.Open(o.stateDir)
			if err != nil {
				return err
			}
			defer s.Close()
			return runToTell(cmd.Context(), s, o, c)
		},
	}
	o.stateFlag(cmd)
	o.configFlag(cmd)
	o.socketFlag(cmd)
	return cmd
}

func runToTell(ctx context.Context, s *identity.Store, o *options, c config.Config) error {
	if err := checkHost(); err != nil {
		return err
	}
	a, err := agent.New(agent.Config{Store: s, Settings: c, Socket: o.socket, Version: version, Log: zerolog.Nop()})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, reachWait)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	err = a.LeaveWhenConnected(ctx)
	cancel()
	if runErr := <-done; err == nil || runErr == nil {
		return err
	} else {
		return runErr
	}
}
