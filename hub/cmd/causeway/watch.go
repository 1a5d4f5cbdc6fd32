package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
)

// watchEvery is how often a list that is watched is read again.
const watchEvery = time.Second

// watcher remembers what of a list was printed. nil: the list is printed once.
type watcher struct {
	began bool
	seen  map[string]string // what is shown of an object, by name
	order []string
}

// change is one line of JSON (or document of YAML) of a list that is watched.
type change struct {
	Change string `json:"change"` // present, added, changed or removed
	Name   string `json:"name"`
	Object any    `json:"object,omitempty"`
}

// watchable is leaf for a list: with --watch it goes on and prints what changes. A hub
// that goes away is waited for.
func (c *cli) watchable(cmd *cobra.Command, f func(ctx context.Context, hub *api.Client, args []string) error) *cobra.Command {
	var watch bool
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on, and print what changes, until interrupted")
	return c.leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if !watch {
			return f(ctx, hub, args)
		}
		c.watch = &watcher{seen: map[string]string{}}
		lost := false
		for {
			err := f(ctx, hub, args)
			var u usage
			switch {
			case ctx.Err() != nil:
				return nil
			case err == nil:
				lost = false
			case !c.watch.began || errors.As(err, &u):
				return err
			case !lost:
				fmt.Fprintf(c.err, "causeway: %v; trying again\n", err)
				lost = true
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(watchEvery):
			}
		}
	})
}

// observed is an object of a list as a watcher sees it.
type observed struct {
	name   string
	object any
	row    []any
}

// observe prints what of a list is new, has changed as far as a table shows it, or is gone.
func (c *cli) observe(header []string, items []observed) error {
	c.progress.end()
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
		if now[name] {
			kept = append(kept, name)
			continue
		}
		delete(w.seen, name)
		row := []any{name, cell{text: "removed", meaning: bad}}
		for len(row) < len(header) {
			row = append(row, "")
		}
		rows = append(rows, row)
		changes = append(changes, change{"removed", name, nil})
	}
	w.order = kept
	first := !w.began
	w.began = true
	switch c.format {
	case formatJSON:
		e := json.NewEncoder(c.out)
		e.SetEscapeHTML(false)
		for _, ch := range changes {
			if err := e.Encode(ch); err != nil {
				return err
			}
		}
		return nil
	case formatYAML:
		for _, ch := range changes {
			fmt.Fprintln(c.out, "---")
			if err := c.yaml(ch); err != nil {
				return err
			}
		}
		return nil
	case formatName:
		for _, ch := range changes {
			if _, err := fmt.Fprintln(c.out, printable(ch.Name)); err != nil {
				return err
			}
		}
		return nil
	}
	if len(rows) == 0 && !first {
		return nil
	}
	p := &page{colour: c.colour(), width: c.width()}
	p.table(header, rows)
	text := p.b.String()
	if !first { // the header stands above already
		_, text, _ = strings.Cut(text, "\n")
	}
	_, err := fmt.Fprint(c.out, text)
	return err
}

// signature is what a row shows, without what only grows with time.
func signature(row []any) string {
	var b strings.Builder
	for _, v := range row {
		if c, ok := v.(cell); ok {
			if c.moving {
				continue
			}
			v = c.text
		}
		fmt.Fprintf(&b, "%v\x00", v)
	}
	return b.String()
}
