package docpage

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// Column holds the last column of the table with this head line, in the page at path, to want, which gives
// it for the first one.
func Column(t testing.TB, path, head string, want func(first string) string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	at := slices.Index(lines, head)
	if at < 0 {
		t.Fatalf("%s has no table %s", path, head)
	}
	for i := at + 2; i < len(lines) && strings.HasPrefix(lines[i], "| "); i++ {
		cells := strings.Split(strings.TrimSuffix(lines[i], " |"), " | ")
		if n := strings.Count(head, " | ") + 1; len(cells) != n {
			t.Fatalf("%s: a row of %d columns, not %d: %s", path, len(cells), n, lines[i])
		}
		cells[len(cells)-1] = want(strings.TrimPrefix(cells[0], "| "))
		lines[i] = strings.Join(cells, " | ") + " |"
	}
	text := strings.Join(lines, "\n")
	if text == string(b) {
		return
	}
	if os.Getenv("CAUSEWAY_UPDATE") == "" {
		t.Fatalf("the last column of %s in %s is not what the code says; run 'make docs'", head, path)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
