// Package docpage holds pages of docs/ to what the code says: a test generates
// a section and compares. With CAUSEWAY_UPDATE set it writes the section.
package docpage

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Check compares the section between <!-- name --> and <!-- /name --> of the
// page at path with want.
func Check(t testing.TB, path, name, want string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	open, shut := fmt.Sprintf("<!-- %s -->\n", name), fmt.Sprintf("<!-- /%s -->\n", name)
	head, rest, ok := strings.Cut(string(b), open)
	have, tail, ok2 := strings.Cut(rest, shut)
	if !ok || !ok2 {
		t.Fatalf("%s has no section %s", path, name)
	}
	if have == want {
		return
	}
	if os.Getenv("CAUSEWAY_UPDATE") == "" {
		t.Fatalf("section %s of %s is not what the code says; run 'make docs'", name, path)
	}
	if err := os.WriteFile(path, []byte(head+open+want+shut+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}
