// Command packaging makes the packages of a release: .deb and .rpm, an OCI image
// layout, an SBOM for each program, the licences of all that is linked in,
// the installer, checksums and signatures. The same source makes the same bytes: times are
// SOURCE_DATE_EPOCH's, and nothing of the machine gets in.
//
//	cd packaging && go run . -version 1.2.3 -key release.key -out ../dist
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// release is what is made, and of what.
type release struct {
	version string
	time    time.Time
	root    string // of the source tree
	out     string
	work    string // for what lies between, removed at the end
	docs    string // pages, completions and licences, alike for all architectures

	manifest manifest
}

func main() {
	version := flag.String("version", "", "version, by semver.org")
	archs := flag.String("arch", "amd64,arm64", "architectures")
	kinds := flag.String("kind", "deb,rpm,oci,bin", "kinds of packages; bin: what an upgrade by the hub installs")
	key := flag.String("key", os.Getenv("CAUSEWAY_RELEASE_KEY"), "SSH key of type ed25519 that signs the release, a `file` (default $CAUSEWAY_RELEASE_KEY)")
	minimum := flag.String("minimum", "", "oldest `version` to which a host that had this one may go back (default: the minor one before)")
	out := flag.String("out", "../dist", "`directory` for the packages")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *version, *out, *key, *minimum, strings.Split(*archs, ","), strings.Split(*kinds, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "packaging:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, version, out, key, minimum string, archs, kinds []string) (err error) {
	if version == "" || strings.HasPrefix(version, "v") {
		return errors.New("give -version, such as 1.2.3")
	}
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return errors.New("set SOURCE_DATE_EPOCH to the seconds of the commit: git log -1 --format=%ct")
	}
	if minimum == "" {
		if minimum, err = minimumOf(version); err != nil {
			return err
		}
	}
	r := &release{version: version, time: time.Unix(epoch, 0).UTC(), manifest: manifest{Version: version, Minimum: minimum}}
	if r.root, err = filepath.Abs(".."); err != nil {
		return err
	}
	if r.out, err = filepath.Abs(out); err != nil {
		return err
	}
	if r.work, err = os.MkdirTemp("", "causeway-packaging-"); err != nil {
		return err
	}
	defer os.RemoveAll(r.work)
	if err := os.MkdirAll(r.out, 0o755); err != nil {
		return err
	}
	if err := r.makeDocs(ctx); err != nil {
		return err
	}
	for _, arch := range archs {
		bins, err := r.build(ctx, arch)
		if err != nil {
			return err
		}
		for _, p := range packages {
			if err := r.writeSBOM(p, arch, bins); err != nil {
				return err
			}
			for _, kind := range kinds {
				if kind == "oci" || kind == "bin" {
					continue
				}
				if err := r.writePackage(p, arch, kind, bins); err != nil {
					return err
				}
			}
		}
		if slices.Contains(kinds, "bin") {
			if err := r.writeProgram("causeway-agent", arch, bins["causeway-agent"]); err != nil {
				return err
			}
		}
	}
	if slices.Contains(kinds, "bin") {
		if err := r.writeManifest(); err != nil {
			return err
		}
	}
	if slices.Contains(kinds, "oci") {
		for _, p := range packages {
			if err := r.writeImage(p, archs); err != nil {
				return err
			}
		}
	}
	if err := r.writeInstaller(); err != nil {
		return err
	}
	if err := r.writeChecksums(); err != nil {
		return err
	}
	return r.sign(ctx, key)
}

// programs maps a program to its package in the source tree.
var programs = map[string]string{
	"causeway-agent": "./agent/cmd/causeway-agent",
	"causeway-hub":   "./hub/cmd/causeway-hub",
	"causeway":       "./hub/cmd/causeway",
}

func (r *release) bin(arch string) string { return filepath.Join(r.work, "bin-"+arch) }

// build builds the programs, static, and returns their paths by name.
func (r *release) build(ctx context.Context, arch string) (map[string]string, error) {
	bins := map[string]string{}
	for name, pkg := range programs {
		bins[name] = filepath.Join(r.bin(arch), name)
		if _, err := os.Stat(bins[name]); err == nil {
			continue
		}
		fmt.Printf("build %s %s %s\n", name, r.version, arch)
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid= -X main.version="+r.version, "-o", bins[name], pkg)
		cmd.Dir = r.root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOAMD64=v1", "GOARM64=v8.0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s for %s: %w\n%s", name, arch, err, out)
		}
	}
	return bins, nil
}

// makeDocs has the programs of this machine's architecture write manual pages and
// completions, and gathers the licences.
func (r *release) makeDocs(ctx context.Context) error {
	bins, err := r.build(ctx, runtime.GOARCH)
	if err != nil {
		return err
	}
	r.docs = filepath.Join(r.work, "docs")
	if err := writeFile(filepath.Join(r.docs, "version"), []byte(r.version+"\n")); err != nil {
		return err
	}
	for name, bin := range bins {
		if _, err := r.program(ctx, bin, "man", filepath.Join(r.docs, "man", name)); err != nil {
			return err
		}
		for _, shell := range []string{"bash", "zsh", "fish"} {
			text, err := r.program(ctx, bin, "completion", shell)
			if err != nil {
				return err
			}
			if err := writeFile(filepath.Join(r.docs, "completion", shell, name), text); err != nil {
				return err
			}
		}
	}
	for _, p := range packages {
		text, err := r.licences(ctx, p, bins)
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(r.docs, "licences", p.name), text); err != nil {
			return err
		}
	}
	return nil
}

func (r *release) program(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, complaint.String())
	}
	return out, nil
}

func writeFile(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

// writeInstaller puts the installer beside the packages.
func (r *release) writeInstaller() error {
	b, err := os.ReadFile("install.sh")
	if err != nil {
		return err
	}
	path := filepath.Join(r.out, "install.sh")
	if err := writeFile(path, b); err != nil {
		return err
	}
	return os.Chmod(path, 0o755)
}

// writeChecksums writes SHA256SUMS of all files in the output directory but
// signatures.
func (r *release) writeChecksums() error {
	var lines []string
	err := filepath.WalkDir(r.out, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "SHA256SUMS" || strings.HasSuffix(path, ".sig") {
			return err
		}
		sum, err := checksum(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(r.out, path)
		lines = append(lines, fmt.Sprintf("%s  %s\n", sum, name))
		return err
	})
	if err != nil {
		return err
	}
	slices.Sort(lines)
	return writeFile(filepath.Join(r.out, "SHA256SUMS"), []byte(strings.Join(lines, "")))
}
