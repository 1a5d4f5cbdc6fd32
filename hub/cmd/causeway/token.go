package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/flagenv"
	"causeway/protocol"
)

func (c *cli) token() *cobra.Command {
	return c.Group("token", "One-time join tokens", "", c.tokenCreate(), c.tokenList(), c.tokenRevoke())
}

func (c *cli) tokenCreate() *cobra.Command {
	var (
		spec   api.TokenSpec
		ttl    time.Duration
		routes frame.Prefixes
		marks  frame.Labels
	)
	cmd := &cobra.Command{
		Use:   "create --site SITE",
		Short: "Make a token that lets one host join",
		Long: `Make a token that lets one host join a site, once. The token is printed on
standard output and cannot be shown again; how to use it follows on standard
error. Routes given here are announced by the joining node and already approved.`,
		Example: "  causeway token create --site idc-sh --route 10.201.1.0/24\n" +
			"  causeway token create --site idc-sh | ssh host causeway-agent join -",
		Args: frame.Exactly(),
	}
	f := cmd.Flags()
	f.StringVar(&spec.Site, "site", "", "`SITE` that the host joins (required)")
	flagenv.DurationVar(f, &ttl, "ttl", time.Hour, "`DURATION` for which the token can be used")
	f.Var(&routes, "route", "the node announces this, approved (repeatable)")
	f.Var(&marks, "label", "label of the node (repeatable)")
	f.StringVar(&spec.Replace, "replace", "", "the host may take the name of `NODE`, which is revoked then")
	frame.Must(cmd.RegisterFlagCompletionFunc("site", c.Completer(1, siteNames)))
	frame.Must(cmd.RegisterFlagCompletionFunc("replace", c.Completer(1, nodeNames)))
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		switch {
		case spec.Site == "":
			return frame.Usagef("--site is missing")
		case ttl < time.Second:
			return frame.Usagef("--ttl %s is less than 1s", ttl)
		}
		if err := frame.CheckName("site", spec.Site); err != nil {
			return err
		}
		if spec.Replace != "" {
			if err := frame.CheckName("node", spec.Replace); err != nil {
				return err
			}
		}
		spec.TTL, spec.Routes, spec.Labels = api.Duration(ttl), routes, marks
		t, err := hub.CreateToken(ctx, spec)
		if err != nil {
			return err
		}
		return c.showCreated(t)
	})
}

// showCreated prints the token alone on standard output, so that it can be
// piped into 'causeway-agent join -', and what to do with it on standard error.
func (c *cli) showCreated(t api.TokenCreated) error {
	err := c.Show(t, []string{t.ID}, func(p *frame.Page) { p.Line("%s", t.Text) })
	if err != nil || c.Format == frame.FormatJSON || c.Format == frame.FormatYAML {
		return err
	}
	for _, m := range t.Meets {
		if _, err := fmt.Fprintf(c.Err, "Mind route %s. The new node gets it all the same: the same prefix makes a group of which one node carries it, a longer one takes its addresses from the other.\n", m); err != nil {
			return err
		}
	}
	options := ""
	if t.Replace != "" {
		options = "--name " + t.Replace + " --replace "
	}
	_, err = fmt.Fprintf(c.Err, "Good for one host of site %s within %s. On that host, as root:\n  causeway-agent join %s%s\n",
		t.Site, frame.Short(time.Duration(t.TTL)), options, t.Text)
	return err
}

func (c *cli) tokenList() *cobra.Command {
	return c.Watchable(api.WatchTokens, &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List tokens, without their secrets", Long: "List tokens, without their secrets. Those that expired more than 30 days ago are\nin 'causeway audit' alone.", Args: frame.Exactly()},
		func(ctx context.Context, hub *api.Client, _ []string) error {
			tokens, err := frame.Listed(ctx, c.CLI, hub.Tokens)
			if err != nil {
				return err
			}
			return frame.List(c.CLI, tokens, func(t api.Token) string { return t.ID },
				"No tokens: causeway token create --site SITE",
				[]string{"ID", "SITE", "STATE", "AGE", "EXPIRES", "USED BY", "+LABELS", "ROUTES"},
				func(_ *frame.Page, t api.Token) []any {
					left := "-"
					if t.State == "open" {
						left = "in " + frame.Span(max(time.Until(t.Expires), 0))
					}
					used := t.UsedBy
					if used == "" {
						used = "-"
					}
					return []any{t.ID, t.Site, t.State, frame.Aged(t.Created), frame.Cell{Text: left, Moving: true}, used, frame.LabelText(t.Labels), frame.Join(t.Routes)}
				})
		})
}

func (c *cli) tokenRevoke() *cobra.Command {
	return c.Leaf(&cobra.Command{Use: "revoke ID", Short: "Make an open token useless", Args: frame.Exactly("ID"), ValidArgsFunction: c.Completer(1, openTokens)},
		func(ctx context.Context, hub *api.Client, args []string) error {
			var id protocol.TokenID
			if id.UnmarshalText([]byte(args[0])) != nil {
				return frame.Usagef("%q is not a token id: see 'causeway token list'", hideToken(args[0]))
			}
			if err := hub.RevokeToken(ctx, args[0]); err != nil {
				return err
			}
			return c.Done(args[0], "revoked")
		})
}

// hideToken keeps the secret out of an error when a whole token was given in
// place of its id.
func hideToken(s string) string {
	if t, err := protocol.ParseToken(s); err == nil {
		return t.String()
	}
	if len(s) > 20 {
		return s[:20] + "…"
	}
	return s
}
