package frame

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/protocol"
)

// watcher has the objects of a list that is watched, and what of them was printed. nil:
// the list is printed once.
type watcher struct {
	log     bool // entries are only added: none is remembered
	began   bool
	seen    map[string]string // what is shown of an object, by name
	order   []string
	objects map[string]json.RawMessage
	names   []string // of objects, in their order
}

// change is one line of JSON (or document of YAML) of a list that is watched.
type change struct {
	Change string `json:"change"` // present, added, changed or removed
	Name   string `json:"name"`
	Object any    `json:"object,omitempty"`
}

// Watchable is leaf for a list of api.Watch…: with --watch it goes on and prints what
// changes. A hub that goes away is waited for. f gets the list by listed.
func (c *CLI) Watchable(kind string, cmd *cobra.Command, f func(ctx context.Context, hub *api.Client, args []string) error) *cobra.Command {
	return c.WatchableOf(func([]string) (string, error) { return kind, nil }, cmd, f)
}

// WatchableOf is watchable for a list that the arguments name.
func (c *CLI) WatchableOf(of func(args []string) (kind string, err error), cmd *cobra.Command, f func(ctx context.Context, hub *api.Client, args []string) error) *cobra.Command {
	var watch bool
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on, and print what changes, until interrupted")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if !watch {
			return f(ctx, hub, args)
		}
		kind, err := of(args)
		if err != nil {
			return err
		}
		w := &watcher{log: api.IsLog(kind), seen: map[string]string{}, objects: map[string]json.RawMessage{}}
		c.watch = w
		limit := 0
		if n, err := cmd.Flags().GetInt("limit"); err == nil {
			limit = n
			if err := CheckLimit(limit); err != nil {
				return err
			}
		}
		err = hub.Follow(ctx, api.Watch{Kind: kind, Limit: limit,
			Lost: func(err error) { fmt.Fprintf(c.Err, "causeway: %v; trying again\n", err) },
			Each: func(changes []api.Change) error {
				w.take(changes)
				return f(ctx, hub, args)
			}})
		if ctx.Err() != nil {
			return nil // interrupted, as it is meant to be ended
		}
		return err
	})
}

// Watching reports whether the command watches a list: f of Watchable is called for each news of it.
func (c *CLI) Watching() bool { return c.watch != nil }

// take applies changes to the list.
func (w *watcher) take(changes []api.Change) {
	if w.log {
		clear(w.objects)
		w.names = nil
	}
	for _, ch := range changes {
		_, known := w.objects[ch.Name]
		switch {
		case ch.Change == api.Removed:
			delete(w.objects, ch.Name)
			w.names = slices.DeleteFunc(w.names, func(n string) bool { return n == ch.Name })
			continue
		case !known:
			w.names = append(w.names, ch.Name)
		}
		w.objects[ch.Name] = ch.Object
	}
}

// Listed is the list that is watched, or what once reads.
func Listed[T any](ctx context.Context, c *CLI, once func(context.Context) ([]T, error)) ([]T, error) {
	if c.watch == nil {
		return once(ctx)
	}
	out := make([]T, len(c.watch.names))
	for i, name := range c.watch.names {
		if err := json.Unmarshal(c.watch.objects[name], &out[i]); err != nil {
			return nil, fmt.Errorf("read the hub's changes: %w", err)
		}
	}
	return out, nil
}

// observed is an object of a list as a watcher sees it.
type observed struct {
	name   string
	object any
	row    []any
}

// observe prints what of a list is new, has changed as far as a table shows it, or is gone.
func (c *CLI) observe(header []string, items []observed) error {
	c.Progress.End()
	w := c.watch
	now := map[string]bool{}
	var rows [][]any
	var changes []change
	for _, it := range items {
		now[it.name] = true
		shown := signature(it.row)
		before, known := w.seen[it.name]
		if known && before == shown {
			continue
		}
		what := "changed"
		switch {
		case !w.began:
			what = "present"
		case !known:
			what = "added"
		}
		if !known {
			w.order = append(w.order, it.name)
		}
		w.seen[it.name] = shown
		rows = append(rows, it.row)
		changes = append(changes, change{what, it.name, it.object})
	}
	kept := w.order[:0]
	for _, name := range w.order {
		if now[name] || w.log {
			kept = append(kept, name)
			continue
		}
		delete(w.seen, name)
		row := []any{name, Cell{Text: "removed", Meaning: Bad}}
		for len(row) < len(header) {
			row = append(row, "")
		}
		rows = append(rows, row)
		changes = append(changes, change{"removed", name, nil})
	}
	w.order = kept
	if w.log {
		clear(w.seen)
		w.order = nil
	}
	first := !w.began
	w.began = true
	return c.printChanges(header, rows, changes, first)
}

// printChanges prints what has changed of a list; first: nothing was printed of it before.
func (c *CLI) printChanges(header []string, rows [][]any, changes []change, first bool) error {
	switch c.Format {
	case FormatJSON:
		e := json.NewEncoder(c.Out)
		e.SetEscapeHTML(false)
		for _, ch := range changes {
			if err := e.Encode(ch); err != nil {
				return err
			}
		}
		return nil
	case FormatYAML:
		for _, ch := range changes {
			fmt.Fprintln(c.Out, "---")
			if err := c.yaml(ch); err != nil {
				return err
			}
		}
		return nil
	case FormatName:
		for _, ch := range changes {
			if _, err := fmt.Fprintln(c.Out, protocol.Printable(ch.Name)); err != nil {
				return err
			}
		}
		return nil
	}
	if len(rows) == 0 && !first {
		return nil
	}
	p := &Page{Colour: c.Colour(), Width: c.width()}
	p.Table(header, rows)
	text := p.b.String()
	if !first { // the header stands above already
		_, text, _ = strings.Cut(text, "\n")
	}
	_, err := fmt.Fprint(c.Out, text)
	return err
}

// signature is what a row shows, without what only grows with time.
func signature(row []any) string {
	var b strings.Builder
	for _, v := range row {
		if c, ok := v.(Cell); ok {
			if c.Moving {
				continue
			}
			v = c.Text
		}
		fmt.Fprintf(&b, "%v\x00", v)
	}
	return b.String()
}
