package layering

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/internal/docpage"
)

// Sizes of the pages that everybody reads, in bytes.
const (
	maxReadme       = 6_000
	maxArchitecture = 9_000
)

var (
	isA    = regexp.MustCompile(`^(Package|Command) \S+ |^Causeway-hub `)
	clause = regexp.MustCompile(`[:;,(]|\.(\s|$)`)
)

// TestRooms holds the tree of ARCHITECTURE.md and the list of all packages to the packages' comments.
func TestRooms(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}}|{{.Doc}}", module+"...").Output()
	require.NoError(t, err)
	var tree, all strings.Builder
	tree.WriteString("```\n")
	all.WriteString("| package | |\n|---|---|\n")
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		path, doc, _ := strings.Cut(strings.TrimPrefix(line, module), "|")
		require.NotEmpty(t, doc, "%s has no comment that says what it is for", path)
		doc = isA.ReplaceAllString(doc, "")
		fmt.Fprintf(&all, "| `%s` | %s |\n", path, strings.ReplaceAll(strings.TrimSuffix(doc, "."), "|", "/"))
		if strings.HasPrefix(path, "internal/") || strings.Contains(path, "/cmd/") || strings.HasSuffix(path, "test") || strings.Count(path, "/") > 1 {
			continue
		}
		fmt.Fprintf(&tree, "%-18s %s\n", path, clause.Split(doc, 2)[0])
	}
	tree.WriteString("```\n")
	docpage.Check(t, "../../ARCHITECTURE.md", "rooms", tree.String())
	docpage.Check(t, "../../docs/design/packages.md", "packages", all.String())
}

// TestPagesAreShort: what everybody reads is read to its end.
func TestPagesAreShort(t *testing.T) {
	for page, most := range map[string]int64{"../../README.md": maxReadme, "../../ARCHITECTURE.md": maxArchitecture} {
		fi, err := os.Stat(page)
		require.NoError(t, err)
		require.LessOrEqual(t, fi.Size(), most, page)
	}
}

// TestLinks: every link between pages leads to one that is there, and every source file that a page names
// is there, by its path or the end of it.
func TestLinks(t *testing.T) {
	out, err := exec.Command("git", "-C", "../..", "ls-files").Output()
	require.NoError(t, err)
	link, source := regexp.MustCompile(`\]\(([^)#:]+\.md)(#[^)]*)?\)`), regexp.MustCompile("`([A-Za-z0-9_/.-]+\\.go)`")
	n, tree := 0, "/"+strings.ReplaceAll(string(out), "\n", "\n/")
	for _, page := range strings.Fields(string(out)) {
		if !strings.HasSuffix(page, ".md") || page == "CHANGELOG.md" {
			continue
		}
		b, err := os.ReadFile("../../" + page)
		if err != nil {
			continue // deleted, and not yet committed
		}
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			n++
			at := "../../" + page[:strings.LastIndexByte(page, '/')+1] + m[1]
			_, err := os.Stat(at)
			require.NoError(t, err, "%s links to %s", page, m[1])
		}
		for _, m := range source.FindAllStringSubmatch(string(b), -1) {
			require.True(t, strings.Contains(m[1], "KIND") || strings.Contains(tree, "/"+m[1]+"\n"), "%s names %s", page, m[1])
		}
	}
	require.Greater(t, n, 20)
}
