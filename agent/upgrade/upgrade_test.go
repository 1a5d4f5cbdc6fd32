package upgrade

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/agent/config"
	"causeway/internal/sshsig"
	"causeway/protocol"
)

// key makes an SSH key that signs, by ssh-keygen.
func key(t *testing.T) (path string, public sshsig.PublicKey) {
	t.Helper()
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		require.NotZero(t, os.Geteuid(), "make deps installs ssh-keygen")
		t.Skip("ssh-keygen is not installed (make deps)")
	}
	path = filepath.Join(t.TempDir(), "key")
	keygen(t, "-q", "-t", "ed25519", "-N", "", "-f", path)
	b, err := os.ReadFile(path + ".pub")
	require.NoError(t, err)
	public, err = sshsig.ParseKey(string(b))
	require.NoError(t, err)
	return path, public
}

func keygen(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ssh-keygen", args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// script is a program that tells its version.
func script(version string) []byte {
	return []byte("#!/bin/sh\necho causeway-agent version " + version + "\n")
}

// publish writes a signed release into dir.
func publish(t *testing.T, dir, key, version, minimum string, program []byte) {
	t.Helper()
	f := protocol.ReleaseFile{Name: "causeway-agent_" + version + "_amd64.bin", Program: programName, Arch: "amd64", Size: int64(len(program)), SHA256: fmt.Sprintf("%x", sha256.Sum256(program))}
	b, err := json.Marshal(protocol.Release{Version: version, Minimum: minimum, Files: []protocol.ReleaseFile{f}})
	require.NoError(t, err)
	manifest := filepath.Join(dir, protocol.ReleaseName(version))
	require.NoError(t, os.WriteFile(manifest, b, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, f.Name), program, 0o644))
	os.Remove(manifest + protocol.ReleaseSignature)
	keygen(t, "-Y", "sign", "-q", "-f", key, "-n", protocol.ReleaseNamespace, manifest)
}

const programName = program // where a parameter hides it

// fakeService is an agent that is well as versions say.
type fakeService struct {
	i        *Installer
	broken   map[string]string // versions that are not well, and why
	starts   int
	restarts int
	restart  error
}

func (s *fakeService) Restart(context.Context) error { s.starts++; return s.restart }
func (s *fakeService) Restarts(context.Context) int  { return s.restarts }
func (s *fakeService) Probe(ctx context.Context) (string, string) {
	out, err := exec.CommandContext(ctx, s.i.Program, "--version").Output()
	if err != nil {
		return "", "it does not answer"
	}
	f := strings.Fields(string(out))
	v := f[len(f)-1]
	return v, s.broken[v]
}

// host is a host with version 1.2.0, and a hub that has releases.
type host struct {
	t      *testing.T
	files  string // the hub's
	hub    *httptest.Server
	key    string
	public sshsig.PublicKey
	s      *fakeService
	i      *Installer
}

func newHost(t *testing.T) *host {
	h := &host{t: t, files: t.TempDir()}
	h.key, h.public = key(t)
	h.hub = httptest.NewServer(http.StripPrefix(protocol.ReleasePath, http.FileServer(http.Dir(h.files))))
	t.Cleanup(h.hub.Close)
	h.s = &fakeService{broken: map[string]string{}}
	h.i = &Installer{StateDir: t.TempDir(), Dir: t.TempDir(), Program: filepath.Join(t.TempDir(), "causeway-agent"), Arch: "amd64", Version: "1.2.0",
		Settings: config.Upgrade{Allow: true, Keys: []sshsig.PublicKey{h.public}}, Service: h.s, Within: 400 * time.Millisecond, Log: zerolog.New(zerolog.NewTestWriter(t))}
	h.s.i = h.i
	require.NoError(t, os.WriteFile(h.i.Program, script("1.2.0"), 0o755))
	return h
}

// upgrade goes all the way; fetched is the agent's error.
func (h *host) upgrade(id uint64, version string) (fetched error) {
	h.t.Helper()
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	go func() {
		done <- Fetch(ctx, h.hub.Client(), h.hub.URL, protocol.UpgradeWish{ID: id, Version: version}, "amd64", h.i.StateDir, h.i.Settings)
	}()
	request := filepath.Join(h.i.StateDir, spoolDir, requestFile)
	for {
		select {
		case err := <-done:
			return err
		case <-time.After(5 * time.Millisecond):
		}
		if _, err := os.Stat(request); err == nil {
			require.NoError(h.t, h.i.Run(ctx))
			return <-done
		}
	}
}

func (h *host) result() Result {
	r, err := ReadResult(h.i.Dir)
	require.NoError(h.t, err)
	return r
}

func (h *host) runs() string {
	v, _ := h.s.Probe(h.t.Context())
	return v
}

// clean requires that nothing of an upgrade lies about.
func (h *host) clean() {
	h.t.Helper()
	for _, path := range []string{h.i.previous(), h.i.next(), filepath.Join(h.i.Dir, pendingFile), filepath.Join(h.i.StateDir, spoolDir)} {
		require.NoFileExists(h.t, path)
		require.NoDirExists(h.t, path)
	}
}

func TestUpgrade(t *testing.T) {
	h := newHost(t)
	publish(t, h.files, h.key, "1.3.0", "1.2.0-0", script("1.3.0"))
	require.NoError(t, h.upgrade(1, "1.3.0"))
	require.Equal(t, Result{protocol.UpgradeStatus{UpgradeWish: protocol.UpgradeWish{ID: 1, Version: "1.3.0"}, State: protocol.UpgradeDone}, "1.2.0-0"}, h.result())
	require.Equal(t, "1.3.0", h.runs())
	st, err := os.Stat(filepath.Join(h.i.Dir, resultFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o644), st.Mode(), "the agent reads it")
	h.clean()

	// Back, as far as the minimum goes, and below it only if the host says so.
	h.i.Version = "1.3.0"
	publish(t, h.files, h.key, "1.2.5", "1.1.0-0", script("1.2.5"))
	require.NoError(t, h.upgrade(2, "1.2.5"))
	require.Equal(t, "1.2.5", h.runs())
	require.Equal(t, "1.2.0-0", h.result().Minimum, "it never falls by a release")
	publish(t, h.files, h.key, "1.1.9", "1.1.0-0", script("1.1.9"))
	require.NoError(t, h.upgrade(3, "1.1.9"))
	require.Equal(t, protocol.UpgradeFailed, h.result().State)
	require.Contains(t, h.result().Error, "1.1.9 is below 1.2.0-0")
	require.Equal(t, "1.2.5", h.runs())
	h.i.Settings.Downgrade = true
	require.NoError(t, h.upgrade(4, "1.1.9"))
	require.Equal(t, "1.1.9", h.runs())
	require.Equal(t, "1.1.0-0", h.result().Minimum)
	h.clean()
}

// The package that the host installed is a minimum before any release has named one, and a
// request that the agent made a directory does not stay.
func TestPackagedVersionIsLeast(t *testing.T) {
	h := newHost(t)
	file := filepath.Join(t.TempDir(), "version")
	v, err := ReadPackaged(file)
	require.NoError(t, err)
	require.Empty(t, v, "a host without the package, or one of before")
	require.NoError(t, os.WriteFile(file, []byte("1.2.0\n"), 0o644))
	h.i.Packaged, err = ReadPackaged(file)
	require.NoError(t, err)
	publish(t, h.files, h.key, "1.1.9", "1.1.0-0", script("1.1.9"))
	require.NoError(t, h.upgrade(1, "1.1.9"))
	require.Equal(t, protocol.UpgradeFailed, h.result().State)
	require.Contains(t, h.result().Error, "1.1.9 is below 1.2.0, which this host's package installed")
	require.Equal(t, "1.2.0", h.runs())
	h.i.Settings.Downgrade = true
	require.NoError(t, h.upgrade(2, "1.1.9"))
	require.Equal(t, "1.1.9", h.runs())

	request := filepath.Join(h.i.StateDir, spoolDir, requestFile)
	require.NoError(t, os.MkdirAll(filepath.Join(request, "x"), 0o700))
	require.Error(t, h.i.Run(t.Context()))
	require.NoDirExists(t, request)

	require.NoError(t, os.WriteFile(file, []byte("newest\n"), 0o644))
	_, err = ReadPackaged(file)
	require.ErrorContains(t, err, "is no version")
}

func TestRollback(t *testing.T) {
	for what, c := range map[string]struct {
		program  []byte
		broken   string
		restarts int
		want     string
	}{
		"never finds its hub": {script("1.3.0"), "control: not connected yet", 0, "version 1.3.0 was not well within 400ms (control: not connected yet); 1.2.0 is back"},
		"exits at once":       {[]byte("#!/bin/sh\n[ $# != 1 ] || [ -n \"$BROKEN\" ] || echo causeway-agent version 1.3.0\n"), "it does not answer", 3, "version 1.3.0 ended and was started again 3 times (it does not answer); 1.2.0 is back"},
	} {
		t.Run(what, func(t *testing.T) {
			h := newHost(t)
			h.s.broken["1.3.0"], h.s.restarts = c.broken, c.restarts
			publish(t, h.files, h.key, "1.3.0", "1.3.0", c.program)
			require.NoError(t, h.upgrade(1, "1.3.0"))
			require.Equal(t, protocol.UpgradeFailed, h.result().State)
			require.Equal(t, c.want, h.result().Error)
			require.Empty(t, h.result().Minimum, "a release that failed names none")
			require.Equal(t, "1.2.0", h.runs())
			require.Equal(t, 2, h.s.starts)
			h.clean()
		})
	}
}

// Root killed at any point goes on: what has not proven itself does so, or goes.
func TestKilledBetween(t *testing.T) {
	for _, good := range []bool{true, false} {
		h := newHost(t)
		publish(t, h.files, h.key, "1.3.0", "1.2.0-0", script("1.3.0"))
		if !good {
			h.s.broken["1.3.0"] = "hub: no answer"
		}
		h.s.restart = errors.New("killed")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		p := pending{Request{ID: 1, Version: "1.3.0"}, "1.2.0", "1.2.0-0", fmt.Sprintf("%x", sha256.Sum256(script("1.3.0")))}
		require.NoError(t, os.WriteFile(h.i.next(), script("1.3.0"), 0o755))
		require.NoError(t, h.i.swap(p))
		require.Error(t, h.i.prove(ctx, p, Result{}))
		require.FileExists(t, filepath.Join(h.i.Dir, pendingFile))
		h.s.restart = nil
		require.NoError(t, h.i.Run(t.Context()))
		require.Equal(t, map[bool]string{true: "1.3.0", false: "1.2.0"}[good], h.runs())
		h.clean()
	}
}

// What somebody else installed meanwhile is not overwritten.
func TestReplacedMeanwhile(t *testing.T) {
	h := newHost(t)
	p := pending{Request{ID: 1, Version: "1.3.0"}, "1.2.0", "1.2.0-0", "00"}
	require.NoError(t, os.WriteFile(h.i.next(), script("1.4.0"), 0o755))
	require.NoError(t, h.i.swap(p))
	require.NoError(t, h.i.Run(t.Context()))
	require.Equal(t, "1.4.0", h.runs())
	require.Contains(t, h.result().Error, "left alone")
	h.clean()
}

// A hub that anybody took over: none of this is ever run.
func TestFetchRefuses(t *testing.T) {
	other, _ := key(t)
	for what, c := range map[string]struct {
		edit func(h *host)
		want string
	}{
		"not allowed":       {func(h *host) { h.i.Settings.Allow = false }, "does not let its hub"},
		"no such release":   {func(h *host) { os.Remove(filepath.Join(h.files, "causeway_1.3.0.json")) }, "404"},
		"foreign key":       {func(h *host) { publish(h.t, h.files, other, "1.3.0", "1.2.0", script("1.3.0")) }, "not trusted"},
		"changed manifest":  {func(h *host) { h.change("causeway_1.3.0.json", "1.2.0", "1.1.0") }, "does not belong"},
		"changed program":   {func(h *host) { h.change("causeway-agent_1.3.0_amd64.bin", "version", "VERSION") }, "not the release's"},
		"longer program":    {func(h *host) { h.change("causeway-agent_1.3.0_amd64.bin", "echo", "echo echo") }, "not the release's"},
		"another release":   {func(h *host) { h.rename("1.2.9", "1.3.0") }, "the release is 1.2.9, not 1.3.0"},
		"endless signature": {func(h *host) { h.change("causeway_1.3.0.json.sig", "BEGIN", strings.Repeat("A", 8000)) }, "longer than"},
		"endless manifest":  {func(h *host) { h.change("causeway_1.3.0.json", "{", "{"+strings.Repeat(" ", 80000)) }, "longer than"},
	} {
		t.Run(what, func(t *testing.T) {
			h := newHost(t)
			publish(t, h.files, h.key, "1.3.0", "1.2.0", script("1.3.0"))
			c.edit(h)
			err := h.upgrade(1, "1.3.0")
			require.ErrorContains(t, err, c.want)
			require.Equal(t, "1.2.0", h.runs())
			require.Zero(t, h.result().ID, "root was not asked")
			require.NoDirExists(t, filepath.Join(h.i.StateDir, spoolDir))
		})
	}
}

func (h *host) change(name, old, new string) {
	path := filepath.Join(h.files, name)
	b, err := os.ReadFile(path)
	require.NoError(h.t, err)
	require.Contains(h.t, string(b), old)
	require.NoError(h.t, os.WriteFile(path, []byte(strings.Replace(string(b), old, new, 1)), 0o644))
}

func (h *host) rename(from, to string) {
	publish(h.t, h.files, h.key, from, from, script(from))
	for _, end := range []string{"", protocol.ReleaseSignature} {
		require.NoError(h.t, os.Rename(filepath.Join(h.files, protocol.ReleaseName(from)+end), filepath.Join(h.files, protocol.ReleaseName(to)+end)))
	}
}

// An agent that was taken over: root installs nothing by it either, and reads nothing
// that the agent could not.
func TestInstallerRefuses(t *testing.T) {
	other, _ := key(t)
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, []byte("root's"), 0o600))
	for what, c := range map[string]struct {
		edit func(h *host, spool string)
		want string // of the result; empty: Run itself fails
	}{
		"not allowed":     {func(h *host, _ string) { h.i.Settings.Allow = false }, "does not let its hub"},
		"key not trusted": {func(h *host, _ string) { h.i.Settings.Keys = nil }, "not trusted"},
		"foreign key": {func(h *host, spool string) {
			publish(h.t, h.files, other, "1.3.0", "1.2.0", script("1.3.0"))
			h.spool(spool)
		}, "not trusted"},
		"changed program": {func(h *host, spool string) {
			require.NoError(h.t, os.WriteFile(filepath.Join(spool, programFile), script("1.3.1"), 0o755))
		}, "not the release's"},
		"program elsewhere":  {func(h *host, spool string) { h.link(spool, programFile, secret) }, "read the program"},
		"manifest elsewhere": {func(h *host, spool string) { h.link(spool, manifestFile, secret) }, "read the release"},
		"a pipe": {func(h *host, spool string) {
			require.NoError(h.t, os.Remove(filepath.Join(spool, programFile)))
			require.NoError(h.t, syscall.Mkfifo(filepath.Join(spool, programFile), 0o600))
		}, "it is no file"},
		"request elsewhere": {func(h *host, spool string) { h.link(spool, requestFile, secret) }, ""},
		"no request":        {func(h *host, spool string) { h.write(spool, "{}") }, ""},
		"no version":        {func(h *host, spool string) { h.write(spool, `{"id":1,"version":"../../x"}`) }, ""},
		"spool elsewhere": {func(h *host, spool string) {
			require.NoError(h.t, os.Rename(spool, spool+".real"))
			require.NoError(h.t, os.Symlink(h.files, spool))
		}, ""},
		"another version": {func(h *host, spool string) { h.write(spool, `{"id":1,"version":"1.4.0"}`) }, "the release is 1.3.0, not 1.4.0"},
		"does not start": {func(h *host, spool string) {
			publish(h.t, h.files, h.key, "1.3.0", "1.2.0", []byte("no program"))
			h.spool(spool)
		}, "does not start on this host"},
		"says another version": {func(h *host, spool string) {
			publish(h.t, h.files, h.key, "1.3.0", "1.2.0", script("1.2.9"))
			h.spool(spool)
		}, "not 1.3.0"},
	} {
		t.Run(what, func(t *testing.T) {
			h := newHost(t)
			publish(t, h.files, h.key, "1.3.0", "1.2.0", script("1.3.0"))
			spool := filepath.Join(h.i.StateDir, spoolDir)
			require.NoError(t, os.Mkdir(spool, 0o700))
			h.spool(spool)
			h.write(spool, `{"id":1,"version":"1.3.0"}`)
			c.edit(h, spool)
			err := h.i.Run(t.Context())
			if c.want == "" {
				require.Error(t, err)
				require.Zero(t, h.result().ID)
			} else {
				require.NoError(t, err)
				require.Equal(t, protocol.UpgradeFailed, h.result().State)
				require.Contains(t, h.result().Error, c.want)
			}
			require.Equal(t, "1.2.0", h.runs())
			require.Zero(t, h.s.starts)
			require.NoFileExists(t, h.i.next())
			b, err := os.ReadFile(secret)
			require.NoError(t, err)
			require.Equal(t, "root's", string(b))
		})
	}
}

// spool fills the spool with what the hub has of 1.3.0.
func (h *host) spool(dir string) {
	for from, to := range map[string]string{"causeway_1.3.0.json": manifestFile, "causeway_1.3.0.json.sig": signatureFile, "causeway-agent_1.3.0_amd64.bin": programFile} {
		b, err := os.ReadFile(filepath.Join(h.files, from))
		require.NoError(h.t, err)
		require.NoError(h.t, os.WriteFile(filepath.Join(dir, to), b, 0o600))
	}
}

func (h *host) write(spool, request string) {
	require.NoError(h.t, os.WriteFile(filepath.Join(spool, requestFile), []byte(request), 0o600))
}

func (h *host) link(spool, name, to string) {
	require.NoError(h.t, os.Remove(filepath.Join(spool, name)))
	require.NoError(h.t, os.Symlink(to, filepath.Join(spool, name)))
}
