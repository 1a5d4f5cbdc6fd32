// Causeway-hub is the cloud side of Causeway: it accepts joins, holds the state,
// computes netmaps, relays ciphertext and serves the admin API.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"causeway/hub"
	"causeway/protocol"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "causeway-hub: "+oneLine(err))
		os.Exit(1)
	}
}

// oneLine keeps what libraries say from filling a screen.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func command() *cobra.Command {
	root := &cobra.Command{
		Use: "causeway-hub", Short: "The cloud side of Causeway: control plane, join authority and blind relay",
		SilenceUsage: true, SilenceErrors: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w; see '%s --help'", err, c.CommandPath())
	})
	root.AddCommand(runCommand(), restoreCommand(), &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(c.OutOrStdout(), "causeway-hub %s (protocol %d)\n", version, protocol.Version)
			return err
		},
	})
	return root
}

func runCommand() *cobra.Command {
	f := flags{}
	c := &cobra.Command{
		Use: "run", Short: "Run the hub", Args: cobra.NoArgs,
		Long: "Run the hub. It needs neither root nor any capability. Flags win over the configuration file, whose keys\nare the flags' names with '_' for '-'.",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := f.config(c.Flags())
			if err != nil {
				return err
			}
			cfg.Version, cfg.Log = version, logger()
			h, err := hub.New(cfg)
			if err != nil {
				return err
			}
			return run(c.Context(), h)
		},
	}
	f.register(c.Flags())
	return c
}

// run runs h and tells systemd when it is ready and when it stops.
func run(ctx context.Context, h *hub.Hub) error {
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	select {
	case err := <-done:
		return err
	case <-h.Ready():
		daemon.SdNotify(false, daemon.SdNotifyReady) // without systemd it does nothing
	}
	select {
	case err := <-done:
		if err == nil && ctx.Err() == nil {
			err = errors.New("stopped without a reason")
		}
		return err
	case <-ctx.Done():
		daemon.SdNotify(false, daemon.SdNotifyStopping)
		return <-done
	}
}

// logger writes for a person on a terminal, and JSON elsewhere.
func logger() zerolog.Logger {
	if fi, err := os.Stderr.Stat(); err == nil && fi.Mode()&os.ModeCharDevice != 0 {
		return zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, TimeFormat: "15:04:05.000"}).Level(zerolog.InfoLevel).With().Timestamp().Logger()
	}
	return zerolog.New(os.Stderr).Level(zerolog.InfoLevel).With().Timestamp().Logger()
}
