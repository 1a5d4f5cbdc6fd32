package e2e

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// install.sh goes by redirects to https alone, with curl and with wget; from https to plain
// http, where anybody on the way answers, it goes nowhere.
func TestInstallerStaysWithHTTPS(t *testing.T) {
	t.Parallel()
	needRoot(t)
	root, err := moduleRoot(step(t))
	require.NoError(t, err)
	var plain, secure atomic.Int64
	sums := func(n *atomic.Int64) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			n.Add(1)
			w.Write([]byte("nothing for this host\n"))
		})
	}
	over := httptest.NewServer(sums(&plain))
	defer over.Close()
	good := httptest.NewTLSServer(sums(&secure))
	defer good.Close()
	to := func(url string) *httptest.Server {
		return httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, url+r.URL.Path, http.StatusFound) }))
	}
	bad, fine := to(over.URL), to(good.URL)
	defer bad.Close()
	defer fine.Close()

	dir := t.TempDir()
	ca, rc := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "wgetrc")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: good.Certificate().Raw}), 0o644))
	require.NoError(t, os.WriteFile(rc, []byte("ca_certificate = "+ca+"\n"), 0o644))
	onlyWget := filepath.Join(dir, "bin")
	require.NoError(t, os.Mkdir(onlyWget, 0o755))
	for _, tool := range []string{"sh", "id", "uname", "mktemp", "rm", "wget", "apt-get", "sha256sum", "cut", "grep", "wc", "cat"} {
		at, err := exec.LookPath(tool)
		require.NoError(t, err)
		require.NoError(t, os.Symlink(at, filepath.Join(onlyWget, tool)))
	}
	run := func(path, from string) string {
		cmd := exec.CommandContext(step(t), "/bin/sh", filepath.Join(root, "packaging/install.sh"), "--from", from)
		cmd.Env = []string{"PATH=" + path, "CURL_CA_BUNDLE=" + ca, "WGETRC=" + rc}
		out, err := cmd.CombinedOutput()
		require.Error(t, err, string(out))
		return string(out)
	}
	for name, path := range map[string]string{"curl": os.Getenv("PATH"), "wget": onlyWget} {
		plain.Store(0)
		out := run(path, bad.URL)
		require.Contains(t, out, "install.sh: cannot fetch "+bad.URL+"/SHA256SUMS", name)
		require.Contains(t, out, "redirect", name)
		require.Zero(t, plain.Load(), name+" asked over plain http")
		// Without a redirect it gets as far as what the server has.
		require.Contains(t, run(path, good.URL), "the release has no causeway-agent", name)
		require.NotZero(t, secure.Swap(0), name)
	}
	require.Contains(t, run(os.Getenv("PATH"), fine.URL), "the release has no causeway-agent", "from https to https")
	require.NotZero(t, secure.Load())
	require.Contains(t, run(os.Getenv("PATH"), "http://192.0.2.1"), "not over plain http")
}
