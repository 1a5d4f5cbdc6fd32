// Package frame is what the nouns of the command line have in common: the flags of all commands and the hub
// that they lead to, how a command is called and ends, how what it has to tell is printed, watched, completed and
// asked for. A noun builds its commands with a CLI and knows api; the frame knows no noun.
package frame

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
	"causeway/protocol"
)

// Local finishes a command that calls no hub.
func Local(cmd *cobra.Command, f func(args []string) error) *cobra.Command {
	cmd.RunE = func(_ *cobra.Command, args []string) error { return Fail(f(args)) }
	return cmd
}

// LimitFlag adds --limit to a list of which the newest come first; see CheckLimit.
func LimitFlag(cmd *cobra.Command, n *int) {
	cmd.Flags().IntVarP(n, "limit", "n", 50, "show at most this many, 1 to 1000")
}

// CheckLimit refuses a --limit that no hub takes.
func CheckLimit(n int) error {
	if n < 1 || n > 1000 {
		return Usagef("--limit %d is not between 1 and 1000", n)
	}
	return nil
}

// Exit statuses. Scripts tell a refused request from a wrong command line.
const (
	ExitOK     = exitstatus.Done
	ExitFailed = exitstatus.Failed
	ExitUsage  = exitstatus.Usage
	ExitDiffer = 3 // of diff
	ExitUnwell = 4 // of doctor
)

// CLI is what every command shares: global flags and standard streams.
type CLI struct {
	Socket   string
	Context  string
	Format   Format
	watch    *watcher  // of a list that is watched
	Progress *Progress // of the command that runs
	In       io.Reader
	Out      io.Writer
	Err      io.Writer
}

// New returns the frame of one call of the program.
func New(in io.Reader, out, errw io.Writer) *CLI {
	return &CLI{Format: FormatTable, In: in, Out: out, Err: errw}
}

// Failed marks an error of a request that was well formed; every other error
// is one of usage.
type Failed struct{ error }

// Unwrap is the error.
func (f Failed) Unwrap() error { return f.error }

// Group is a command that only holds others.
func (c *CLI) Group(use, short, long string, subs ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short, Long: long, Args: NoSubcommand, RunE: ShowHelp, SuggestionsMinimumDistance: 2}
	g.AddCommand(subs...)
	return g
}

// NoSubcommand refuses arguments of a command that only holds others.
func NoSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		return fmt.Errorf("unknown command %q, did you mean %q?", args[0], s[0])
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// ShowHelp prints the help of a command that only holds others.
func ShowHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// Leaf finishes a command that calls the hub. Errors that do come back are
// failures; what is wrong with the command line is found before that by args
// and by f's first return through usage.
func (c *CLI) Leaf(cmd *cobra.Command, f func(ctx context.Context, hub *api.Client, args []string) error) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		hub, err := c.hub()
		if err != nil {
			return err
		}
		defer hub.Close()
		c.Progress = c.begin()
		defer c.Progress.End()
		return Fail(f(cmd.Context(), hub, args))
	}
	return cmd
}

// usage is an error of the command line found late, inside a leaf.
type usage struct{ error }

// Usagef is an error of the command line that is found late, inside a leaf.
func Usagef(msg string, args ...any) error { return usage{fmt.Errorf(msg, args...)} }

// Fail marks an error as one of a request, if it is none of usage; nil stays nil.
func Fail(err error) error {
	var u usage
	if err == nil || errors.As(err, &u) {
		return err
	}
	return Failed{err}
}

// hub makes the client that the global flags ask for.
func (c *CLI) hub() (*api.Client, error) {
	cfg, err := c.target()
	if err != nil {
		return nil, Fail(err)
	}
	hub, err := api.NewClient(cfg)
	return hub, Fail(err)
}

// Confirm asks before what cannot be undone. Where there is nobody to ask it refuses.
func (c *CLI) Confirm(yes bool, question string, args ...any) error {
	if yes {
		return nil
	}
	if _, file := c.In.(*os.File); file && !IsTerminal(c.In) {
		return fmt.Errorf("nothing done: standard input is no terminal, so nobody can answer %q; use --yes", fmt.Sprintf(question, args...))
	}
	c.Progress.End()
	fmt.Fprintf(c.Err, question+" [y/N] ", args...)
	line, err := bufio.NewReader(io.LimitReader(c.In, 100)).ReadString('\n')
	if err != nil {
		fmt.Fprintln(c.Err)
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return errors.New("nothing done: not confirmed (answer y, or use --yes)")
}

// YesFlag adds --yes to a command that asks; see Confirm.
func YesFlag(cmd *cobra.Command, yes *bool) {
	cmd.Flags().BoolVarP(yes, "yes", "y", false, "do not ask")
}

// Done tells of something that leaves no object to show.
func (c *CLI) Done(name, what string) error { return c.DoneAs(name, what, name+" "+what) }

// DoneAs is done with a text of its own for a person.
func (c *CLI) DoneAs(name, what, text string) error {
	return c.Show(struct {
		Name   string `json:"name"`
		Result string `json:"result"`
	}{name, what}, []string{name}, func(p *Page) { p.Line("%s", protocol.Printable(text)) })
}
