package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// namespace is what signatures of a release are for: one that was made for
// something else, such as a commit, is none. Verifiers have the same word.
const namespace = "causeway-release"

// manifest says what a release is, under one signature: agents that upgrade read
// it (protocol.Release in the source tree).
type manifest struct {
	Version string         `json:"version"`
	Minimum string         `json:"minimum"` // hosts that had this release go back to nothing older
	Files   []manifestFile `json:"files"`
}

type manifestFile struct {
	Name    string `json:"name"`
	Program string `json:"program"`
	Arch    string `json:"arch"`
	Size    int64  `json:"size"`
	SHA256  string `json:"sha256"`
}

// writeProgram puts the agent's program beside the packages, as it is: what an
// upgrade by the hub installs.
func (r *release) writeProgram(name, arch, bin string) error {
	f := fmt.Sprintf("%s_%s_%s.bin", name, r.version, arch)
	fmt.Println("write", f)
	b, err := os.ReadFile(bin)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b)
	r.manifest.Files = append(r.manifest.Files, manifestFile{f, name, arch, int64(len(b)), fmt.Sprintf("%x", sum)})
	return writeFile(filepath.Join(r.out, f), b)
}

func (r *release) writeManifest() error {
	b, err := json.MarshalIndent(r.manifest, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(r.out, "causeway_"+r.version+".json"), append(b, '\n'))
}

var numbers = regexp.MustCompile(`^(\d+)\.(\d+)\.\d+`)

// minimumOf is the first version of the minor one before: as far apart as agents
// and hubs may be.
func minimumOf(version string) (string, error) {
	m := numbers.FindStringSubmatch(version)
	if m == nil {
		return "", fmt.Errorf("version %q is none by semver.org", version)
	}
	minor, err := strconv.Atoi(m[2])
	if err != nil {
		return "", fmt.Errorf("version %q: %w", version, err)
	}
	// "-0" comes before every version with these numbers.
	return fmt.Sprintf("%s.%d.0-0", m[1], max(0, minor-1)), nil
}

// sign signs checksums, manifest and packages with an SSH key, as ssh-keygen does:
// the key may be in a file, or in the agent if the file holds the public one.
func (r *release) sign(ctx context.Context, key string) error {
	if key == "" {
		fmt.Fprintln(os.Stderr, "packaging: NOT SIGNED: no key was given (-key FILE, make package KEY=FILE). Nobody can tell these files from others, and no host upgrades to them.")
		return nil
	}
	b, err := os.ReadFile(key)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the key %s is not there; make one with: ssh-keygen -t ed25519 -C causeway-release -f %s", key, key)
	}
	if err != nil {
		return err
	}
	if pub, err := os.ReadFile(key + ".pub"); err == nil {
		b = pub
	}
	if !strings.HasPrefix(string(b), "ssh-ed25519 ") {
		return fmt.Errorf("the key %s is not of type ed25519, or its public half %s.pub is missing; make one with: ssh-keygen -t ed25519 -C causeway-release -f FILE", key, key)
	}
	var files []string
	for _, pattern := range []string{"SHA256SUMS", "*.json", "*.deb", "*.rpm"} {
		m, err := filepath.Glob(filepath.Join(r.out, pattern))
		if err != nil {
			return err
		}
		files = append(files, m...)
	}
	for _, f := range files {
		if err := os.Remove(f + ".sig"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "ssh-keygen", append([]string{"-Y", "sign", "-q", "-f", key, "-n", namespace}, files...)...)
	cmd.Stdin = os.Stdin // for a passphrase
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("sign with %s: %w\n%s", key, err, out)
	}
	fmt.Printf("signed %d files by %s", len(files), b)
	return nil
}

// checksum is the SHA-256 of a file, as sha256sum prints it.
func checksum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return fmt.Sprintf("%x", h.Sum(nil)), err
}
