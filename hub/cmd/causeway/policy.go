package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

func (c *cli) policy() *cobra.Command {
	return c.Group("policy", "Who may talk to whom", `Who may talk to whom is declared: segments and policies are documents of 'causeway
apply' (causeway explain segment-file, causeway explain policy-file). Without any,
all is open.`, c.policyApply(), c.policyConfirm(), c.policyDiff(), c.policyExplain(), c.policyShow(), c.policyStatus(), c.policyTest(),
		c.policySuggest(), c.policyProve(), c.policyVerify())
}

func (c *cli) policyTest() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "test FROM TO PORT",
		Short: "Say whether something is open, and by which rule",
		Long: `Say whether connections from FROM to TO are open, by which rule, or which rule comes
nearest to opening them. FROM and TO are addresses, SEGMENT/ADDRESS where several segments
have it, nodes (their own addresses) or SITE/* for all that a site has. Exit status is 1 when it is closed.`,
		Example: `  causeway policy test 10.1.1.11 10.2.1.11 tcp/5432
  causeway policy test 'idc-lab/*' db-1 icmp`,
		Args:              frame.Exactly("FROM", "TO", "PORT"),
		ValidArgsFunction: c.Completer(2, nodeNames),
	}
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if _, err := protocol.ParsePorts(args[2]); err != nil {
			return frame.Usagef("PORT: %v", err)
		}
		a, err := hub.TestPolicy(ctx, api.PolicyQuestion{From: args[0], To: args[1], Port: args[2]})
		if err != nil {
			return err
		}
		if err := c.Show(a, []string{map[bool]string{true: "open", false: "closed"}[a.Open]}, func(p *frame.Page) { p.Line("%s", protocol.Printable(a.Text)) }); err != nil {
			return err
		}
		if !a.Open {
			return errors.New(protocol.Printable(args[0] + " to " + args[1] + ", " + args[2] + ": closed"))
		}
		return nil
	})
}
