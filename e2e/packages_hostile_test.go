package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every script of the packages, under the real dpkg and the real rpm, in a host's tree where the
// service's user has put into his directory what could mislead root: nothing outside it
// changes, nothing waits, and each step ends as it should.
func TestPackageScriptsHostile(t *testing.T) {
	t.Parallel()
	needRoot(t)
	p := builtPackages(t)
	root, err := moduleRoot(step(t))
	require.NoError(t, err)
	base := strings.TrimSpace(sh(t, `"$1"`, filepath.Join(root, "scripts/rootfs")))
	forms := []string{"symlink", "fifo", "text"}
	if soak() {
		forms = append(forms, "socket", "hardlink", "giant", "directory")
	}
	for _, kind := range []string{"deb", "rpm"} {
		for name, files := range map[string]string{
			"causeway-agent": "identity.json host.json pending.json netmap.json pins.json port.json incidents.json inventory.jsonl upgrade",
			"causeway-hub":   "sysctl.was cluster.key hub.key lock log.json",
		} {
			t.Run(kind+" "+name, func(t *testing.T) {
				t.Parallel()
				out := sh(t, `mkdir -p "$6/root" "$6/up" "$6/work"; exec unshare -m -n bash "$@" 2>&1`,
					filepath.Join(root, "e2e/testdata/packages-hostile"), name, p.File(name, kind), kind, base, t.TempDir(), files, strings.Join(forms, " "))
				for _, f := range forms {
					require.Contains(t, out, f+": nothing outside changed")
				}
				t.Log(strings.ReplaceAll(out, "\n", "; "))
			})
		}
	}
}
