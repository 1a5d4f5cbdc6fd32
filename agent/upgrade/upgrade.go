// Package upgrade replaces the agent's program by one of a signed release, in two
// halves that trust each other in one direction only.
//
// Fetch is the agent's, which runs without root: it fetches a release from the hub,
// checks it and puts it into its state directory, the request last. Installer is
// root's, a program of its own that systemd starts when a request is there: it
// trusts nothing of the agent, checks the signature again, installs the new
// program, has the agent started anew and watches whether it finds its hub; if not
// it puts the old program back. What it has to tell lies in a directory of root's,
// where the agent reads it (ReadResult).
//
// Which keys sign releases stands in the host's configuration. The hub is not
// trusted: it chooses among releases that those keys signed, and none below the
// package that the host installed or the minimum that an installed release has named.
package upgrade

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"causeway/agent/config"
	"causeway/agent/identity"
	"causeway/internal/durable"
	"causeway/internal/sshsig"
	"causeway/protocol"
)

// Where things are on a host with the package.
const (
	DefaultDir     = "/var/lib/causeway-agent-upgrade" // root's, for everybody to read
	DefaultProgram = "/usr/bin/causeway-agent"
	// PackagedFile comes with the package and holds its version.
	PackagedFile = "/usr/lib/causeway-agent/version"
)

// program is the name of what is upgraded, in a release's manifest.
const program = "causeway-agent"

// Files in the spool below the agent's state directory, and in root's directory.
const (
	spoolDir      = identity.SpoolDir
	manifestFile  = "release.json"
	signatureFile = "release.json" + protocol.ReleaseSignature
	programFile   = "causeway-agent"
	requestFile   = "request"

	resultFile  = "result.json"
	pendingFile = "pending.json"
)

// maxSmall bounds request, result and pending.
const maxSmall = 16 << 10

// Request is what the agent asks root for.
type Request = protocol.UpgradeWish

// Result is what root tells of the last upgrade, and remembers for the next.
type Result struct {
	protocol.UpgradeStatus
	// Minimum is the highest one that an installed release has named.
	Minimum string `json:"minimum,omitempty"`
}

// ReadResult reads the result in root's directory dir; the zero value if there is none.
func ReadResult(dir string) (r Result, err error) {
	if err := result(dir).Peek(&r, nil); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Result{}, fmt.Errorf("read the result of the last upgrade: %w", err)
	}
	return r, nil
}

// result is how root keeps the result: it holds the least version.
func result(dir string) durable.Side {
	return durable.Side{Path: filepath.Join(dir, resultFile), Max: maxSmall, Twice: true}
}

// ReadPackaged reads the version of the package in path; "" if no package brought the file.
func ReadPackaged(path string) (string, error) {
	b, err := durable.Read(path, maxSmall)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	v := strings.TrimSpace(string(b))
	if err == nil && !protocol.ValidVersion(v) {
		err = fmt.Errorf("%.80q is no version", v)
	}
	if err != nil {
		return "", fmt.Errorf("read the package's version in %s: %w; install the package anew", path, err)
	}
	return v, nil
}

func readAtMost(r io.Reader, limit int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err == nil && len(b) > limit {
		err = fmt.Errorf("longer than %d bytes", limit)
	}
	return b, err
}

// check checks a manifest's signature and that it is of the version asked for, and
// returns the program for arch.
func check(manifest, signature []byte, version, arch string, keys []sshsig.PublicKey) (protocol.Release, protocol.ReleaseFile, error) {
	none := func(err error) (protocol.Release, protocol.ReleaseFile, error) {
		return protocol.Release{}, protocol.ReleaseFile{}, err
	}
	if _, err := sshsig.Verify(manifest, signature, protocol.ReleaseNamespace, keys); err != nil {
		if errors.Is(err, sshsig.ErrUntrusted) {
			err = fmt.Errorf("%w (upgrade.keys of the host's configuration names those that are)", err)
		}
		return none(fmt.Errorf("release %s: %w", version, err))
	}
	r, err := protocol.ParseRelease(manifest)
	if err != nil {
		return none(err)
	}
	if r.Version != version {
		return none(fmt.Errorf("the release is %s, not %s that was asked for", r.Version, version))
	}
	f, ok := r.Find(program, arch)
	if !ok {
		return none(fmt.Errorf("release %s has no %s for %s", version, program, arch))
	}
	return r, f, nil
}

// errForeign says that bytes are not those of the release.
var errForeign = errors.New("is not the release's")

// copyProgram copies the program of a release from r to path, a new file of that
// mode, durable when it returns; what is not the release's is not kept.
func copyProgram(path string, mode fs.FileMode, r io.Reader, f protocol.ReleaseFile) (err error) {
	if err := durable.Remove(path); err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(out, h), io.LimitReader(r, f.Size+1))
	switch {
	case err != nil:
	case n < f.Size:
		err = fmt.Errorf("%s is cut short: %d of %d bytes", f.Name, n, f.Size)
	case n > f.Size || hex.EncodeToString(h.Sum(nil)) != f.SHA256:
		err = fmt.Errorf("%s %w: its size or checksum is another", f.Name, errForeign)
	}
	if err == nil {
		err = out.Chmod(mode) // whatever the umask says
	}
	if err == nil {
		err = out.Sync()
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

// allowed says why a host with this configuration installs no release at all.
func allowed(c config.Upgrade) error {
	if !c.Allow {
		return errors.New("this host does not let its hub upgrade the agent (upgrade.allow of its configuration)")
	}
	return nil
}
