package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"causeway/agent"
	"causeway/agent/config"
	"causeway/agent/debug"
	"causeway/agent/identity"
	"causeway/internal/flagenv"
	"causeway/internal/service"
	"causeway/netns"
)

// envPrefix begins the environment variables that stand for flags of run.
const envPrefix = "CAUSEWAY_AGENT"

// stopWithin bounds a graceful stop.
const stopWithin = 4 * time.Second

func runCommand(o *options) *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent in the foreground",
		Long: "Run the agent until SIGTERM. Interface, routes and rules stay when it stops, so that nothing\n" +
			"leaks to the default route meanwhile; 'causeway-agent leave' takes them away.\n\n" +
			"On SIGHUP it reads its configuration again, takes routes, accept and labels, and names in its log\n" +
			"what needs a restart. Environment variables stand for flags: CAUSEWAY_AGENT_STATE_DIR for --state-dir.",
		Args: exactArgs(0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := flagenv.Apply(cmd.Flags(), envPrefix); err != nil {
				return err
			}
			logs, err := newLogs(os.Stderr, o.logLevel)
			if err != nil {
				return err
			}
			log := logs.Logger()
			c, err := config.Load(o.config)
			if err != nil {
				return err
			}
			if check {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "the configuration is good")
				return err
			}
			if err := checkHost(); err != nil {
				return err
			}
			s, err := identity.Open(o.stateDir)
			if err != nil {
				return err
			}
			defer s.Close()
			a, err := agent.New(agent.Config{Store: s, Settings: c, Socket: o.socket, Version: version, Log: log, Logs: logs})
			if err != nil {
				return err
			}
			return service.Run(cmd.Context(), service.Daemon{
				Run: a.Run, Ready: a.Ready(), Alive: a.Alive, StopWithin: stopWithin, Log: log,
				Reload: func() error {
					c, err := config.Load(o.config)
					if err == nil {
						a.Reload(cmd.Context(), c)
					}
					return err
				},
			})
		},
	}
	o.stateFlag(cmd)
	o.configFlag(cmd)
	o.socketFlag(cmd)
	cmd.Flags().BoolVar(&check, "check", false, "check the configuration and exit")
	cmd.Flags().StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

// checkHost says in one line why no agent can run here.
func checkHost() error {
	if err := netns.CheckHost(); err != nil {
		return err
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	switch {
	case err == nil:
		f.Close()
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("there is no /dev/net/tun: load the kernel module with 'modprobe tun', or give the container the device")
	case errors.Is(err, fs.ErrPermission):
		return errors.New("/dev/net/tun: permission denied: run as root, or let the device through to the container")
	case errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENXIO):
		return errors.New("/dev/net/tun does not work: the kernel module tun is not loaded; run 'modprobe tun'")
	}
	return fmt.Errorf("/dev/net/tun cannot be opened: %w", err)
}

// newLogs writes for people on a terminal and JSON elsewhere.
func newLogs(w *os.File, level string) (*debug.Logs, error) {
	l, err := zerolog.ParseLevel(level)
	if err != nil || level == "" {
		return nil, fmt.Errorf("log level %q is none; use debug, info, warn or error", level)
	}
	var out io.Writer = w
	if st, err := w.Stat(); err == nil && st.Mode()&fs.ModeCharDevice != 0 {
		out = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly}
	}
	return debug.NewLogs(out, l), nil
}
