package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/internal/docpage"
)

const objectsPage = "../../../docs/OBJECTS.md"

// The fields in docs/OBJECTS.md are those of the documents.
func TestReference(t *testing.T) {
	l, err := readLibrary()
	require.NoError(t, err)
	var b strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(api.Documents)) {
		e, err := l.explain(kind + "-file")
		require.NoError(t, err)
		about, _, _ := strings.Cut(e.Doc, " This is the shape of")
		fmt.Fprintf(&b, "### %s\n\n%s\n\n| field | type | |\n|---|---|---|\n", kind, about)
		for _, f := range e.Fields {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.Name, f.Type, f.Doc)
		}
		b.WriteString("\n")
	}
	docpage.Check(t, objectsPage, "fields", strings.TrimSuffix(b.String(), "\n"))
}

// The example of docs/OBJECTS.md has each kind, and a hub takes it.
func TestExampleOfObjects(t *testing.T) {
	page, err := os.ReadFile(objectsPage)
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(page), "```yaml\n")
	require.True(t, ok)
	text, _, _ := strings.Cut(rest, "```\n")
	docs, err := parseManifests("page", []byte(text))
	require.NoError(t, err)
	in, left := []api.ApplyDocument{}, maps.Clone(api.Documents)
	for _, m := range docs {
		in = append(in, m.ApplyDocument)
		kind, _, _ := strings.Cut(m.what, " ")
		delete(left, kind)
	}
	require.Empty(t, left, "kinds without an example")
	w := newTestWorld(t)
	_, err = w.Client.Apply(t.Context(), api.Apply{Documents: in})
	require.NoError(t, err)
}
