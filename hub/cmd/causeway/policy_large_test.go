package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/cmd/causeway/internal/frame"
)

// Files that are too large are refused in one line, and nothing of them is done.
func TestLargePolicies(t *testing.T) {
	w := newTestWorld(t)
	rules := func(n int) string {
		var b strings.Builder
		b.WriteString("kind: policy\nname: main\nrules:\n")
		for i := range n {
			fmt.Fprintf(&b, "- {name: r%d, from: {site: idc-sh}, to: {node: eu-1}, allow: [tcp/%d]}\n", i, 1+i%60000)
		}
		return b.String()
	}
	for what, tt := range map[string]struct{ text, want string }{
		"100,000 rules": {rules(100_000), "is larger than 2 MiB"},
		"10 MB":         {"# " + strings.Repeat("x", 10<<20) + "\n" + rules(1), "is larger than 2 MiB"},
		"a body":        {rules(14_000), "the documents are more than 960 KiB together"},
		"a policy":      {rules(3_000), "policy main: "},
	} {
		t.Run(what, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "policy.yaml")
			require.NoError(t, os.WriteFile(file, []byte(tt.text), 0o600))
			var errw strings.Builder
			status := run(t.Context(), []string{"--socket", w.Socket, "policy", "apply", "--yes", "-f", file}, strings.NewReader(""), io.Discard, &errw)
			require.Equal(t, frame.ExitFailed, status)
			require.Contains(t, errw.String(), tt.want)
			require.Equal(t, 1, strings.Count(errw.String(), "\n"), errw.String())
			require.Less(t, len(errw.String()), 1000)
		})
	}
	l, err := w.Client.Objects(t.Context(), "policy")
	require.NoError(t, err)
	require.Empty(t, l)
}
