package frame

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/sys/unix"

	"causeway/protocol"
)

// Format is the value of -o.
type Format string

// Values of Format.
const (
	FormatTable Format = "table"
	FormatWide  Format = "wide"
	FormatJSON  Format = "json"
	FormatYAML  Format = "yaml"
	FormatName  Format = "name"
)

// Formats are all that -o takes.
var Formats = []string{string(FormatTable), string(FormatWide), string(FormatJSON), string(FormatYAML), string(FormatName)}

// String is the format.
func (f *Format) String() string { return string(*f) }

// Type names the flag's value in help.
func (f *Format) Type() string { return "FORMAT" }

// Set takes one of Formats.
func (f *Format) Set(s string) error {
	if !slices.Contains(Formats, s) {
		return fmt.Errorf("use %s", strings.Join(Formats, ", "))
	}
	*f = Format(s)
	return nil
}

// Show prints v in the format asked for: v itself as JSON or YAML, the names
// one a line, or what tableOf writes.
func (c *CLI) Show(v any, names []string, tableOf func(*Page)) error {
	c.Progress.End()
	switch c.Format {
	case FormatJSON:
		e := json.NewEncoder(c.Out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(v)
	case FormatYAML:
		return c.yaml(v)
	case FormatName:
		for _, n := range names {
			if _, err := fmt.Fprintln(c.Out, protocol.Printable(n)); err != nil {
				return err
			}
		}
		return nil
	}
	p := &Page{Colour: c.Colour(), Width: c.width()}
	tableOf(p)
	_, err := fmt.Fprint(c.Out, p.b.String())
	return err
}

// yaml prints v with the field names of its JSON.
func (c *CLI) yaml(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if b, err = yaml.JSONToYAML(b); err != nil {
		return err
	}
	_, err = c.Out.Write(b)
	return err
}

// List is show for a list that JSON prints as [] when it is empty. Columns whose
// header begins with '+' are those of -o wide alone.
func List[T any](c *CLI, items []T, name func(T) string, none string, header []string, row func(*Page, T) []any) error {
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
	return c.Show(items, names, func(p *Page) {
		if len(items) == 0 {
			p.Line("%s", none)
			return
		}
		rows := make([][]any, len(items))
		for i, it := range items {
			rows[i] = narrow(row(p, it))
		}
		p.Table(header, rows)
	})
}

// columns leaves out what is for -o wide, unless that is asked for.
func (c *CLI) columns(header []string) (shown []string, narrow func([]any) []any) {
	var keep []int
	for i, h := range header {
		h, wide := strings.CutPrefix(h, "+")
		if !wide || c.Format == FormatWide {
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

// Colour reports whether the output is a terminal that wants colours
// (no-color.org).
func (c *CLI) Colour() bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && c.width() > 0
}

// width is the terminal's width in columns, 0 when the output is no terminal.
func (c *CLI) width() int {
	f, ok := c.Out.(*os.File)
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

// Page collects what a command prints for a person.
type Page struct {
	b      strings.Builder
	Colour bool
	Width  int // 0: not a terminal, nothing is wrapped
}

// String is what was printed so far.
func (p *Page) String() string { return p.b.String() }

// Line prints one line. The text is not filtered: see printable.
func (p *Page) Line(msg string, args ...any) { fmt.Fprintf(&p.b, msg+"\n", args...) }

// Gap puts an empty line between what is there and what follows.
func (p *Page) Gap() {
	if p.b.Len() > 0 {
		p.b.WriteByte('\n')
	}
}

// Facts prints names and values below each other. Empty values are left out.
func (p *Page) Facts(kv ...string) {
	wide := 0
	for i := 0; i < len(kv); i += 2 {
		if kv[i+1] != "" {
			wide = max(wide, len(kv[i]))
		}
	}
	for i := 0; i < len(kv); i += 2 {
		if kv[i+1] != "" {
			p.Line("%-*s  %s", wide, kv[i], protocol.Printable(kv[i+1]))
		}
	}
}

// Table prints rows below a header. On a terminal the last column, where free
// text goes, is wrapped so that a row fits.
func (p *Page) Table(header []string, rows [][]any) {
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
			var m Meaning
			if c, ok := v.(Cell); ok {
				v, m = c.Text, c.Meaning
			}
			s := p.Paint(m, fmt.Sprint(v))
			used[i] = max(used[i], text.StringWidthWithoutEscSequences(s))
			out[i] = s
		}
		t.AppendRow(out)
	}
	if last := len(header) - 1; p.Width > 0 {
		left := p.Width
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

// Cell is a value of a table that has a meaning beside its text.
type Cell struct {
	Text    string
	Meaning Meaning
	Moving  bool // it grows with time alone
}

// Meaning is what colour says.
type Meaning int

// Meanings are SGR colours.
const (
	Plain Meaning = 0
	Bad   Meaning = 31
	Good  Meaning = 32
	Warn  Meaning = 33
)

// Paint colours printable text where the output is a terminal.
func (p *Page) Paint(m Meaning, s string) string {
	s = protocol.Printable(s)
	if !p.Colour || m == Plain {
		return s
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", m, s)
}
