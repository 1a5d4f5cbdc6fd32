// Package e2e drives the real binaries in real namespaces: the harness that
// tests and demo share. A System is a hub and its nodes, started and asked as
// an operator does it, by the commands alone.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Binaries are the programs under test and the traffic tool.
type Binaries struct{ Dir, Hub, Agent, CLI, Labtool string }

// Build builds the programs into dir, static. Those that a directory named by
// CAUSEWAY_BIN holds are taken from there. The paths are readable for every
// user, the hub's included.
func Build(ctx context.Context, dir string) (Binaries, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return Binaries{}, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return Binaries{}, fmt.Errorf("open directory for all users: %w", err)
	}
	b := Binaries{Dir: dir}
	for _, p := range []struct {
		out *string
		pkg string
	}{
		{&b.Hub, "./hub/cmd/causeway-hub"},
		{&b.Agent, "./agent/cmd/causeway-agent"},
		{&b.CLI, "./hub/cmd/causeway"},
		{&b.Labtool, "./e2e/cmd/labtool"},
	} {
		*p.out = filepath.Join(dir, filepath.Base(p.pkg))
		if given := os.Getenv("CAUSEWAY_BIN"); given != "" {
			ready := filepath.Join(given, filepath.Base(p.pkg))
			if _, err := os.Stat(ready); err == nil {
				// A copy: the directory may not be open to the hub's user.
				if out, err := exec.Command("cp", ready, *p.out).CombinedOutput(); err != nil {
					return Binaries{}, fmt.Errorf("copy %s: %w: %s", ready, err, out)
				}
				continue
			}
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", *p.out, p.pkg)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return Binaries{}, fmt.Errorf("build %s: %w\n%s", p.pkg, err, out)
		}
	}
	return b, nil
}

// buildOther builds the product's programs of the source tree src into dir otherwise than Build, with these
// further flags of go build.
func buildOther(ctx context.Context, src, dir string, flags ...string) (Binaries, error) {
	b := Binaries{Dir: dir}
	for _, p := range []struct {
		out *string
		pkg string
	}{{&b.Hub, "./hub/cmd/causeway-hub"}, {&b.Agent, "./agent/cmd/causeway-agent"}, {&b.CLI, "./hub/cmd/causeway"}} {
		*p.out = filepath.Join(dir, filepath.Base(p.pkg))
		cmd := exec.CommandContext(ctx, "go", append(append([]string{"build", "-trimpath"}, flags...), "-o", *p.out, p.pkg)...)
		cmd.Dir, cmd.Env = src, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return b, fmt.Errorf("build %s: %w\n%s", p.pkg, err, out)
		}
	}
	return b, nil
}

// BuildNATSCLI builds the nats command line of module tools/nats into dir, or takes the one
// of the directory named by CAUSEWAY_BIN, and returns its path.
func BuildNATSCLI(ctx context.Context, dir string) (string, error) {
	if given := os.Getenv("CAUSEWAY_BIN"); given != "" {
		ready := filepath.Join(given, "nats")
		if _, err := os.Stat(ready); err == nil {
			return ready, nil
		}
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "nats")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", out, "github.com/nats-io/natscli/nats")
	cmd.Dir, cmd.Env = filepath.Join(root, "tools", "nats"), append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build nats: %w\n%s", err, b)
	}
	return out, nil
}

// BuildNATS builds the NATS server of this module's version into dir, as an
// operator's external one, and returns its path.
func BuildNATS(ctx context.Context, dir string) (string, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "nats-server")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", out, "github.com/nats-io/nats-server/v2")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build nats-server: %w\n%s", err, b)
	}
	return out, nil
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find module: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		return "", errors.New("not inside the module: run in the source tree")
	}
	return filepath.Dir(mod), nil
}
