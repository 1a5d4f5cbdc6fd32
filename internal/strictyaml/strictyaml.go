// Package strictyaml decodes configuration files: unknown keys are errors, and
// every error is one line that says where and what. What the values mean is
// the caller's to check.
package strictyaml

import (
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// MaxFile bounds a configuration file, in bytes.
const MaxFile = 1 << 20

// File is a decoded file that still knows where its values stand.
type File struct {
	name string
	tree *ast.File
}

// Decode decodes b, the contents of the file name, into v. keys lists the
// known keys for whoever wrote another one.
func Decode(name string, b []byte, v any, keys string) (f *File, err error) {
	// go-yaml 1.19 panics on some malformed values, such as a tagged scalar
	// where a list belongs.
	defer func() {
		if r := recover(); r != nil {
			f, err = nil, fmt.Errorf("config %s: a value is malformed, perhaps by a YAML tag ('!'); write plain values", name)
		}
	}()
	if len(b) > MaxFile {
		return nil, fmt.Errorf("config %s: larger than 1 MiB", name)
	}
	tree, err := parser.ParseBytes(b, 0)
	if err != nil {
		return nil, oneLine(name, err, keys)
	}
	if err := yaml.UnmarshalWithOptions(b, v, yaml.Strict()); err != nil {
		return nil, oneLine(name, err, keys)
	}
	return &File{name, tree}, nil
}

// At says where path (go-yaml's form, such as $.routes[2]) stands:
// file:line:column, or the file alone if that cannot be told.
func (f *File) At(path string) string {
	p, err := yaml.PathString(path)
	if err != nil || len(f.tree.Docs) == 0 {
		return f.name
	}
	n, err := p.FilterFile(f.tree)
	if err != nil || n == nil || n.GetToken() == nil || n.GetToken().Position == nil {
		return f.name
	}
	at := n.GetToken().Position
	return fmt.Sprintf("%s:%d:%d", f.name, at.Line, at.Column)
}

// oneLine makes one line of go-yaml's errors, which draw the file.
func oneLine(name string, err error, keys string) error {
	first := func(s string) string {
		s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
		return s
	}
	var ye yaml.Error
	if !errors.As(err, &ye) || ye.GetToken() == nil || ye.GetToken().Position == nil {
		return fmt.Errorf("config %s: %s", name, first(err.Error()))
	}
	hint := ""
	var unknown *yaml.UnknownFieldError
	if errors.As(err, &unknown) {
		hint = "; known keys: " + keys
	}
	at := ye.GetToken().Position
	return fmt.Errorf("config %s:%d:%d: %s%s", name, at.Line, at.Column, first(ye.GetMessage()), hint)
}
