package sshsig

import (
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const namespace = "causeway-test"

// Made by OpenSSH's ssh-keygen, of golden.
const (
	golden    = "hello\n"
	goldenKey = `ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINQGcr6Hp7L3910Uk6AogTdsq9/GfQvlmQ0fQBPvlqfk golden`
	goldenSig = `-----BEGIN SSH SIGNATURE-----
U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAg1AZyvoensvf3XRSToCiBN2yr38
Z9C+WZDR9AE++Wp+QAAAANY2F1c2V3YXktdGVzdAAAAAAAAAAGc2hhNTEyAAAAUwAAAAtz
c2gtZWQyNTUxOQAAAECiqarNbxSbXCLuxqD03FwxMOqVnE7sZoxk0qgAfbqyOvRQLK0Hau
moxHNUeQDj2gxHhYDI2VENq/s2BiHPY6sF
-----END SSH SIGNATURE-----`
)

func TestGolden(t *testing.T) {
	k, err := ParseKey(goldenKey)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(goldenKey, k.String()))
	by, err := Verify([]byte(golden), []byte(goldenSig), namespace, []PublicKey{{}, k})
	require.NoError(t, err)
	require.Equal(t, k, by)

	_, err = Verify([]byte(golden+"x"), []byte(goldenSig), namespace, []PublicKey{k})
	require.ErrorIs(t, err, ErrInvalid)
	_, err = Verify([]byte(golden), []byte(goldenSig), namespace, nil)
	require.ErrorIs(t, err, ErrUntrusted)
	_, err = Verify([]byte(golden), []byte(goldenSig), "git", []PublicKey{k})
	require.ErrorContains(t, err, `for "causeway-test", not for "git"`)
}

// What ssh-keygen signs is accepted, and no bit of it may be another.
func TestSSHKeygen(t *testing.T) {
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		require.NotZero(t, os.Geteuid(), "make deps installs ssh-keygen")
		t.Skip("ssh-keygen is not installed (make deps)")
	}
	dir := t.TempDir()
	key, file := filepath.Join(dir, "key"), filepath.Join(dir, "message")
	run := func(args ...string) {
		out, err := exec.CommandContext(t.Context(), "ssh-keygen", args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	run("-q", "-t", "ed25519", "-N", "", "-f", key)
	message := []byte("what is signed")
	require.NoError(t, os.WriteFile(file, message, 0o644))
	pub, err := os.ReadFile(key + ".pub")
	require.NoError(t, err)
	k, err := ParseKey(string(pub))
	require.NoError(t, err)
	for _, hash := range []string{"sha256", "sha512"} {
		os.Remove(file + ".sig")
		run("-Y", "sign", "-q", "-f", key, "-n", namespace, "-O", "hashalg="+hash, file)
		sig, err := os.ReadFile(file + ".sig")
		require.NoError(t, err)
		_, err = Verify(message, sig, namespace, []PublicKey{k})
		require.NoError(t, err)
		blob, err := unarmour(sig)
		require.NoError(t, err)
		for i := range blob {
			b := append([]byte{}, blob...)
			b[i] ^= 1
			_, err := Verify(message, armour(b), namespace, []PublicKey{k})
			require.Error(t, err, "byte %d", i)
		}
	}
}

func TestParseKeyRefuses(t *testing.T) {
	for _, line := range []string{"", "ssh-ed25519", "ssh-rsa AAAA", "ssh-ed25519 !!", "ssh-ed25519 AAAA", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIP////8="} {
		_, err := ParseKey(line)
		require.Error(t, err, line)
	}
}

// FuzzVerify: a signature comes from a hub that may be anybody's. Whatever it is, it
// is refused without more memory than its own length, unless the key signed.
func FuzzVerify(f *testing.F) {
	f.Add([]byte(goldenSig), []byte(golden))
	f.Add(armour([]byte(magic+"\x00\x00\x00\x01\xff\xff\xff\xff")), []byte{})
	k, err := ParseKey(goldenKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, sig, message []byte) {
		if _, err := Verify(message, sig, namespace, []PublicKey{k}); err == nil && string(message) != golden {
			t.Fatalf("accepted for %q", message)
		}
	})
}

func armour(b []byte) []byte {
	return []byte(begin + "\n" + base64.StdEncoding.EncodeToString(b) + "\n" + end + "\n")
}
