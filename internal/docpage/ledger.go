package docpage

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Kinds of mends.
const (
	Command = "command" // a test applies it as it is printed
	Shows   = "shows"   // it shows more, and changes nothing
	ByHand  = "by hand" // a person decides, or no command does it
)

// Applied fails unless a test that is named applies a mend: "e2e TestDoctorMends: node-drained" is
// a function of a package of the module at root, and a text in its file, in quotes.
func Applied(t testing.TB, root, name string) {
	t.Helper()
	pkg, rest, _ := strings.Cut(name, " ")
	function, text, _ := strings.Cut(rest, ": ")
	files, err := filepath.Glob(filepath.Join(root, pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if regexp.MustCompile(`(?m)^func `+regexp.QuoteMeta(function)+`\(t \*testing\.T\)`).Match(b) && (text == "" || strings.Contains(string(b), `"`+text+`"`)) {
			return
		}
	}
	t.Errorf("no test %q", name)
}
