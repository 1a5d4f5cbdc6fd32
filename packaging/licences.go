package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// licence is what a module is under.
type licence struct {
	id    string // SPDX
	texts []string
}

// allowed are the licences that may be linked into the programs.
var allowed = []string{"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MPL-2.0"}

// marks tell licences by words that no other one has, the more special first.
var marks = []struct {
	id   string
	all  []string
	none []string
}{
	{"Apache-2.0", []string{"Apache License", "Version 2.0"}, nil},
	{"MPL-2.0", []string{"Mozilla Public License", "2.0"}, nil},
	{"GPL", []string{"GNU General Public License"}, nil},
	{"GPL", []string{"GNU GENERAL PUBLIC LICENSE"}, nil},
	{"GPL", []string{"GNU LESSER GENERAL PUBLIC LICENSE"}, nil},
	{"GPL", []string{"GNU AFFERO GENERAL PUBLIC LICENSE"}, nil},
	{"BSD-3-Clause", []string{"Redistribution and use in source and binary forms", "may be used to endorse"}, nil},
	{"BSD-2-Clause", []string{"Redistribution and use in source and binary forms"}, []string{"endorse"}},
	{"ISC", []string{"Permission to use, copy, modify, and", "distribute this software for any purpose"}, nil},
	{"MIT", []string{"Permission is hereby granted, free of charge", "THE SOFTWARE IS PROVIDED \"AS IS\""}, nil},
}

// classify returns the licence of a text; empty if none is known.
func classify(text string) string {
	flat := strings.Join(strings.Fields(text), " ")
	for _, m := range marks {
		if all(flat, m.all) && (len(m.none) == 0 || !all(flat, m.none)) {
			return m.id
		}
	}
	return ""
}

func all(text string, words []string) bool {
	return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) })
}

var (
	licenceMu    sync.Mutex
	licenceCache = map[module]licence{}
)

// licenceOf reads the licence of a module of the source tree. One that is not
// known, or not allowed, is an error: somebody has to look.
func licenceOf(m module) (licence, error) {
	licenceMu.Lock()
	defer licenceMu.Unlock()
	if l, ok := licenceCache[m]; ok {
		return l, nil
	}
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", m.path)
	cmd.Dir = ".."
	out, err := cmd.Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		return licence{}, fmt.Errorf("find the source of %s %s: %v", m.path, m.version, err)
	}
	var l licence
	names, err := os.ReadDir(dir)
	if err != nil {
		return licence{}, err
	}
	for _, n := range names {
		u := strings.ToUpper(n.Name())
		if n.IsDir() || strings.HasSuffix(u, ".GO") || !strings.HasPrefix(u, "LICEN") && !strings.HasPrefix(u, "COPYING") && !strings.HasPrefix(u, "NOTICE") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, n.Name()))
		if err != nil {
			return licence{}, err
		}
		if id := classify(string(b)); id != "" && l.id == "" && !strings.HasPrefix(u, "NOTICE") {
			l.id = id
		}
		l.texts = append(l.texts, string(b))
	}
	switch {
	case l.id == "":
		return licence{}, fmt.Errorf("%s %s: no licence that is known in %s; look at it", m.path, m.version, dir)
	case !slices.Contains(allowed, l.id):
		return licence{}, fmt.Errorf("%s %s is under %s, which may not be linked in", m.path, m.version, l.id)
	}
	licenceCache[m] = l
	return l, nil
}

// licences is the text that a package carries: of each module, and of Go's
// own library.
func (r *release) licences(ctx context.Context, p pkg, bins map[string]string) ([]byte, error) {
	list, goVersion, err := modules(p, bins)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s is under the Apache License 2.0. Linked into its programs are:\n\n", p.name)
	root, err := r.program(ctx, "go", "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(root)), "LICENSE"))
	if err != nil {
		return nil, fmt.Errorf("licence of Go's library: %w", err)
	}
	fmt.Fprintf(&b, "==== Go standard library %s: BSD-3-Clause\n\n%s\n", goVersion, text)
	for _, m := range list {
		l, err := licenceOf(m)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "==== %s %s: %s\n\n%s\n", m.path, m.version, l.id, strings.Join(l.texts, "\n"))
	}
	return b.Bytes(), nil
}
