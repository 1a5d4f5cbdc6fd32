// Package logkeys finds the keys of all log lines in source code, for the test that holds
// docs/LOGS.md to them.
package logkeys

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
)

// types are zerolog's methods that add a field, with what JSON then has.
var types = map[string]string{
	"Str": "text", "Stringer": "text", "AnErr": "text", "Time": "time", "Dur": "milliseconds", "Bool": "true or false", "Strs": "list of texts", "Hex": "text", "Bytes": "text",
	"IPAddr": "text", "IPPrefix": "text", "Stringers": "list of texts", "Errs": "list of texts",
	"Int": "number", "Int32": "number", "Int64": "number", "Uint": "number", "Uint8": "number", "Uint16": "number", "Uint32": "number", "Uint64": "number", "Float64": "number",
}

// free are methods that make keys which no list can have.
var free = map[string]bool{"Fields": true, "Any": true, "Interface": true, "RawJSON": true, "Object": true, "EmbedObject": true, "Dict": true, "Array": true, "Msgf": true}

// begin are the methods that a log line, or a logger's context, begins with.
var begin = map[string]bool{"Trace": true, "Debug": true, "Info": true, "Warn": true, "Error": true, "Fatal": true, "Panic": true, "WithLevel": true, "With": true, "Log": true, "Err": true}

// Key is one key, with the types that it has and where it is used.
type Key struct {
	Types map[string]bool
	At    []string
}

// Find looks at the Go files below root's directories, but for tests. wrong are places that no list
// could be right about: a key, or message, that is no constant, or fields without keys.
func Find(root string, dirs ...string) (keys map[string]*Key, wrong []string, err error) {
	keys = map[string]*Key{}
	for _, d := range dirs {
		err := filepath.WalkDir(filepath.Join(root, d), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			files := token.NewFileSet()
			f, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return fmt.Errorf("parse: %w", err)
			}
			events := eventNames(f)
			ast.Inspect(f, func(n ast.Node) bool {
				if c, ok := n.(*ast.CallExpr); ok {
					if why := look(c, events, keys, func() string { return files.Position(c.Pos()).String() }); why != "" {
						wrong = append(wrong, files.Position(c.Pos()).String()+": "+why)
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return keys, wrong, nil
}

// look notes the key of a call, if it adds one to a log line.
func look(c *ast.CallExpr, events map[string]bool, keys map[string]*Key, at func() string) string {
	s, ok := c.Fun.(*ast.SelectorExpr)
	if !ok || !logs(s.X, events) {
		return ""
	}
	name := s.Sel.Name
	switch {
	case free[name]:
		return name + " has no keys, or no message, that a list could have"
	case name == "Msg":
		if len(c.Args) == 1 {
			if _, ok := c.Args[0].(*ast.BasicLit); !ok {
				return "the message is no constant"
			}
		}
		return ""
	case name == "Err":
		add(keys, "err", "text", at())
		return ""
	case types[name] == "" || len(c.Args) != 2:
		return ""
	}
	l, ok := c.Args[0].(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "the key is no constant"
	}
	key, err := strconv.Unquote(l.Value)
	if err != nil {
		return err.Error()
	}
	add(keys, key, types[name], at())
	return ""
}

func add(keys map[string]*Key, key, typ, at string) {
	k := keys[key]
	if k == nil {
		k = &Key{Types: map[string]bool{}}
		keys[key] = k
	}
	k.Types[typ] = true
	k.At = append(k.At, at)
}

// logs reports whether x is a log line under way: a chain of calls that begins with a level, or a
// variable that holds one.
func logs(x ast.Expr, events map[string]bool) bool {
	for {
		switch e := x.(type) {
		case *ast.Ident:
			return events[e.Name]
		case *ast.CallExpr:
			s, ok := e.Fun.(*ast.SelectorExpr)
			if !ok {
				return false
			}
			if begin[s.Sel.Name] && len(e.Args) <= 1 && !(s.Sel.Name == "Err" && len(e.Args) == 0) && !(s.Sel.Name == "Error" && len(e.Args) > 0) {
				return true
			}
			x = s.X
		default:
			return false
		}
	}
}

// eventNames are the variables of a file that hold a line under way, such as ev := log.Debug().
func eventNames(f *ast.File) map[string]bool {
	out := map[string]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		if p, ok := n.(*ast.Field); ok && isEvent(p.Type) { // a hook's
			for _, id := range p.Names {
				out[id.Name] = true
			}
		}
		a, ok := n.(*ast.AssignStmt)
		if !ok || len(a.Lhs) != len(a.Rhs) {
			return true
		}
		for i, r := range a.Rhs {
			id, ok := a.Lhs[i].(*ast.Ident)
			if c, call := r.(*ast.CallExpr); ok && call && logs(c, out) && !ends(c) {
				out[id.Name] = true
			}
		}
		return true
	})
	return out
}

// isEvent reports whether a type is *zerolog.Event.
func isEvent(t ast.Expr) bool {
	p, ok := t.(*ast.StarExpr)
	if !ok {
		return false
	}
	s, ok := p.X.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := s.X.(*ast.Ident)
	return ok && pkg.Name == "zerolog" && s.Sel.Name == "Event"
}

// ends reports whether a chain is over, and so no line any more: err := x.Err(), a logger.
func ends(c *ast.CallExpr) bool {
	s, ok := c.Fun.(*ast.SelectorExpr)
	return !ok || types[s.Sel.Name] == "" && !begin[s.Sel.Name] || s.Sel.Name == "Err" || s.Sel.Name == "Error"
}
