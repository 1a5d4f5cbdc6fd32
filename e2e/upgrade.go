package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"causeway/protocol"
)

// PutRelease puts a signed release of the agent's program into the hub's directory of
// packages, as 'make package' would make it. Key is the private key's path.
func (s *System) PutRelease(ctx context.Context, key, version, minimum string, program []byte) error {
	dir := filepath.Join(s.Hub.Dir, "packages")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f := protocol.ReleaseFile{Name: fmt.Sprintf("causeway-agent_%s_%s.bin", version, runtime.GOARCH), Program: "causeway-agent", Arch: runtime.GOARCH,
		Size: int64(len(program)), SHA256: fmt.Sprintf("%x", sha256.Sum256(program))}
	b, err := json.Marshal(protocol.Release{Version: version, Minimum: minimum, Files: []protocol.ReleaseFile{f}})
	if err != nil {
		return err
	}
	manifest := filepath.Join(dir, protocol.ReleaseName(version))
	if err := errors.Join(os.WriteFile(manifest, b, 0o644), os.WriteFile(filepath.Join(dir, f.Name), program, 0o644), os.RemoveAll(manifest+protocol.ReleaseSignature)); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "ssh-keygen", "-Y", "sign", "-q", "-f", key, "-n", protocol.ReleaseNamespace, manifest).CombinedOutput(); err != nil {
		return fmt.Errorf("sign: %w\n%s", err, out)
	}
	return os.Chmod(manifest+protocol.ReleaseSignature, 0o644)
}

// Patched is a program in which every old is new, of the same length: so another
// version or a defect takes no build.
func Patched(program []byte, old, new string) ([]byte, error) {
	if len(old) != len(new) || !bytes.Contains(program, []byte(old)) {
		return nil, fmt.Errorf("%q cannot be made %q in this program", old, new)
	}
	return bytes.ReplaceAll(program, []byte(old), []byte(new)), nil
}
