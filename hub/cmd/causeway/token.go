package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/internal/flagenv"
	"causeway/protocol"
)

func (c *cli) token() *cobra.Command {
	return c.group("token", "One-time join tokens", "", c.tokenCreate(), c.tokenList(), c.tokenRevoke())
}

func (c *cli) tokenCreate() *cobra.Command {
	var (
		spec   api.TokenSpec
		ttl    time.Duration
		routes prefixes
		marks  labels
	)
	cmd := &cobra.Command{
		Use:   "create --site SITE",
		Short: "Make a token that lets one host join",
		Long: `Make a token that lets one host join a site, once. The token is printed on
standard output and cannot be shown again; how to use it follows on standard
error. Routes given here are announced by the joining node and already approved.`,
		Example: "  causeway token create --site idc-sh --route 10.201.1.0/24\n" +
			"  causeway token create --site idc-sh | ssh host causeway-agent join -",
		Args: exactly(),
	}
	f := cmd.Flags()
	f.StringVar(&spec.Site, "site", "", "`SITE` that the host joins (required)")
	flagenv.DurationVar(f, &ttl, "ttl", time.Hour, "`DURATION` for which the token can be used")
	f.Var(&routes, "route", "the node announces this, approved (repeatable)")
	f.Var(&marks, "label", "label of the node (repeatable)")
	f.StringVar(&spec.Replace, "replace", "", "the host may take the name of `NODE`, which is revoked then")
	must(cmd.RegisterFlagCompletionFunc("site", c.completer(1, siteNames)))
	must(cmd.RegisterFlagCompletionFunc("replace", c.completer(1, nodeNames)))
	return c.leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		switch {
		case spec.Site == "":
			return usagef("--site is missing")
		case ttl < time.Second:
			return usagef("--ttl %s is less than 1s", ttl)
		}
		if err := checkName("site", spec.Site); err != nil {
			return err
		}
		if spec.Replace != "" {
			if err := checkName("node", spec.Replace); err != nil {
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
	err := c.show(t, []string{t.ID}, func(p *page) { p.line("%s", t.Text) })
	if err != nil || c.format == formatJSON || c.format == formatYAML {
		return err
	}
	for _, m := range t.Meets {
		if _, err := fmt.Fprintf(c.err, "Mind route %s. The new node gets it all the same: the same prefix makes a group of which one node carries it, a longer one takes its addresses from the other.\n", m); err != nil {
			return err
		}
	}
	options := ""
	if t.Replace != "" {
		options = "--name " + t.Replace + " --replace "
	}
	_, err = fmt.Fprintf(c.err, "Good for one host of site %s within %s. On that host, as root:\n  causeway-agent join %s%s\n",
		t.Site, short(time.Duration(t.TTL)), options, t.Text)
	return err
}

func (c *cli) tokenList() *cobra.Command {
	return c.watchable(api.WatchTokens, &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List tokens, without their secrets", Long: "List tokens, without their secrets. Those that expired more than 30 days ago are\nin 'causeway audit' alone.", Args: exactly()},
		func(ctx context.Context, hub *api.Client, _ []string) error {
			tokens, err := listed(ctx, c, hub.Tokens)
			if err != nil {
				return err
			}
			return list(c, tokens, func(t api.Token) string { return t.ID },
				"No tokens: causeway token create --site SITE",
				[]string{"ID", "SITE", "STATE", "AGE", "EXPIRES", "USED BY", "+LABELS", "ROUTES"},
				func(_ *page, t api.Token) []any {
					left := "-"
					if t.State == "open" {
						left = "in " + span(max(time.Until(t.Expires), 0))
					}
					used := t.UsedBy
					if used == "" {
						used = "-"
					}
					return []any{t.ID, t.Site, t.State, aged(t.Created), cell{text: left, moving: true}, used, labelText(t.Labels), join(t.Routes)}
				})
		})
}

func (c *cli) tokenRevoke() *cobra.Command {
	return c.leaf(&cobra.Command{Use: "revoke ID", Short: "Make an open token useless", Args: exactly("ID"), ValidArgsFunction: c.completer(1, openTokens)},
		func(ctx context.Context, hub *api.Client, args []string) error {
			var id protocol.TokenID
			if id.UnmarshalText([]byte(args[0])) != nil {
				return usagef("%q is not a token id: see 'causeway token list'", hideToken(args[0]))
			}
			if err := hub.RevokeToken(ctx, args[0]); err != nil {
				return err
			}
			return c.done(args[0], "revoked")
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
