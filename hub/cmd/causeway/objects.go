package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

// objectKinds are the kinds of declared objects: all but those that have commands of their own.
func objectKinds() (l []string) {
	for _, k := range slices.Sorted(maps.Keys(api.Documents)) {
		if k != "site" && k != "node" && k != "route" {
			l = append(l, k)
		}
	}
	return l
}

// checkKind says which command is meant where a kind has its own.
func checkKind(kind string) error {
	switch kind {
	case "site", "node", "route":
		return frame.Usagef("a %s is no declared object; see 'causeway %s --help'", kind, kind)
	}
	return frame.CheckName("kind", kind)
}

// objectNames completes a kind, then the name of an object.
func (c *cli) objectNames(ctx context.Context, hub *api.Client, args []string) (names []string, err error) {
	if len(args) == 0 {
		return objectKinds(), nil
	}
	l, err := hub.Objects(ctx, args[0])
	for _, o := range l {
		names = append(names, o.Name)
	}
	return names, err
}

func (c *cli) get() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get KIND [NAME]",
		Short: "Show declared objects: " + strings.Join(objectKinds(), ", "),
		Long: `Show the declared objects of a kind, or one of them. 'causeway apply' declares them,
'causeway explain KIND-file' tells the fields.`,
		Example:           "  causeway get limit\n  causeway get limit branch -o yaml\n  causeway get limit --watch",
		Args:              frame.Between(1, "KIND", "NAME"),
		ValidArgsFunction: c.Completer(2, c.objectNames),
	}
	watched := func(args []string) (string, error) {
		if len(args) == 2 {
			return "", frame.Usagef("--watch is of all objects of a kind; leave %.80q out", args[1])
		}
		return api.WatchObjects(args[0]), checkKind(args[0])
	}
	return c.WatchableOf(watched, cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := checkKind(args[0]); err != nil {
			return err
		}
		if len(args) == 2 {
			if err := frame.CheckName(args[0], args[1]); err != nil {
				return err
			}
			o, err := hub.Object(ctx, args[0], args[1])
			if err != nil {
				return err
			}
			return c.showObject(o)
		}
		l, err := frame.Listed(ctx, c.CLI, func(ctx context.Context) ([]api.Object, error) { return hub.Objects(ctx, args[0]) })
		if err != nil {
			return err
		}
		return frame.List(c.CLI, l, func(o api.Object) string { return o.Name },
			fmt.Sprintf("No %s is declared: causeway explain %s-file", args[0], args[0]),
			[]string{strings.ToUpper(args[0]), "AGE", "NODES", "SPEC", "STATUS", "+GENERATION"},
			func(_ *frame.Page, o api.Object) []any {
				return []any{o.Name, frame.Aged(o.Created), haveText(o), specText(o), statusText(o), o.Generation}
			})
	})
}

func (c *cli) showObject(o api.Object) error {
	return c.Show(o, []string{o.Name}, func(p *frame.Page) {
		facts := []string{strings.ToUpper(o.Kind[:1]) + o.Kind[1:], o.Name}
		spec := specFields(o)
		for _, k := range slices.Sorted(maps.Keys(spec)) {
			facts = append(facts, k, spec[k])
		}
		for _, k := range slices.Sorted(maps.Keys(o.Status)) {
			facts = append(facts, k, o.Status[k])
		}
		facts = append(facts, "Nodes", haveText(o)+" have it")
		if len(o.Lack) > 0 {
			facts = append(facts, "Lacking", strings.Join(o.Lack, ", "))
		}
		if !o.Known {
			facts = append(facts, "Mind", "a newer hub wrote it; this hub keeps it and does not know what it means")
		}
		p.Facts(append(facts, "Generation", fmt.Sprint(o.Generation), "Age", frame.Age(o.Created))...)
	})
}

// specFields are a spec's fields as texts that fit a terminal.
func specFields(o api.Object) map[string]string {
	f := api.SpecFields(o.Spec)
	for k, v := range f {
		f[k] = protocol.Printable(v)
	}
	return f
}

func specText(o api.Object) string {
	var l []string
	f := specFields(o)
	for _, k := range slices.Sorted(maps.Keys(f)) {
		l = append(l, k+"="+f[k])
	}
	return strings.Join(l, " ")
}

// haveText is how many of the nodes that are told have it.
func haveText(o api.Object) string { return fmt.Sprintf("%d/%d", o.Have, o.Have+len(o.Lack)) }

func statusText(o api.Object) string {
	if !o.Known {
		return "of a newer hub"
	}
	var l []string
	for _, k := range slices.Sorted(maps.Keys(o.Status)) {
		l = append(l, k+" "+o.Status[k])
	}
	return strings.Join(l, ", ")
}

func (c *cli) deleteObject() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:               "delete KIND NAME",
		Short:             "Take a declared object away: " + strings.Join(objectKinds(), ", "),
		Args:              frame.Exactly("KIND", "NAME"),
		ValidArgsFunction: c.Completer(2, c.objectNames),
	}
	frame.YesFlag(cmd, &yes)
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := checkKind(args[0]); err != nil {
			return err
		}
		if err := frame.CheckName(args[0], args[1]); err != nil {
			return err
		}
		if err := c.Confirm(yes, "Delete %s %s?", args[0], args[1]); err != nil {
			return err
		}
		if err := hub.DeleteObject(ctx, args[0], args[1]); err != nil {
			return err
		}
		return c.Done(args[1], "deleted")
	})
}
