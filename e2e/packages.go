package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Packages are what 'make package' makes, for this machine's architecture, signed by
// the SSH key that lies beside their directory.
type Packages struct{ Dir, Version string }

// BuildPackages makes packages of these kinds (deb,rpm,oci,bin) from the source tree
// in dir.
func BuildPackages(ctx context.Context, dir, version, kinds string) (Packages, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return Packages{}, err
	}
	p := Packages{dir, version}
	if _, err := os.Stat(p.Key()); err != nil {
		if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "causeway-release", "-f", p.Key()).CombinedOutput(); err != nil {
			return Packages{}, fmt.Errorf("make a key: %w\n%s", err, out)
		}
	}
	cmd := exec.CommandContext(ctx, "go", "run", ".", "-version", version, "-arch", runtime.GOARCH, "-kind", kinds, "-key", p.Key(), "-out", dir)
	cmd.Dir = filepath.Join(root, "packaging")
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		return Packages{}, fmt.Errorf("make packages: %w\n%s", err, out)
	}
	return p, nil
}

// Key is the path of the private key that signed; Key() + ".pub" is the public one.
func (p Packages) Key() string { return p.Dir + ".key" }

// PublicKey is the public key, one line.
func (p Packages) PublicKey() (string, error) {
	b, err := os.ReadFile(p.Key() + ".pub")
	return strings.TrimSpace(string(b)), err
}

// File is the path of a package's file.
func (p Packages) File(name, kind string) string {
	return filepath.Join(p.Dir, fmt.Sprintf("%s_%s_%s.%s", name, p.Version, runtime.GOARCH, kind))
}

// Image is the path of an OCI image layout.
func (p Packages) Image(name string) string {
	return filepath.Join(p.Dir, fmt.Sprintf("%s_%s.oci", name, strings.ReplaceAll(p.Version, "+", "-")))
}

// sums reads SHA256SUMS.
func (p Packages) sums() (string, error) {
	b, err := os.ReadFile(filepath.Join(p.Dir, "SHA256SUMS"))
	return strings.TrimSpace(string(b)), err
}
