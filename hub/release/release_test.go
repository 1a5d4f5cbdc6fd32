package release

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
}

// put writes a release with a program of 3 bytes.
func put(t *testing.T, dir, version string) {
	bin := "causeway-agent_" + version + "_amd64.bin"
	write(t, dir, bin, "bin")
	write(t, dir, "causeway_"+version+".json", `{"version":"`+version+`","minimum":"0.0.0-0","files":[{"name":"`+bin+`","program":"causeway-agent","arch":"amd64","size":3,"sha256":"`+strings.Repeat("0", 64)+`"}]}`)
	write(t, dir, "causeway_"+version+".json.sig", "sig")
}

func TestLibrary(t *testing.T) {
	dir := t.TempDir()
	l := Open(filepath.Join(dir, "missing"))
	_, err := l.Find("")
	require.ErrorContains(t, err, "the hub has no release: put the files of 'make package' into "+l.Dir())
	l = Open(dir)
	put(t, dir, "1.9.0")
	put(t, dir, "1.10.0")
	write(t, dir, "causeway-agent_1.9.0_amd64.spdx.json", "{}")
	r, err := l.Find("")
	require.NoError(t, err)
	require.Equal(t, "1.10.0", r.Version, "the newest")
	_, err = l.Find("1.8.0")
	require.ErrorContains(t, err, "no release 1.8.0")
	require.ErrorContains(t, err, "it has 1.10.0, 1.9.0")

	for what, spoil := range map[string]func(){
		"is missing":                  func() { require.NoError(t, os.Remove(filepath.Join(dir, "causeway-agent_1.10.0_amd64.bin"))) },
		"has 2 bytes, not 3":          func() { write(t, dir, "causeway-agent_1.10.0_amd64.bin", "bi") },
		"it is not signed":            func() { require.NoError(t, os.Remove(filepath.Join(dir, "causeway_1.10.0.json.sig"))) },
		"decode a release's manifest": func() { write(t, dir, "causeway_1.10.0.json", "no") },
		"has the name of another": func() {
			require.NoError(t, os.Rename(filepath.Join(dir, "causeway_1.9.0.json"), filepath.Join(dir, "causeway_1.10.0.json")))
		},
	} {
		put(t, dir, "1.9.0")
		put(t, dir, "1.10.0")
		spoil()
		_, err := l.Find("1.10.0")
		require.ErrorContains(t, err, what)
	}
}

// Nothing but what belongs to releases leaves the directory.
func TestServe(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "1.9.0")
	write(t, dir, "cluster.key", "secret")
	write(t, dir, "causeway.key", "secret")
	outside := filepath.Join(t.TempDir(), "causeway_outside.json")
	require.NoError(t, os.WriteFile(outside, []byte("secret"), 0o600))
	require.NoError(t, os.Symlink(outside, filepath.Join(dir, "causeway_link.json")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "causeway_dir.json"), 0o755))
	s := httptest.NewServer(Open(dir).Handler())
	defer s.Close()
	for name, want := range map[string]int{
		"causeway_1.9.0.json": 200, "causeway_1.9.0.json.sig": 200, "causeway-agent_1.9.0_amd64.bin": 200,
		"cluster.key": 404, "causeway.key": 404, "causeway_link.json": 404, "causeway_dir.json": 404, "causeway_none.json": 404,
		"..%2Fcauseway_1.9.0.json": 404, "%2Fetc%2Fpasswd": 404, "": 404, ".": 404,
	} {
		res, err := http.Get(s.URL + "/v1/releases/" + name)
		require.NoError(t, err)
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		res.Body.Close()
		require.Equal(t, want, res.StatusCode, name)
		require.NotContains(t, string(b), "secret")
	}
}
