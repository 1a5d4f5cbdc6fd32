package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"causeway/protocol"

	"github.com/goccy/go-yaml"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/sys/unix"
)

// format is the value of -o.
type format string

const (
	formatTable format = "table"
	formatWide  format = "wide"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
	formatName  format = "name"
)

var formats = []string{string(formatTable), string(formatWide), string(formatJSON), string(formatYAML), string(formatName)}

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "FORMAT" }
func (f *format) Set(s string) error {
	if !slices.Contains(formats, s) {
		return fmt.Errorf("use %s", strings.Join(formats, ", "))
	}
	*f = format(s)
	return nil
}

// show prints v in the format asked for: v itself as JSON or YAML, the names
// one a line, or what tableOf writes.
func (c *cli) show(v any, names []string, tableOf func(*page)) error {
	c.progress.end()
	switch c.format {
	case formatJSON:
		e := json.NewEncoder(c.out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(v)
	case formatYAML:
		return c.yaml(v)
	case formatName:
		for _, n := range names {
			if _, err := fmt.Fprintln(c.out, protocol.Printable(n)); err != nil {
				return err
			}
		}
		return nil
	}
	p := &page{colour: c.colour(), width: c.width()}
	tableOf(p)
	_, err := fmt.Fprint(c.out, p.b.String())
	return err
}

// yaml prints v with the field names of its JSON.
func (c *cli) yaml(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if b, err = yaml.JSONToYAML(b); err != nil {
		return err
	}
	_, err = c.out.Write(b)
	return err
}

// list is show for a list that JSON prints as [] when it is empty. Columns whose
// header begins with '+' are those of -o wide alone.
func list[T any](c *cli, items []T, name func(T) string, none string, header []string, row func(*page, T) []any) error {
	if items == nil {
		items = []T{}
	}
	header, narrow := c.columns(header)
	if c.watch != nil {
		all := make([]observed, len(items))
		for i, it := range items {
			all[i] = observed{name(it), it, narrow(row(nil, it))}
		}
		return c.observe(header, all)
	}
	names := make([]string, len(items))
	for i, it := range items {
		names[i] = name(it)
	}
	return c.show(items, names, func(p *page) {
		if len(items) == 0 {
			p.line("%s", none)
			return
		}
		rows := make([][]any, len(items))
		for i, it := range items {
			rows[i] = narrow(row(p, it))
		}
		p.table(header, rows)
	})
}

// columns leaves out what is for -o wide, unless that is asked for.
func (c *cli) columns(header []string) (shown []string, narrow func([]any) []any) {
	var keep []int
	for i, h := range header {
		h, wide := strings.CutPrefix(h, "+")
		if !wide || c.format == formatWide {
			shown, keep = append(shown, h), append(keep, i)
		}
	}
	return shown, func(row []any) []any {
		out := make([]any, len(keep))
		for i, k := range keep {
			out[i] = row[k]
		}
		return out
	}
}

// colour reports whether the output is a terminal that wants colours
// (no-color.org).
func (c *cli) colour() bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && c.width() > 0
}

// width is the terminal's width in columns, 0 when the output is no terminal.
func (c *cli) width() int {
	f, ok := c.out.(*os.File)
	if !ok {
		return 0
	}
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	if ws.Col == 0 {
		return 80 // a terminal that does not know
	}
	return int(ws.Col)
}

// page collects what a command prints for a person.
type page struct {
	b      strings.Builder
	colour bool
	width  int // 0: not a terminal, nothing is wrapped
}

// line prints one line. The text is not filtered: see printable.
func (p *page) line(msg string, args ...any) { fmt.Fprintf(&p.b, msg+"\n", args...) }

// gap puts an empty line between what is there and what follows.
func (p *page) gap() {
	if p.b.Len() > 0 {
		p.b.WriteByte('\n')
	}
}

// facts prints names and values below each other. Empty values are left out.
func (p *page) facts(kv ...string) {
	wide := 0
	for i := 0; i < len(kv); i += 2 {
		if kv[i+1] != "" {
			wide = max(wide, len(kv[i]))
		}
	}
	for i := 0; i < len(kv); i += 2 {
		if kv[i+1] != "" {
			p.line("%-*s  %s", wide, kv[i], protocol.Printable(kv[i+1]))
		}
	}
}

// table prints rows below a header. On a terminal the last column, where free
// text goes, is wrapped so that a row fits.
func (p *page) table(header []string, rows [][]any) {
	t := table.NewWriter()
	t.SetStyle(table.Style{
		Name:    "causeway",
		Box:     table.BoxStyle{PaddingRight: "  "},
		Format:  table.FormatOptions{Header: text.FormatDefault},
		Options: table.OptionsNoBordersAndSeparators,
	})
	t.SuppressTrailingSpaces()
	h := make(table.Row, len(header))
	used := make([]int, len(header))
	for i, s := range header {
		h[i], used[i] = s, len(s)
	}
	t.AppendHeader(h)
	for _, r := range rows {
		out := make(table.Row, len(r))
		for i, v := range r {
			var m meaning
			if c, ok := v.(cell); ok {
				v, m = c.text, c.meaning
			}
			s := p.paint(m, fmt.Sprint(v))
			used[i] = max(used[i], text.StringWidthWithoutEscSequences(s))
			out[i] = s
		}
		t.AppendRow(out)
	}
	if last := len(header) - 1; p.width > 0 {
		left := p.width
		for _, w := range used[:last] {
			left -= w + 2
		}
		if left = max(left, 20); left < used[last] {
			t.SetColumnConfigs([]table.ColumnConfig{{Number: last + 1, WidthMax: left, WidthMaxEnforcer: text.WrapSoft}})
		}
	}
	p.b.WriteString(t.Render())
	p.b.WriteByte('\n')
}

// cell is a value of a table that has a meaning beside its text.
type cell struct {
	text    string
	meaning meaning
	moving  bool // it grows with time alone
}

// meaning is what colour says.
type meaning int

// Meanings are SGR colours.
const (
	plain meaning = 0
	bad   meaning = 31
	good  meaning = 32
	warn  meaning = 33
)

// paint colours printable text where the output is a terminal.
func (p *page) paint(m meaning, s string) string {
	s = protocol.Printable(s)
	if !p.colour || m == plain {
		return s
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", m, s)
}
