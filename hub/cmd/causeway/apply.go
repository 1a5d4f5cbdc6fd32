package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/exitstatus"
	"causeway/protocol"
)

var manifestHelp = `A file holds one or more YAML documents, parted by lines of '---'; of a directory all files
*.yaml and *.yml are taken. Each document has a kind and what it shall be. What has no
document stays as it is, and so do fields of a site or node that a document does not
name; a declared object is as its document says. With --prune, of the kinds and names
that it selects, what has no document goes. 'causeway explain KIND-file' tells the fields of
a kind: ` + kindNames() + `.`

const manifestExample = `  cat > dc.yaml <<END
  kind: site
  name: idc-sh
  ranges: [10.201.0.0/16]
  max_age: 72h
  ---
  kind: node
  name: sh-1
  labels: {rack: r12}
  ---
  kind: route
  node: sh-1
  prefix: 192.168.20.0/24
  state: approved
  ---
  kind: limit
  name: branch
  site: idc-sh
  bytes: 12500000
  END
  causeway diff -f dc.yaml
  causeway apply -f dc.yaml
  causeway apply -f sites/ --prune limit --prune site/sh-*`

// manifests are what 'apply' and 'diff' are given.
type manifests struct {
	files []string
	prune []string
}

func (c *cli) manifestFlags(cmd *cobra.Command, m *manifests) {
	cmd.Flags().StringArrayVarP(&m.files, "filename", "f", nil, "`FILE` or directory with YAML documents, - for standard input (repeatable)")
	frame.Must(cmd.MarkFlagFilename("filename", "yaml", "yml"))
	cmd.Flags().StringArrayVar(&m.prune, "prune", nil, "take away what has no document: `SELECTOR` is a kind, or kind/pattern of names (repeatable)")
	frame.Must(cmd.RegisterFlagCompletionFunc("prune", cobra.FixedCompletions(api.ObjectKinds(), cobra.ShellCompDirectiveNoFileComp)))
}

// read reads the files.
func (m manifests) read(ctx context.Context, c *cli) (api.Apply, error) {
	if len(m.files) == 0 {
		return api.Apply{}, frame.Usagef("-f FILE is missing")
	}
	docs, err := exitstatus.Until(ctx, func() ([]api.ApplyDocument, error) { return c.readManifests(m.files) })
	return api.Apply{Documents: docs, Prune: m.prune}, err
}

// send has the hub do what documents ask for, or say what that would be.
func (c *cli) send(ctx context.Context, hub *api.Client, in api.Apply) (steps []step, a api.Applied, err error) {
	a, err = hub.Apply(ctx, in)
	if errors.Is(err, api.ErrNotFound) && !slices.ContainsFunc(in.Documents, func(d api.ApplyDocument) bool { return strings.HasPrefix(err.Error(), d.At) }) {
		return nil, a, errors.New("the hub is older than this causeway and takes no files in one transaction; run its own version of causeway")
	}
	if err != nil {
		return nil, a, err
	}
	steps = make([]step, len(a.Steps))
	for i, s := range a.Steps {
		if steps[i] = (step{ApplyStep: s}); !in.DryRun {
			steps[i].Result = "unchanged"
			if s.Action != "none" {
				steps[i].Result = "done"
			}
		}
	}
	return steps, a, nil
}

// confirmPruned asks whether what would be pruned may go, and holds in to the state that it was asked of.
func (c *cli) confirmPruned(ctx context.Context, hub *api.Client, in *api.Apply, yes bool) error {
	in.DryRun = true
	steps, a, err := c.send(ctx, hub, *in)
	if err != nil {
		return err
	}
	in.DryRun, in.Sequence = false, a.Sequence
	var gone []string
	for _, s := range steps {
		if s.Action == "delete" {
			gone = append(gone, protocol.Printable(s.Object))
		}
	}
	if len(gone) == 0 {
		return nil
	}
	n := len(gone)
	if n > 5 {
		gone = append(gone[:5], fmt.Sprintf("%d more", n-5))
	}
	return c.Confirm(yes, "Delete %s, which have no document?", strings.Join(gone, ", "))
}

// step is what became of one document.
type step struct {
	api.ApplyStep
	Result string `json:"result,omitempty"` // done or unchanged
}

func (c *cli) apply() *cobra.Command {
	var m manifests
	var yes bool
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make things as files say: sites, limits, node labels, approvals",
		Long: `Make sites, declared objects such as limits, labels of nodes and decisions about
routes as files say.

` + manifestHelp + `

It is one transaction: all of it is done, or, if there is a mistake in any document or
the hub refuses one, nothing. 'causeway policy diff' says what documents open and close.`,
		Example: manifestExample,
		Args:    frame.Exactly(),
	}
	c.manifestFlags(cmd, &m)
	frame.YesFlag(cmd, &yes)
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		in, err := m.read(ctx, c)
		if err != nil {
			return err
		}
		if len(in.Prune) > 0 {
			if err := c.confirmPruned(ctx, hub, &in, yes); err != nil {
				return err
			}
		}
		steps, _, err := c.send(ctx, hub, in)
		if err != nil {
			return err
		}
		return c.showSteps(steps)
	})
}

func (c *cli) diff() *cobra.Command {
	var m manifests
	cmd := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Show what 'apply' would change, and change nothing",
		Long: `Show what 'causeway apply' would change, and change nothing. Exit status is 0 if
nothing differs and 3 if something does.

` + manifestHelp,
		Example: manifestExample,
		Args:    frame.Exactly(),
	}
	c.manifestFlags(cmd, &m)
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		in, err := m.read(ctx, c)
		if err != nil {
			return err
		}
		in.DryRun = true
		steps, _, err := c.send(ctx, hub, in)
		if err != nil {
			return err
		}
		differs := false
		for _, s := range steps {
			differs = differs || s.Action != "none"
		}
		if err := c.Show(steps, stepNames(steps), func(p *frame.Page) { diffPage(p, steps) }); err != nil {
			return err
		}
		if differs {
			return errDiffers
		}
		return nil
	})
}

func stepNames(steps []step) []string {
	var names []string
	for _, s := range steps {
		if s.Action != "none" {
			names = append(names, s.Object)
		}
	}
	return names
}

func diffPage(p *frame.Page, steps []step) {
	n := 0
	for _, s := range steps {
		if s.Action == "none" {
			continue
		}
		n++
		where := ""
		if s.At != "" {
			where = " (" + protocol.Printable(s.At) + ")"
		}
		p.Line("%s %s%s", s.Action, protocol.Printable(s.Object), where)
		for _, d := range s.Diff {
			m := frame.Good
			if d[0] == '-' {
				m = frame.Bad
			}
			p.Line("%s", p.Paint(m, d))
		}
	}
	if n == 0 {
		p.Line("Nothing differs")
	}
}

func (c *cli) showSteps(steps []step) error {
	return c.Show(steps, stepNames(steps), func(p *frame.Page) { stepsTable(p, steps) })
}

func stepsTable(p *frame.Page, steps []step) {
	rows := make([][]any, len(steps))
	for i, s := range steps {
		m := frame.Plain
		if s.Result == "done" {
			m = frame.Good
		}
		rows[i] = []any{s.Object, s.Action, frame.Cell{Text: s.Result, Meaning: m}}
	}
	p.Table([]string{"OBJECT", "ACTION", "RESULT"}, rows)
}
