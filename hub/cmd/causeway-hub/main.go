// Causeway-hub is the cloud side of Causeway: it accepts joins, holds the state,
// computes netmaps, relays ciphertext and serves the admin API.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"causeway/hub"
	"causeway/internal/exitstatus"
	"causeway/internal/manpages"
	"causeway/internal/service"
	"causeway/protocol"
)

// version is set by the linker.
var version = "dev"

func main() {
	zerolog.ErrorFieldName = "err" // docs/LOGS.md
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	root := command()
	status := exitstatus.Watch(root)
	err := root.ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "causeway-hub: "+protocol.Folded(err.Error()))
	}
	os.Exit(status(err))
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use: "causeway-hub", Short: "The cloud side of Causeway: control plane, join authority and blind relay",
		Long:         "The cloud side of Causeway: control plane, join authority and blind relay.\n\nExit status: 0 done, 1 failed, 2 the command line is wrong and nothing was tried.",
		SilenceUsage: true, SilenceErrors: true, Version: version,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w; see '%s --help'", err, c.CommandPath())
	})
	root.AddCommand(manpages.Command(version), runCommand(), initCommand(), restoreCommand(), repairCommand(), rotateCommand(), &cobra.Command{
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
	var check bool
	c := &cobra.Command{
		Use: "run", Short: "Run the hub", Args: cobra.NoArgs,
		Long: `Run the hub. It needs neither root nor any capability. Flags win over environment
variables (CAUSEWAY_HUB_PUBLIC_HOST for --public-host), these over the configuration file,
whose keys are the flags' names with '_' for '-'. On SIGHUP it reads them again, takes the
public host and ports, and names in its log what needs a restart.`,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := f.config(c.Flags())
			if err != nil {
				return err
			}
			cfg.Version, cfg.Log = version, logger()
			if !check {
				if cfg.Sockets, err = sockets(cfg.Log); err != nil {
					return err
				}
			}
			h, err := hub.New(cfg)
			if err != nil {
				return err
			}
			if check {
				_, err := fmt.Fprintln(c.OutOrStdout(), "the configuration is good")
				return err
			}
			return run(c.Context(), h, func() (hub.Config, error) { return f.config(c.Flags()) }, cfg.Log)
		},
	}
	f.register(c.Flags())
	c.Flags().BoolVar(&check, "check", false, "check the configuration and exit")
	return c
}

// run runs h as a service; read reads its configuration again.
func run(ctx context.Context, h *hub.Hub, read func() (hub.Config, error), log zerolog.Logger) error {
	go collect(ctx)
	return service.Run(ctx, service.Daemon{
		Run: func(ctx context.Context) error {
			err := h.Run(ctx)
			if err == nil && ctx.Err() == nil {
				err = errors.New("stopped without a reason")
			}
			return err
		},
		Ready: h.Ready(), Alive: h.Alive, Log: log,
		Reload: func() error {
			cfg, err := read()
			if err != nil {
				return err
			}
			return h.Reload(ctx, cfg)
		},
	})
}

// Names of the sockets that the service manager may hand over.
const (
	socketHTTPS = "https"
	socketAdmin = "admin"
	socketUDP   = "udp"
)

// sockets takes what the service manager holds for the hub.
func sockets(log zerolog.Logger) (s hub.Sockets, err error) {
	given := service.Sockets()
	if s.HTTPS, err = service.Listener(given, socketHTTPS); err != nil {
		return s, err
	}
	if s.Admin, err = service.Listener(given, socketAdmin); err != nil {
		return s, err
	}
	s.UDP = given[socketUDP]
	s.HoldUDP = func(fs []*os.File) bool {
		held, err := service.Keep(socketUDP, fs)
		if err != nil {
			log.Warn().Err(err).Msg("the service manager does not hold the UDP sockets: a restart will lose what arrives meanwhile")
		}
		return held
	}
	return s, nil
}

// logger writes for a person on a terminal, and JSON elsewhere.
func logger() zerolog.Logger {
	if fi, err := os.Stderr.Stat(); err == nil && fi.Mode()&os.ModeCharDevice != 0 {
		return zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, TimeFormat: "15:04:05.000"}).Level(zerolog.InfoLevel).With().Timestamp().Logger()
	}
	return zerolog.New(os.Stderr).Level(zerolog.InfoLevel).With().Timestamp().Logger()
}
