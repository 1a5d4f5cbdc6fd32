package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/internal/exitstatus"
	"causeway/internal/manpages"
	"causeway/protocol"
)

// Exit statuses. Scripts tell a refused request from a wrong command line.
const (
	exitOK     = exitstatus.Done
	exitFailed = exitstatus.Failed
	exitUsage  = exitstatus.Usage
	exitDiffer = 3 // of diff
	exitUnwell = 4 // of doctor
)

// envSocket names the admin socket when --socket does not.
const envSocket = "CAUSEWAY_SOCKET"

// cli is what every command shares: global flags and standard streams.
type cli struct {
	socket   string
	context  string
	format   format
	watch    *watcher  // of a list that is watched
	progress *progress // of the command that runs
	in       io.Reader
	out      io.Writer
	err      io.Writer
}

// errDiffers ends 'diff' where something differs. It has been shown.
var errDiffers = errors.New("something differs")

// errUnwell ends 'doctor' where something critical or a warning was found. It has been shown.
var errUnwell = errors.New("something is wrong")

// failed marks an error of a request that was well formed; every other error
// is one of usage.
type failed struct{ error }

func (f failed) Unwrap() error { return f.error }

// run is main without the process around it. It returns the exit status.
func run(ctx context.Context, args []string, in io.Reader, out, errw io.Writer) int {
	c := &cli{format: formatTable, in: in, out: out, err: errw}
	root := c.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errw)
	cmd, err := root.ExecuteContextC(ctx)
	var f failed
	switch {
	case errors.Is(err, errDiffers):
		return exitDiffer
	case errors.Is(err, errUnwell):
		return exitUnwell
	case err == nil:
		return exitOK
	case errors.As(err, &f):
		if errors.Is(err, context.Canceled) {
			err = errors.New("interrupted")
		}
		fmt.Fprintf(errw, "causeway: %v\n", err)
		return exitFailed
	}
	msg, _, _ := strings.Cut(err.Error(), "\n") // cobra adds suggestions below
	fmt.Fprintf(errw, "causeway: %s (see '%s --help')\n", msg, cmd.CommandPath())
	return exitUsage
}

// root builds the command tree.
func (c *cli) root() *cobra.Command {
	root := c.group("causeway", "Administer a Causeway hub",
		`Administer a Causeway hub: its sites, join tokens, nodes and routes.

causeway talks to the hub over the unix socket on the hub's host. Where it is
not the default, name it with --socket or in the environment variable
`+envSocket+`. A hub elsewhere is reached by --context (see 'causeway context').

Exit status: 0 done, 1 the request failed, 2 wrong usage, 3 'causeway diff' found a
difference, 4 'causeway doctor' found something critical or a warning. Nothing that destroys is done without an answer from a terminal or --yes.
Colours are for terminals, and for none with NO_COLOR set.`)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = false
	root.DisableAutoGenTag, root.Version = true, version
	p := root.PersistentFlags()
	p.StringVar(&c.socket, "socket", "", "`PATH` of the hub's admin socket (default $"+envSocket+" or "+api.DefaultSocket+")")
	p.StringVar(&c.context, "context", "", "`NAME` of a stored connection to a hub elsewhere, or its file as ./FILE (default $"+envContext+")")
	must(root.RegisterFlagCompletionFunc("context", completeContexts))
	p.VarP(&c.format, "output", "o", "table, wide, json, yaml or name")
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)))
	root.AddCommand(c.status(), c.top(), c.site(), c.token(), c.node(), c.route(), c.inventory(), c.apply(), c.diff(), c.get(), c.deleteObject(), c.explain(), c.diag(), c.doctor(), c.bundle(), c.incidents(), c.events(), c.audit(),
		c.hubs(), c.admin(), c.nats(), c.contexts(), c.backup(), c.restore(), c.version(), manpages.Command(version))
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
			sub.Args, sub.RunE = noSubcommand, showHelp
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

// group is a command that only holds others.
func (c *cli) group(use, short, long string, subs ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short, Long: long, Args: noSubcommand, RunE: showHelp, SuggestionsMinimumDistance: 2}
	g.AddCommand(subs...)
	return g
}

func noSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		return fmt.Errorf("unknown command %q, did you mean %q?", args[0], s[0])
	}
	return fmt.Errorf("unknown command %q", args[0])
}

func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// leaf finishes a command that calls the hub. Errors that do come back are
// failures; what is wrong with the command line is found before that by args
// and by f's first return through usage.
func (c *cli) leaf(cmd *cobra.Command, f func(ctx context.Context, hub *api.Client, args []string) error) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		hub, err := c.hub()
		if err != nil {
			return err
		}
		defer hub.Close()
		c.progress = c.begin()
		defer c.progress.end()
		return fail(f(cmd.Context(), hub, args))
	}
	return cmd
}

// usage is an error of the command line found late, inside a leaf.
type usage struct{ error }

func usagef(msg string, args ...any) error { return usage{fmt.Errorf(msg, args...)} }

func fail(err error) error {
	var u usage
	if err == nil || errors.As(err, &u) {
		return err
	}
	return failed{err}
}

// hub makes the client that the global flags ask for.
func (c *cli) hub() (*api.Client, error) {
	cfg, err := c.target()
	if err != nil {
		return nil, fail(err)
	}
	hub, err := api.NewClient(cfg)
	return hub, fail(err)
}

// confirm asks before what cannot be undone. Where there is nobody to ask it refuses.
func (c *cli) confirm(yes bool, question string, args ...any) error {
	if yes {
		return nil
	}
	if _, file := c.in.(*os.File); file && !isTerminal(c.in) {
		return fmt.Errorf("nothing done: standard input is no terminal, so nobody can answer %q; use --yes", fmt.Sprintf(question, args...))
	}
	c.progress.end()
	fmt.Fprintf(c.err, question+" [y/N] ", args...)
	line, err := bufio.NewReader(io.LimitReader(c.in, 100)).ReadString('\n')
	if err != nil {
		fmt.Fprintln(c.err)
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return errors.New("nothing done: not confirmed (answer y, or use --yes)")
}

// exactly takes the named arguments, no more and no fewer.
func exactly(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return fmt.Errorf("%s is missing", names[len(args)])
		}
		if len(args) > len(names) {
			return fmt.Errorf("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// between takes these arguments, of which the first so many are needed.
func between(needed int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		return exactly(names[:min(max(needed, len(args)), len(names))]...)(cmd, args)
	}
}

// checkName refuses what no site or node can be called before it is sent.
func checkName(what, s string) error {
	if !protocol.ValidName(s) {
		article := "a"
		if strings.ContainsRune("aeiou", rune(what[0])) {
			article = "an"
		}
		return usagef("%q cannot name %s %s: use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'", s, article, what)
	}
	return nil
}

// must is for errors that only a mistake in this program can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
