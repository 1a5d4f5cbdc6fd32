package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
)

func (c *cli) site() *cobra.Command {
	return c.Group("site", "Data centres and cloud regions", "", c.siteCreate(), c.siteList(), c.siteShow(), c.siteSet(), c.siteDelete())
}

func (c *cli) siteCreate() *cobra.Command {
	var ranges frame.Prefixes
	var age maxAge
	var rotate rotateKeys
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a site",
		Long: `Make a site. Routes that its nodes announce inside a --range are approved by
themselves, unless they meet what another node announces: the same prefix, one
inside it or one over it. Those and all others wait for 'causeway route approve'.`,
		Example: "  causeway site create idc-sh --range 10.201.0.0/16",
		Args:    frame.Exactly("NAME"),
	}
	cmd.Flags().Var(&ranges, "range", "routes inside this range need no approval (repeatable)")
	cmd.Flags().Var(&age, "max-age", maxAgeUsage)
	cmd.Flags().Var(&rotate, "rotate-keys", rotateUsage)
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("site", args[0]); err != nil {
			return err
		}
		s, err := hub.CreateSite(ctx, api.SiteSpec{Name: args[0], Ranges: ranges, MaxAge: api.MaxAge(age), RotateKeys: api.RotateKeys(rotate)})
		if err != nil {
			return err
		}
		return c.showSite(s)
	})
}

func (c *cli) siteList() *cobra.Command {
	return c.Watchable(api.WatchSites, &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List sites", Args: frame.Exactly()},
		func(ctx context.Context, hub *api.Client, _ []string) error {
			sites, err := frame.Listed(ctx, c.CLI, hub.Sites)
			if err != nil {
				return err
			}
			return frame.List(c.CLI, sites, func(s api.Site) string { return s.Name },
				"No sites yet: causeway site create NAME",
				[]string{"SITE", "NODES", "AGE", "+MAX AGE", "+KEYS", "RANGES"},
				func(_ *frame.Page, s api.Site) []any {
					return []any{s.Name, s.Nodes, frame.Aged(s.Created), ageText(s.MaxAge), rotateText(s.RotateKeys), frame.Join(s.Ranges)}
				})
		})
}

func (c *cli) siteShow() *cobra.Command {
	return c.Leaf(&cobra.Command{Use: "show NAME", Short: "Show one site", Args: frame.Exactly("NAME"), ValidArgsFunction: c.Completer(1, siteNames)},
		func(ctx context.Context, hub *api.Client, args []string) error {
			if err := frame.CheckName("site", args[0]); err != nil {
				return err
			}
			s, err := hub.Site(ctx, args[0])
			if err != nil {
				return err
			}
			return c.showSite(s)
		})
}

func (c *cli) showSite(s api.Site) error {
	return c.Show(s, []string{s.Name}, func(p *frame.Page) {
		p.Facts("Site", s.Name, "Ranges", frame.Join(s.Ranges), "Max age", ageText(s.MaxAge), "Keys", rotateText(s.RotateKeys), "Nodes", fmt.Sprint(s.Nodes), "Age", frame.Age(s.Created))
	})
}

const maxAgeUsage = "how long its agents go on without any hub, or forever (default 168h)"

const rotateUsage = "age at which its nodes make new WireGuard keys, such as 30d, or never (default never)"

func (c *cli) siteSet() *cobra.Command {
	var ranges frame.Prefixes
	var none bool
	var age maxAge
	var rotate rotateKeys
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Change a site",
		Long: `Change a site's ranges, how long its agents go on without any hub, and at which
age its nodes make new WireGuard keys. The --range flags are all ranges that the
site has then: routes inside them that meet no other node's are approved, those
that wait too; a range that
approved a route stays. After --max-age agents drop their peers, so that a node
that was revoked meanwhile is not reached for ever.`,
		Example:           "  causeway site set idc-sh --range 10.201.0.0/16 --range 10.202.0.0/16\n  causeway site set idc-sh --max-age 72h --rotate-keys 30d",
		Args:              frame.Exactly("NAME"),
		ValidArgsFunction: c.Completer(1, siteNames),
	}
	cmd.Flags().Var(&ranges, "range", "a range of the site, instead of those that it has (repeatable)")
	cmd.Flags().BoolVar(&none, "no-ranges", false, "the site has no ranges: each route waits for a decision")
	cmd.Flags().Var(&age, "max-age", maxAgeUsage)
	cmd.Flags().Var(&rotate, "rotate-keys", rotateUsage)
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("site", args[0]); err != nil {
			return err
		}
		if none && ranges != nil {
			return frame.Usagef("--range and --no-ranges exclude each other")
		}
		if none {
			ranges = frame.Prefixes{}
		}
		if ranges == nil && age == 0 && rotate == 0 {
			return frame.Usagef("--range, --no-ranges, --max-age or --rotate-keys is missing")
		}
		s, err := hub.PatchSite(ctx, args[0], api.SitePatch{Ranges: ranges, MaxAge: api.MaxAge(age), RotateKeys: api.RotateKeys(rotate)})
		if err != nil {
			return err
		}
		return c.showSite(s)
	})
}

func (c *cli) siteDelete() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:               "delete NAME",
		Short:             "Delete a site that has no nodes",
		Args:              frame.Exactly("NAME"),
		ValidArgsFunction: c.Completer(1, siteNames),
	}
	frame.YesFlag(cmd, &yes)
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("site", args[0]); err != nil {
			return err
		}
		if err := c.Confirm(yes, "Delete site %s? Its open tokens stop working.", args[0]); err != nil {
			return err
		}
		if err := hub.DeleteSite(ctx, args[0]); err != nil {
			return err
		}
		return c.Done(args[0], "deleted")
	})
}

// maxAge is a flag for how long agents go on without a hub; 0 is not given.
type maxAge api.MaxAge

func (a *maxAge) String() string { return "" }

func (a *maxAge) Type() string { return "DURATION" }

func (a *maxAge) Set(s string) error { return (*api.MaxAge)(a).UnmarshalText([]byte(s)) }

// rotateKeys is a flag for the age at which nodes make new keys; 0 is not given.
type rotateKeys api.RotateKeys

func (r *rotateKeys) String() string { return "" }

func (r *rotateKeys) Type() string { return "DURATION" }

func (r *rotateKeys) Set(s string) error {
	return (*api.RotateKeys)(r).UnmarshalText([]byte(s))
}
