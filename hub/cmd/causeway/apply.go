package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/protocol"
)

const manifestHelp = `A file holds one or more YAML documents, parted by lines of '---'. Each has a kind
(site, node or route) and what it shall be; what a document does not name stays as
it is, and so does what has no document. 'causeway explain site-file', node-file and route-file
tell the fields.`

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
  END
  causeway diff -f dc.yaml
  causeway apply -f dc.yaml`

func fileFlag(cmd *cobra.Command, files *[]string) {
	cmd.Flags().StringArrayVarP(files, "filename", "f", nil, "`FILE` with YAML documents, - for standard input (repeatable)")
	must(cmd.MarkFlagFilename("filename", "yaml", "yml"))
}

// steps reads files and plans what they ask for.
func (c *cli) steps(ctx context.Context, hub *api.Client, files []string) ([]step, error) {
	if len(files) == 0 {
		return nil, usagef("-f FILE is missing")
	}
	ms, err := c.readManifests(files)
	if err != nil {
		return nil, err
	}
	p, err := newPlanner(ctx, hub)
	if err != nil {
		return nil, err
	}
	return p.plan(ms)
}

func (c *cli) apply() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make sites, node labels and approvals as files say",
		Long: `Make sites, labels of nodes and decisions about routes as files say.

` + manifestHelp + `

Everything is checked first: a mistake in any document changes nothing. Then the
changes are made one after the other, and an object that somebody else changed
meanwhile is left alone. If one fails the rest is not tried, and the answer names
what was done, what failed and what was not tried.`,
		Example: manifestExample,
		Args:    exactly(),
	}
	fileFlag(cmd, &files)
	return c.leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		steps, err := c.steps(ctx, hub, files)
		if err != nil {
			return err
		}
		var failure error
		for i := range steps {
			s := &steps[i]
			switch {
			case s.Action == "none":
				s.Result = "unchanged"
			case failure != nil:
				s.Result = "not tried"
			default:
				c.progress.now("%d of %d: %s", i+1, len(steps), s.Object)
				s.Result = "done"
				if err := s.do(ctx); err != nil {
					s.Result, s.Error = "failed", err.Error()
					failure = fmt.Errorf("%s: %s: %w; what is 'done' stays, run the command again when it is mended", s.At, s.Object, err)
				}
			}
		}
		if err := c.showSteps(steps); err != nil {
			return err
		}
		return failure
	})
}

func (c *cli) diff() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Show what 'apply' would change, and change nothing",
		Long: `Show what 'causeway apply' would change, and change nothing. Exit status is 0 if
nothing differs and 3 if something does.

` + manifestHelp,
		Example: manifestExample,
		Args:    exactly(),
	}
	fileFlag(cmd, &files)
	return c.leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		steps, err := c.steps(ctx, hub, files)
		if err != nil {
			return err
		}
		differs := false
		for _, s := range steps {
			differs = differs || s.Action != "none"
		}
		if err := c.show(steps, stepNames(steps), func(p *page) { diffPage(p, steps) }); err != nil {
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

func diffPage(p *page, steps []step) {
	n := 0
	for _, s := range steps {
		if s.Action == "none" {
			continue
		}
		n++
		p.line("%s %s (%s)", s.Action, protocol.Printable(s.Object), protocol.Printable(s.At))
		for _, d := range s.Diff {
			m := good
			if d[0] == '-' {
				m = bad
			}
			p.line("%s", p.paint(m, d))
		}
	}
	if n == 0 {
		p.line("Nothing differs")
	}
}

func (c *cli) showSteps(steps []step) error {
	return c.show(steps, stepNames(steps), func(p *page) {
		rows := make([][]any, len(steps))
		for i, s := range steps {
			m := plain
			switch s.Result {
			case "done":
				m = good
			case "failed":
				m = bad
			case "not tried":
				m = warn
			}
			rows[i] = []any{s.Object, s.Action, cell{text: s.Result, meaning: m}, s.Error}
		}
		p.table([]string{"OBJECT", "ACTION", "RESULT", "WHY"}, rows)
	})
}
