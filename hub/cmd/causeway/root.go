package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/manpages"
)

// errDiffers ends 'diff' where something differs. It has been shown.
var errDiffers = errors.New("something differs")

// errUnwell ends 'doctor' where something critical or a warning was found. It has been shown.
var errUnwell = errors.New("something is wrong")

// cli is the frame with the nouns of this program.
type cli struct{ *frame.CLI }

// run is main without the process around it. It returns the exit status.
func run(ctx context.Context, args []string, in io.Reader, out, errw io.Writer) int {
	c := &cli{frame.New(in, out, errw)}
	root := c.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errw)
	cmd, err := root.ExecuteContextC(ctx)
	var f frame.Failed
	switch {
	case errors.Is(err, errDiffers):
		return frame.ExitDiffer
	case errors.Is(err, errUnwell):
		return frame.ExitUnwell
	case err == nil:
		return frame.ExitOK
	case errors.As(err, &f):
		if errors.Is(err, context.Canceled) {
			err = errors.New("interrupted")
		}
		fmt.Fprintf(errw, "causeway: %v\n", err)
		return frame.ExitFailed
	}
	msg, _, _ := strings.Cut(err.Error(), "\n") // cobra adds suggestions below
	fmt.Fprintf(errw, "causeway: %s (see '%s --help')\n", msg, cmd.CommandPath())
	return frame.ExitUsage
}

// root builds the command tree.
func (c *cli) root() *cobra.Command {
	root := c.Group("causeway", "Administer a Causeway hub",
		`Administer a Causeway hub: its sites, join tokens, nodes and routes.

causeway talks to the hub over the unix socket on the hub's host. Where it is
not the default, name it with --socket or in the environment variable
`+frame.EnvSocket+`. A hub elsewhere is reached by --context (see 'causeway context').

Exit status: 0 done, 1 the request failed, 2 wrong usage, 3 'causeway diff' found a
difference, 4 'causeway doctor' found something critical or a warning. Nothing that destroys is done without an answer from a terminal or --yes.
Colours are for terminals, and for none with NO_COLOR set.`)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = false
	root.DisableAutoGenTag, root.Version = true, version
	p := root.PersistentFlags()
	p.StringVar(&c.Socket, "socket", "", "`PATH` of the hub's admin socket (default $"+frame.EnvSocket+" or "+api.DefaultSocket+")")
	p.StringVar(&c.Context, "context", "", "`NAME` of a stored connection to a hub elsewhere, or its file as ./FILE (default $"+frame.EnvContext+")")
	frame.Must(root.RegisterFlagCompletionFunc("context", completeContexts))
	p.VarP(&c.Format, "output", "o", "table, wide, json, yaml or name")
	frame.Must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(frame.Formats, cobra.ShellCompDirectiveNoFileComp)))
	root.AddCommand(c.status(), c.top(), c.site(), c.token(), c.node(), c.route(), c.policy(), c.service(), c.inventory(), c.apply(), c.diff(), c.get(), c.deleteObject(), c.explain(), c.diag(), c.doctor(), c.bundle(), c.flows(), c.incidents(), c.events(), c.audit(),
		c.hubs(), c.dns(), c.admin(), c.nats(), c.contexts(), c.backup(), c.restore(), c.version(), manpages.Command(version))
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	asUsage(root)
	return root
}

// asUsage gives generated commands the same strictness as ours: cobra's own
// ones print help for an unknown subcommand and exit with 0.
func asUsage(root *cobra.Command) {
	for _, sub := range root.Commands() {
		switch sub.Name() {
		case "completion":
			sub.Args, sub.RunE = frame.NoSubcommand, frame.ShowHelp
		case "help":
			sub.Run, sub.RunE = nil, func(_ *cobra.Command, args []string) error {
				of, left, err := root.Find(args)
				if err != nil || len(left) > 0 {
					return fmt.Errorf("unknown command %q", strings.Join(args, " "))
				}
				of.InitDefaultHelpFlag() // so that it is listed
				return of.Help()
			}
		}
	}
}
