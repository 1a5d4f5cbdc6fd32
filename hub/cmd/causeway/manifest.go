package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"causeway/hub/api"
)

// Bounds of what 'apply -f' reads, in bytes: of a file, and of all documents together as the hub gets them.
const (
	maxManifest  = 2 * api.MaxRequest
	maxDocuments = api.MaxRequest - api.MaxRequest/16
)

// readManifests reads files, all YAML files of directories, and standard input ('-'), each of one
// or more YAML documents.
func (c *cli) readManifests(names []string) ([]api.ApplyDocument, error) {
	var out []api.ApplyDocument
	size := 0
	seen := map[string]string{}
	files, err := manifestFiles(names)
	if err != nil {
		return nil, err
	}
	for _, name := range files {
		b, shown, err := c.readManifest(name)
		if err != nil {
			return nil, err
		}
		docs, err := parseManifests(shown, b)
		if err != nil {
			return nil, err
		}
		for _, m := range docs {
			if before, twice := seen[m.what]; twice {
				return nil, fmt.Errorf("%s: %s is there twice, first at %s", m.At, m.what, before)
			}
			seen[m.what] = m.At
			if size += len(m.Document) + len(m.At); size > maxDocuments {
				return nil, fmt.Errorf("%s: the documents are more than %d KiB together, which is what the hub takes at once; apply them in parts", m.At, maxDocuments>>10)
			}
			out = append(out, m.ApplyDocument)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no document is there; see 'causeway explain KIND-file', for %s", kindNames())
	}
	return out, nil
}

// manifestFiles puts the YAML files of a directory in its place, by name.
func manifestFiles(names []string) (out []string, err error) {
	for _, name := range names {
		fi, err := os.Stat(name)
		if name == "-" || err == nil && !fi.IsDir() {
			out = append(out, name)
			continue
		}
		if err != nil {
			return nil, err
		}
		entries, err := os.ReadDir(name)
		if err != nil {
			return nil, err
		}
		n := len(out)
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yaml" || ext == ".yml") {
				out = append(out, filepath.Join(name, e.Name()))
			}
		}
		if len(out) == n {
			return nil, fmt.Errorf("%s: no file there is called *.yaml or *.yml", name)
		}
	}
	return out, nil
}

func (c *cli) readManifest(name string) (b []byte, shown string, err error) {
	var r io.Reader = c.In
	shown = "standard input"
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, "", err
		}
		defer f.Close()
		r, shown = f, name
	}
	if b, err = io.ReadAll(io.LimitReader(r, maxManifest+1)); err != nil {
		return nil, "", fmt.Errorf("read %s: %w", shown, err)
	}
	if len(b) > maxManifest {
		return nil, "", fmt.Errorf("%s is larger than %d MiB", shown, maxManifest>>20)
	}
	return b, shown, nil
}

// manifest is one document of a file.
type manifest struct {
	api.ApplyDocument
	what string // for example site idc-sh
}

// parseManifests parses the documents of one file. Every error names the line.
func parseManifests(name string, b []byte) (out []manifest, err error) {
	// go-yaml panics on some malformed values.
	defer func() {
		if r := recover(); r != nil {
			out, err = nil, fmt.Errorf("%s: a value is malformed; write plain YAML", name)
		}
	}()
	file, err := parser.ParseBytes(b, 0)
	if err != nil {
		return nil, yamlError(name, 0, err)
	}
	for _, doc := range file.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.NullType {
			continue
		}
		m, err := parseManifest(name, doc)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

func parseManifest(name string, doc *ast.DocumentNode) (m manifest, err error) {
	line := doc.Body.GetToken().Position.Line
	if n, ok := doc.Body.(*ast.MappingNode); ok && len(n.Values) > 0 {
		line = n.Values[0].Key.GetToken().Position.Line
	} else if n, ok := doc.Body.(*ast.MappingValueNode); ok {
		line = n.Key.GetToken().Position.Line
	}
	m.At = fmt.Sprintf("%s:%d", name, line)
	var head struct {
		Kind   string `yaml:"kind"`
		Name   string `yaml:"name"`
		Node   string `yaml:"node"`
		Prefix string `yaml:"prefix"`
	}
	if err := yaml.NodeToValue(doc.Body, &head); err != nil {
		return m, yamlError(name, line, err)
	}
	kind := strings.ToLower(head.Kind)
	switch kind {
	case "":
		return m, fmt.Errorf("%s: kind is missing; use %s", m.At, kindNames())
	case "route":
		m.what = fmt.Sprintf("route %s of %s", head.Prefix, head.Node)
	default:
		m.what = kind + " " + head.Name
	}
	// The fields are held to the document's type here, for the sake of line and column; what they
	// mean is the hub's to say. It gets what was written: a field that is empty is not one that is left out.
	if typ, known := api.Documents[kind]; known {
		if err := yaml.NodeToValue(doc.Body, reflect.New(reflect.TypeOf(typ)).Interface(), yaml.Strict(), yaml.UseJSONUnmarshaler()); err != nil {
			return m, yamlError(name, line, err)
		}
	}
	var all map[string]any
	if err := yaml.NodeToValue(doc.Body, &all); err != nil {
		return m, yamlError(name, line, err)
	}
	if m.Document, err = json.Marshal(all); err != nil {
		return m, fmt.Errorf("%s: %w", m.At, err)
	}
	return m, nil
}

// kindNames lists the kinds of documents, for a person.
func kindNames() string {
	l := slices.Sorted(maps.Keys(api.Documents))
	return strings.Join(l[:len(l)-1], ", ") + " or " + l[len(l)-1]
}

// yamlError makes one line of go-yaml's errors, which draw the file.
func yamlError(name string, line int, err error) error {
	msg, _, _ := strings.Cut(strings.TrimSpace(err.Error()), "\n")
	var ye yaml.Error
	if errors.As(err, &ye) {
		msg, _, _ = strings.Cut(strings.TrimSpace(ye.GetMessage()), "\n")
		if t := ye.GetToken(); t != nil && t.Position != nil {
			return fmt.Errorf("%s:%d:%d: %s", name, t.Position.Line, t.Position.Column, msg)
		}
	}
	if line > 0 {
		return fmt.Errorf("%s:%d: %s", name, line, msg)
	}
	return fmt.Errorf("%s: %s", name, msg)
}
