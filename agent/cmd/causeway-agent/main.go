// Command causeway-agent is the daemon on a node, and what an operator does
// with it on the node itself: join, run, leave, and looking at it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"causeway/agent/identity"
	"causeway/internal/exitstatus"
	"causeway/internal/manpages"
	"causeway/protocol"
)

func main() {
	zerolog.ErrorFieldName = "err" // docs/LOGS.md
	os.Exit(execute(os.Args[1:]))
}

// execute runs the command line and prints its error, once and in one line.
func execute(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	status := exitstatus.Watch(root)
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "causeway-agent: "+protocol.Folded(err.Error()))
	}
	return status(err)
}

// options are flags that several commands have.
type options struct {
	stateDir string
	config   string
	socket   string
	logLevel string
	output   string
}

func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:           "causeway-agent",
		Short:         "Causeway's agent: joins this host to the other sites",
		Long:          "Causeway's agent: joins this host to the other sites.\n\nExit status: 0 done, 1 failed, 2 the command line is wrong and nothing was tried.",
		SilenceErrors: true, SilenceUsage: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q; see 'causeway-agent --help'", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see '%s --help'", err, cmd.CommandPath())
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.Version = version
	root.AddCommand(joinCommand(o), runCommand(o), leaveCommand(o), tellCommand(o), rotateCommand(o), doctorCommand(o), repairCommand(o), releaseCommand(o), hubsCommand(o), upgradeCommand(o), splitDNSCommand(o), versionCommand(o), manpages.Command(version))
	root.AddCommand(viewCommands(o)...)
	return root
}

func (o *options) stateFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.stateDir, "state-dir", identity.DefaultDir, "directory of keys and netmap")
}

func (o *options) configFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.config, "config", "", "configuration file (default /etc/causeway/agent.yaml, if it exists)")
}

func (o *options) socketFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.socket, "debug-socket", "", "unix socket of the debug endpoints (default /run/causeway/agent.sock)")
}

// exactArgs is cobra.ExactArgs with an error that says what is missing.
func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < n:
			return fmt.Errorf("%s is missing; see '%s --help'", what, cmd.CommandPath())
		case len(args) > n:
			return fmt.Errorf("unexpected argument %q; see '%s --help'", args[n], cmd.CommandPath())
		}
		return nil
	}
}
