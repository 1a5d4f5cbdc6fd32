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

// Packages are what 'make package' makes, for this machine's architecture.
type Packages struct{ Dir, Version string }

// BuildPackages makes packages of these kinds (deb,rpm,oci) from the source tree
// in dir.
func BuildPackages(ctx context.Context, dir, version, kinds string) (Packages, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return Packages{}, err
	}
	cmd := exec.CommandContext(ctx, "go", "run", ".", "-version", version, "-arch", runtime.GOARCH, "-kind", kinds, "-out", dir)
	cmd.Dir = filepath.Join(root, "packaging")
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		return Packages{}, fmt.Errorf("make packages: %w\n%s", err, out)
	}
	return Packages{dir, version}, nil
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
