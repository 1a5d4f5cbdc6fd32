package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

// kinds are what 'explain' knows: the type of each kind in -o json, or, of KIND-file, in files for
// apply.
var kinds = map[string]struct{ about, typ string }{
	"status":    {"'causeway status -o json'", "api.Status"},
	"site":      {"'causeway site show -o json'", "api.Site"},
	"token":     {"'causeway token list -o json'", "api.Token"},
	"node":      {"'causeway node show -o json'", "api.Node"},
	"drain":     {"'causeway node drain -o json'", "api.Drain"},
	"route":     {"'causeway route list -o json'", "api.Route"},
	"inventory": {"'causeway inventory show -o json'", "api.Inventory"},
	"incident":  {"'causeway incidents show -o json'", "api.Incident"},
	"flow":      {"'causeway flows -o json'", "api.Flow"},
	"event":     {"'causeway events -o json'", "api.Event"},
	"audit":     {"'causeway audit -o json'", "api.AuditEntry"},
	"proof":     {"'causeway policy prove -o json', field proof", "protocol.PolicyProof"},
}

func init() {
	for kind, doc := range api.Documents {
		kinds[kind+"-file"] = struct{ about, typ string }{"files for 'causeway apply', kind: " + kind, "api." + reflect.TypeOf(doc).Name()}
	}
}

// field is one field of a kind.
type field struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Doc  string `json:"doc,omitempty"`

	of string // type of the struct behind it, "" for none
}

// explanation is the answer of 'explain'.
type explanation struct {
	Path   string  `json:"path"`
	Type   string  `json:"type"`
	Doc    string  `json:"doc"`
	Fields []field `json:"fields"`
}

// library is the types of the API with their comments, from their source.
type library map[string]*ast.TypeSpec // by package and name

func readLibrary() (library, error) {
	lib := library{}
	for pkg, src := range map[string]fs.ReadFileFS{"api": api.Source, "protocol": protocol.Source} {
		files, err := fs.Glob(src, "*.go")
		if err != nil {
			return nil, err
		}
		for _, name := range files {
			b, err := src.ReadFile(name)
			if err != nil {
				return nil, err
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, b, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				return nil, err
			}
			for _, d := range f.Decls {
				g, ok := d.(*ast.GenDecl)
				if !ok || g.Tok != token.TYPE {
					continue
				}
				for _, s := range g.Specs {
					t := s.(*ast.TypeSpec)
					if t.Doc == nil {
						t.Doc = g.Doc
					}
					lib[pkg+"."+t.Name.Name] = t
				}
			}
		}
	}
	return lib, nil
}

// fields lists the fields of a struct as JSON has them, embedded ones in place.
func (l library) fields(typ string) (out []field) {
	t := l[typ]
	if t == nil {
		return nil
	}
	s, ok := t.Type.(*ast.StructType)
	if !ok {
		return nil
	}
	pkg, _, _ := strings.Cut(typ, ".")
	for _, f := range s.Fields.List {
		text, of := l.describe(pkg, f.Type)
		if len(f.Names) == 0 {
			out = append(out, l.fields(of)...)
			continue
		}
		if f.Tag == nil {
			continue
		}
		name, _, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		out = append(out, field{name, text, comment(f.Doc, f.Comment), of})
	}
	return out
}

// describe tells of a type as JSON shows it, and which struct is behind it.
func (l library) describe(pkg string, e ast.Expr) (text, of string) {
	switch t := e.(type) {
	case *ast.StarExpr:
		return l.describe(pkg, t.X)
	case *ast.ArrayType:
		text, of = l.describe(pkg, t.Elt)
		return "list of " + text, of
	case *ast.MapType:
		text, of = l.describe(pkg, t.Value)
		return "map of " + text, of
	case *ast.SelectorExpr:
		return l.named(fmt.Sprint(t.X) + "." + t.Sel.Name)
	case *ast.Ident:
		if ast.IsExported(t.Name) {
			return l.named(pkg + "." + t.Name)
		}
		switch t.Name {
		case "string", "bool":
			return t.Name, ""
		case "float64":
			return "number", ""
		}
		return "whole number", ""
	}
	return "value", ""
}

func (l library) named(name string) (text, of string) {
	switch name {
	case "time.Time":
		return "time (RFC 3339)", ""
	case "time.Duration":
		return "nanoseconds", ""
	case "protocol.Duration", "api.MaxAge", "api.RotateKeys", "protocol.MaxAge", "protocol.RotateKeys":
		return "duration, such as 72h", ""
	case "netip.Prefix":
		return "CIDR", ""
	case "netip.Addr":
		return "IP address", ""
	case "netip.AddrPort":
		return "address:port", ""
	case "protocol.NodeNumber":
		return "node number", ""
	}
	t := l[name]
	if t == nil {
		return "string", ""
	}
	if _, ok := t.Type.(*ast.StructType); ok {
		return "object", name
	}
	pkg, _, _ := strings.Cut(name, ".")
	return l.describe(pkg, t.Type)
}

// comment is a comment in one line.
func comment(groups ...*ast.CommentGroup) string {
	var s []string
	for _, g := range groups {
		if g != nil {
			s = append(s, strings.Join(strings.Fields(g.Text()), " "))
		}
	}
	return strings.Join(s, " ")
}

// doc is what the comments of a struct and of those embedded in it say; "It" is what each begins with.
func (l library) doc(typ string) string {
	t := l[typ]
	pkg, name, _ := strings.Cut(typ, ".")
	text := comment(t.Doc)
	if rest, ok := strings.CutPrefix(text, name+" "); ok {
		text = "It " + rest
	}
	if s, ok := t.Type.(*ast.StructType); ok {
		for _, f := range s.Fields.List {
			if _, of := l.describe(pkg, f.Type); len(f.Names) == 0 && l[of] != nil {
				text += " " + l.doc(of)
			}
		}
	}
	return text
}

// explain answers for KIND or KIND.field.field.
func (l library) explain(path string) (explanation, error) {
	parts := strings.Split(path, ".")
	k, ok := kinds[parts[0]]
	if !ok {
		return explanation{}, frame.Usagef("kind %.40q is not known; use %s", parts[0], strings.Join(slices.Sorted(maps.Keys(kinds)), ", "))
	}
	at := explanation{Path: parts[0], Type: "object", Doc: l.doc(k.typ) + " This is the shape of " + k.about + ".", Fields: l.fields(k.typ)}
	for _, p := range parts[1:] {
		i := slices.IndexFunc(at.Fields, func(f field) bool { return f.Name == p })
		if i < 0 {
			var names []string
			for _, f := range at.Fields {
				names = append(names, f.Name)
			}
			if len(names) == 0 {
				return at, frame.Usagef("%s has no fields", at.Path)
			}
			return at, frame.Usagef("%s has no field %.40q; it has %s", at.Path, p, strings.Join(names, ", "))
		}
		f := at.Fields[i]
		at = explanation{Path: at.Path + "." + p, Type: f.Type, Doc: f.Doc, Fields: l.fields(f.of)}
		if t := l[f.of]; at.Doc == "" && t != nil {
			at.Doc = l.doc(f.of)
		}
	}
	return at, nil
}

func (c *cli) explain() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "explain KIND[.FIELD]",
		Short:   "Explain the fields of what other commands print and apply reads",
		Long:    "Explain the fields of what -o json prints and of the documents that 'causeway apply'\nreads. Kinds: " + strings.Join(slices.Sorted(maps.Keys(kinds)), ", ") + ".",
		Example: "  causeway explain node.paths\n  causeway explain site-file",
		Args:    frame.Exactly("KIND"),
	}
	cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		i := strings.LastIndexByte(word, '.')
		if i < 0 {
			return slices.Sorted(maps.Keys(kinds)), cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		if l, err := readLibrary(); err == nil {
			e, _ := l.explain(word[:i])
			for _, f := range e.Fields {
				out = append(out, word[:i+1]+f.Name)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		l, err := readLibrary()
		if err != nil {
			return frame.Fail(err)
		}
		e, err := l.explain(args[0])
		if err != nil {
			return err
		}
		names := make([]string, len(e.Fields))
		for i, f := range e.Fields {
			names[i] = e.Path + "." + f.Name
		}
		return frame.Fail(c.Show(e, names, func(p *frame.Page) {
			p.Line("%s: %s", e.Path, e.Type)
			if e.Doc != "" {
				p.Line("%s", e.Doc)
			}
			if len(e.Fields) == 0 {
				return
			}
			rows := make([][]any, len(e.Fields))
			for i, f := range e.Fields {
				t := f.Type
				if f.of != "" {
					t += " *"
				}
				rows[i] = []any{f.Name, t, f.Doc}
			}
			p.Gap()
			p.Table([]string{"FIELD", "TYPE", "MEANING"}, rows)
			if slices.ContainsFunc(e.Fields, func(f field) bool { return f.of != "" }) {
				p.Gap()
				p.Line("* 'causeway explain %s.FIELD' goes on", e.Path)
			}
		}))
	}
	return cmd
}
