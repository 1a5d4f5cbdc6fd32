package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

// policyFiles are the files of 'policy apply' and 'policy diff'.
func policyFiles(cmd *cobra.Command, files *[]string) {
	cmd.Flags().StringArrayVarP(files, "filename", "f", nil, "`FILE` or directory with YAML documents, - for standard input (repeatable)")
	frame.Must(cmd.MarkFlagFilename("filename", "yaml", "yml"))
}

// previewed asks the hub what documents would do.
func (c *cli) previewed(ctx context.Context, hub *api.Client, in api.Apply) (steps []step, change *api.PolicyChange, err error) {
	in.DryRun, in.Preview, in.Connections = true, true, true
	steps, a, err := c.send(ctx, hub, in)
	if err == nil && a.Policy == nil {
		err = errors.New("the hub is older than this causeway and cannot say what opens and closes; run its own version of causeway")
	}
	return steps, a.Policy, err
}

// policyApplied is what 'policy apply' did.
type policyApplied struct {
	Steps  []step            `json:"steps"`
	Policy *api.PolicyChange `json:"policy"` // what it opens and closes
	// Confirm is what goes back unless it is confirmed.
	Confirm *api.PolicyPending `json:"confirm,omitempty"`
}

func (c *cli) policyApply() *cobra.Command {
	var files []string
	var yes bool
	var confirm time.Duration
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make segments and policies as files say, after showing what that opens, closes and cuts",
		Long: `Make segments and policies as files say, in one transaction. Before it does, it shows what
opens and closes, and which connections that exist now would be cut, as far as the agents
of the nodes tell within two seconds; and asks. 'causeway apply' does the same without
showing and asking, and takes documents of all kinds.

With --confirm the change goes back by itself after that time, whatever becomes of this
terminal and of the hub meanwhile, unless 'causeway policy confirm' comes before. Until
then segments and policies take no other change.`,
		Example: "  causeway policy apply -f policy.yaml\n  causeway policy apply -f policy.yaml --confirm 5m",
		Args:    frame.Exactly(),
	}
	policyFiles(cmd, &files)
	frame.YesFlag(cmd, &yes)
	cmd.Flags().DurationVar(&confirm, "confirm", 0, "go back by itself after this `TIME`, 30s to 24h, unless it is confirmed")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		if cmd.Flags().Changed("confirm") && (confirm < 30*time.Second || confirm > 24*time.Hour) {
			return frame.Usagef("--confirm %s is not between 30s and 24h", confirm)
		}
		in, err := manifests{files: files}.read(ctx, c)
		if err != nil {
			return err
		}
		if err := policiesAlone(in.Documents); err != nil {
			return err
		}
		steps, change, err := c.previewed(ctx, hub, in)
		if err != nil {
			return err
		}
		if len(stepNames(steps)) == 0 {
			return c.Show(policyApplied{Steps: steps, Policy: change}, nil, func(p *frame.Page) { p.Line("Nothing differs") })
		}
		if c.Format == frame.FormatTable || c.Format == frame.FormatWide {
			if err := c.Show(nil, nil, func(p *frame.Page) { changePage(p, change); p.Gap() }); err != nil {
				return err
			}
		}
		if change.Opens+change.Closes > 0 {
			if err := c.Confirm(yes, "Apply it?"); err != nil {
				return err
			}
		}
		in.Tag, in.Confirm = change.Tag, api.Duration(confirm)
		steps, a, err := c.send(ctx, hub, in)
		if err != nil {
			return err
		}
		return c.Show(policyApplied{steps, change, a.Confirm}, stepNames(steps), func(p *frame.Page) {
			stepsTable(p, steps)
			if a.Confirm != nil {
				p.Gap()
				p.Line("%s: causeway policy confirm", protocol.Printable(pendingText(a.Confirm)))
			}
		})
	})
}

// pendingText is such as: it goes back in 5m unless it is confirmed.
func pendingText(x *api.PolicyPending) string {
	if left := time.Until(x.Deadline); left > 0 {
		return fmt.Sprintf("%s: goes back in %s unless it is confirmed", strings.Join(x.Objects, ", "), frame.Span(left))
	}
	return strings.Join(x.Objects, ", ") + ": goes back now, as nobody confirmed it"
}

func (c *cli) policyConfirm() *cobra.Command {
	var back bool
	cmd := &cobra.Command{
		Use:   "confirm",
		Short: "Have the change of 'policy apply --confirm' stay",
		Long: `Have the change of 'causeway policy apply --confirm' stay, which goes back by itself
otherwise. With --back it goes back now.`,
		Args: frame.Exactly(),
	}
	cmd.Flags().BoolVar(&back, "back", false, "have it go back now")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		a, err := hub.ConfirmPolicy(ctx, api.PolicyConfirm{Back: back})
		if err != nil {
			return err
		}
		return c.Show(a, a.Objects, func(p *frame.Page) {
			p.Line("%s %s", protocol.Printable(strings.Join(a.Objects, ", ")), map[bool]string{true: "went back", false: "confirmed"}[back])
		})
	})
}

// policiesAlone refuses what is no segment or policy: it would not be shown.
func policiesAlone(docs []api.ApplyDocument) error {
	for _, d := range docs {
		var head struct {
			Kind string `json:"kind"`
		}
		if json.Unmarshal(d.Document, &head) != nil {
			continue // the hub says so
		}
		if kind := strings.ToLower(head.Kind); kind != "" && !slices.Contains([]string{"segment", "policy"}, kind) {
			return fmt.Errorf("%s: a %s is neither segment nor policy; use 'causeway apply -f'", protocol.Printable(d.At), protocol.Printable(kind))
		}
	}
	return nil
}

func (c *cli) policyDiff() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Show what files would open, close and cut, and change nothing",
		Long: `Show what 'causeway policy apply', or 'causeway apply' of documents of any kind, would open
and close, and which connections would be cut. Nothing is changed. Exit status is 0 if
nothing opens or closes, and 3 if something does. 'causeway diff' shows what of documents
differs.`,
		Example: "  causeway policy diff -f policy.yaml",
		Args:    frame.Exactly(),
	}
	policyFiles(cmd, &files)
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		in, err := manifests{files: files}.read(ctx, c)
		if err != nil {
			return err
		}
		steps, change, err := c.previewed(ctx, hub, in)
		if err != nil {
			return err
		}
		if err := c.Show(change, stepNames(steps), func(p *frame.Page) { changePage(p, change) }); err != nil {
			return err
		}
		if change.Opens+change.Closes > 0 {
			return errDiffers
		}
		return nil
	})
}
