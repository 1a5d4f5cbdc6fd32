package main

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/internal/exitstatus"
	"causeway/protocol"
)

const manifestHelp = `A file holds one or more YAML documents, parted by lines of '---'; of a directory all files
*.yaml and *.yml are taken. Each document has a kind and what it shall be. What has no
document stays as it is, and so do fields of a site or node that a document does not
name; a limit is as its document says. 'causeway explain site-file', node-file, route-file
and limit-file tell the fields.`

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
  causeway apply -f dc.yaml`

func fileFlag(cmd *cobra.Command, files *[]string) {
	cmd.Flags().StringArrayVarP(files, "filename", "f", nil, "`FILE` or directory with YAML documents, - for standard input (repeatable)")
	must(cmd.MarkFlagFilename("filename", "yaml", "yml"))
}

// applied reads files and sends them to the hub.
func (c *cli) applied(ctx context.Context, hub *api.Client, files []string, dry bool) ([]step, error) {
	if len(files) == 0 {
		return nil, usagef("-f FILE is missing")
	}
	docs, err := exitstatus.Until(ctx, func() ([]api.ApplyDocument, error) { return c.readManifests(files) })
	if err != nil {
		return nil, err
	}
	a, err := hub.Apply(ctx, api.Apply{Documents: docs, DryRun: dry})
	if errors.Is(err, api.ErrNotFound) && !slices.ContainsFunc(docs, func(d api.ApplyDocument) bool { return strings.HasPrefix(err.Error(), d.At) }) {
		return nil, errors.New("the hub is older than this causeway and takes no files in one transaction; run its own version of causeway")
	}
	if err != nil {
		return nil, err
	}
	out := make([]step, len(a.Steps))
	for i, s := range a.Steps {
		if out[i] = (step{ApplyStep: s}); !dry {
			out[i].Result = "unchanged"
			if s.Action != "none" {
				out[i].Result = "done"
			}
		}
	}
	return out, nil
}

// step is what became of one document.
type step struct {
	api.ApplyStep
	Result string `json:"result,omitempty"` // done or unchanged
}

func (c *cli) apply() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make things as files say: sites, limits, node labels, approvals",
		Long: `Make sites, declared objects such as limits, labels of nodes and decisions about
routes as files say.

` + manifestHelp + `

It is one transaction: all of it is done, or, if there is a mistake in any document or
the hub refuses one, nothing.`,
		Example: manifestExample,
		Args:    exactly(),
	}
	fileFlag(cmd, &files)
	return c.leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		steps, err := c.applied(ctx, hub, files, false)
		if err != nil {
			return err
		}
		return c.showSteps(steps)
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
		steps, err := c.applied(ctx, hub, files, true)
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
			if s.Result == "done" {
				m = good
			}
			rows[i] = []any{s.Object, s.Action, cell{text: s.Result, meaning: m}}
		}
		p.table([]string{"OBJECT", "ACTION", "RESULT"}, rows)
	})
}
