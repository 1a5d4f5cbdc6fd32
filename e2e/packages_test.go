package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/internal/docpage"
	"causeway/internal/sshsig"
	"causeway/protocol"
)

const packagesVersion = "1.2.3-rc.1+4.gabcdef"

// packages makes the packages once for all tests.
var packages = sync.OnceValues(func() (Packages, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	if dir := os.Getenv("CAUSEWAY_PACKAGES"); dir != "" { // made already, of this version
		return Packages{dir, packagesVersion}, nil
	}
	dir, err := os.MkdirTemp("", "causeway-packages-")
	if err != nil {
		return Packages{}, err
	}
	atExit(func() { os.RemoveAll(dir) })
	return BuildPackages(ctx, filepath.Join(dir, "dist"), packagesVersion, "deb,rpm,oci,bin")
})

func builtPackages(t *testing.T) Packages {
	t.Helper()
	p, err := packages()
	require.NoError(t, err)
	return p
}

func sh(t *testing.T, script string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(within(t, 2*time.Minute), "bash", append([]string{"-euo", "pipefail", "-c", script, "sh"}, args...)...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s\n%s", script, out)
	return string(out)
}

// The same source makes the same bytes, and they hold what they should.
func TestPackages(t *testing.T) {
	p := builtPackages(t)
	dir := t.TempDir()
	for _, ext := range []string{"", ".pub"} {
		b, err := os.ReadFile(p.Key() + ext)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "dist.key"+ext), b, 0o600))
	}
	again, err := BuildPackages(within(t, 5*time.Minute), filepath.Join(dir, "dist"), packagesVersion, "deb,rpm,oci,bin")
	require.NoError(t, err)
	first, err := p.sums()
	require.NoError(t, err)
	second, err := again.sums()
	require.NoError(t, err)
	require.Equal(t, first, second)
	sh(t, `cd "$1" && sha256sum --quiet -c SHA256SUMS`, p.Dir)
	sh(t, `cd "$1" && for f in *.sig; do cmp "$f" "$2/$f"; done`, p.Dir, again.Dir)
	key, err := p.PublicKey()
	require.NoError(t, err)
	k, err := sshsig.ParseKey(key)
	require.NoError(t, err)
	for _, f := range []string{p.File("causeway-agent", "deb"), p.File("causeway-hub", "rpm"), filepath.Join(p.Dir, "SHA256SUMS"), filepath.Join(p.Dir, "causeway_"+p.Version+".json")} {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		sig, err := os.ReadFile(f + ".sig")
		require.NoError(t, err)
		_, err = sshsig.Verify(b, sig, protocol.ReleaseNamespace, []sshsig.PublicKey{k})
		require.NoError(t, err, f)
		if strings.HasSuffix(f, ".json") {
			r, err := protocol.ParseRelease(b)
			require.NoError(t, err)
			require.Equal(t, p.Version, r.Version)
			_, ok := r.Find("causeway-agent", runtime.GOARCH)
			require.True(t, ok)
		}
	}

	for name, want := range map[string][]string{
		"causeway-agent": {"/usr/bin/causeway-agent", "/usr/lib/systemd/system/causeway-agent.service", "/usr/lib/systemd/system/causeway-agent-upgrade.path", "/usr/lib/systemd/system/causeway-agent-dns.path", "/etc/causeway/agent.yaml", "/usr/share/man/man1/causeway-agent-join.1"},
		"causeway-hub":   {"/usr/bin/causeway-hub", "/usr/bin/causeway", "/usr/lib/systemd/system/causeway-hub-https.socket", "/usr/lib/sysctl.d/60-causeway-hub.conf", "/usr/share/doc/causeway-hub/monitoring/alerts.yaml", "/usr/share/man/man1/causeway-site-create.1"},
	} {
		short := strings.TrimPrefix(name, "causeway-")
		want = append(want, "/usr/lib/sysusers.d/"+name+".conf", "/usr/lib/tmpfiles.d/"+name+".conf", "/usr/share/doc/"+name+"/copyright", "/usr/share/doc/"+name+"/THIRD-PARTY-LICENCES",
			"/usr/share/bash-completion/completions/"+name)
		deb := sh(t, `dpkg-deb -c "$1"`, p.File(name, "deb"))
		rpm := sh(t, `rpm -qlp "$1" 2>/dev/null`, p.File(name, "rpm"))
		for _, f := range want {
			require.Contains(t, deb, " ."+f+"\n")
			require.Contains(t, rpm, f+"\n")
		}
		require.Contains(t, sh(t, `dpkg-deb -f "$1"`, p.File(name, "deb")), "Version: 1.2.3~rc.1+4.gabcdef")

		dir := t.TempDir()
		sh(t, `dpkg-deb -x "$1" "$2"`, p.File(name, "deb"), dir)
		bin := filepath.Join(dir, "usr/bin", name)
		require.Contains(t, sh(t, `file -b "$1" 2>/dev/null || readelf -d "$1"; "$1" --version`, bin), packagesVersion)
		require.NotContains(t, sh(t, `readelf -l "$1"`, bin), "INTERP", "static")
		require.Contains(t, sh(t, `man -l --warnings "$1" | cat`, filepath.Join(dir, "usr/share/man/man1", name+".1")), name)
		sh(t, `bash -n "$1"`, filepath.Join(dir, "usr/share/bash-completion/completions", name))

		// The example is good as it is, and with every line of it in force.
		example := filepath.Join(dir, "etc/causeway", short+".yaml")
		b, err := os.ReadFile(example)
		require.NoError(t, err)
		all := regexp.MustCompile(`(?m)^#([a-z]|  [a-z])`).ReplaceAll(b, []byte("$1"))
		require.NotEqual(t, b, all)
		full := filepath.Join(dir, "full.yaml")
		require.NoError(t, os.WriteFile(full, all, 0o644))
		for _, c := range []string{example, full} {
			require.Equal(t, "the configuration is good\n", sh(t, `"$1" run --check --config "$2"`, bin, c))
		}

		var sbom struct {
			Packages []struct{ Name, LicenseConcluded string }
		}
		b, err = os.ReadFile(strings.TrimSuffix(p.File(name, "deb"), ".deb") + ".spdx.json")
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(b, &sbom))
		require.Greater(t, len(sbom.Packages), 20)
		for _, m := range sbom.Packages {
			require.NotEmpty(t, m.LicenseConcluded, m.Name)
		}
	}
}

// Limits of what systemd-analyze calls exposure.
var exposureLimits = map[string]string{"causeway-agent": "22", "causeway-agent-upgrade": "15", "causeway-agent-dns": "16", "causeway-hub": "15"}

// The units are as closed as docs/SYSTEMD.md says, and so are those with a
// drop-in.
func TestUnitScores(t *testing.T) {
	root, err := moduleRoot(step(t))
	require.NoError(t, err)
	files := filepath.Join(root, "packaging/files")
	score := func(unit, dropin, limit string) string {
		dir := t.TempDir()
		b, err := os.ReadFile(filepath.Join(files, "systemd", unit+".service"))
		require.NoError(t, err)
		if dropin != "" {
			more, err := os.ReadFile(dropin)
			require.NoError(t, err)
			b = append(b, more...)
		}
		path := filepath.Join(dir, unit+".service")
		require.NoError(t, os.WriteFile(path, b, 0o644))
		out := sh(t, `systemd-analyze security --offline=yes --no-pager --threshold="$1" "$2" 2>&1`, limit, path)
		m := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(out)
		require.NotNil(t, m, out)
		return m[1]
	}
	var b strings.Builder
	b.WriteString("| unit | drop-in | what it gives | exposure |\n|---|---|---|---|\n")
	for _, unit := range []string{"causeway-agent", "causeway-agent-upgrade", "causeway-agent-dns", "causeway-hub"} {
		fmt.Fprintf(&b, "| `%s` | | | %s |\n", unit, score(unit, "", exposureLimits[unit]))
		dropins, err := filepath.Glob(filepath.Join(files, "dropins", unit+"-*.conf"))
		require.NoError(t, err)
		for _, d := range dropins {
			text, err := os.ReadFile(d)
			require.NoError(t, err)
			var gives []string
			for _, m := range regexp.MustCompile(`(?m)^(?:AmbientCapabilities|RestrictAddressFamilies|RestrictNamespaces|SupplementaryGroups|ReadWritePaths|LoadCredential|RuntimeDirectory)=(.*)$`).FindAllStringSubmatch(string(text), -1) {
				gives = append(gives, strings.ReplaceAll(m[1], "-/", "/"))
			}
			name := strings.TrimPrefix(filepath.Base(d), unit+"-")
			fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", unit, name, strings.Join(gives, ", "), score(unit, d, "100"))
		}
	}
	docpage.Check(t, filepath.Join(root, "docs/SYSTEMD.md"), "scores", b.String())
}

// The .rpm by rpm itself, in the tree of a host: scripts, users, files, an upgrade and the
// removal. What it depends on by its distribution's names is not looked at.
func TestRPM(t *testing.T) {
	t.Parallel()
	needRoot(t)
	p := builtPackages(t)
	root, err := moduleRoot(step(t))
	require.NoError(t, err)
	base := strings.TrimSpace(sh(t, `"$1"`, filepath.Join(root, "scripts/rootfs")))
	dir := t.TempDir()
	for name, state := range map[string]string{"causeway-agent": "/var/lib/causeway-agent", "causeway-hub": "/var/lib/causeway-hub"} {
		out := sh(t, `name=$1 rpm=$2 base=$3 dir=$4/$1 state=$5; mkdir -p "$dir"/root "$dir"/up "$dir"/work
			# Namespaces of its own: mounts end with it, and what 'leave' does meets no network of this host.
			unshare -m -n bash -euo pipefail -c '
				mount -t overlay overlay -o lowerdir=$2,upperdir=$3/up,workdir=$3/work $3/root; cd $3/root
				mount -t proc proc proc; mount -t tmpfs tmpfs run
				list() { { find etc usr var/lib ! -path "var/lib/rpm*" ! -name "*-" -printf "%p %M %u %g\n"; cat etc/passwd etc/group; } | sort; }
				list >../before
				rpm --root "$PWD" -i --nodeps "$1"
				rpm --root "$PWD" -V --nodeps "$0"
				chroot . stat -c "%n %U %a" "$4"
				chroot . "$0" --version
				rpm --root "$PWD" -U --force --nodeps "$1"
				rpm --root "$PWD" -e "$0" 2>&1
				list >../after; diff ../before ../after && echo as before
			' "$name" "$rpm" "$base" "$dir" "$state" 2>&1`, name, p.File(name, "rpm"), base, dir, state)
		require.Contains(t, out, state+" "+name+" 700\n", "its state directory")
		require.Contains(t, out, packagesVersion)
		require.Contains(t, out, "as before")
	}
}
