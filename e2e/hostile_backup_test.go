package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// A backup that was cut, changed or made by somebody hostile who knows how it is encrypted, one for another, a
// file that is none: one line, and the directory is as before, whether it was not there, was empty or is a hub's.
func TestHostileBackup(t *testing.T) {
	t.Parallel()
	s, _ := newSmall(t, 0)
	for i := range 40 {
		require.NoError(t, s.CreateSite(step(t), fmt.Sprintf("s%d", i)))
	}
	b := newBackups(t, s)
	whole := b.take()
	require.NoError(t, s.Hub.Proc.Stop(step(t)))

	plain := b.open(whole)
	n := len(whole)
	bad := map[string]struct {
		file []byte
		says string
	}{
		"empty":             {nil, "the file is empty or cannot be read"},
		"text":              {[]byte("once upon a time, there was a backup\n"), "not encrypted as a backup is"},
		"cut in the header": {whole[:40], "not encrypted as a backup is"},
		"something behind":  {append(bytes.Clone(whole), 1), ""},
		"last byte":         {changed(whole, n-1), ""},
		"first byte":        {changed(whole, 0), "not encrypted as a backup is"},
		"another's":         {sealedTo(t, stranger(t), plain), "none of the identities opens it"},
		// By who knows for whom backups are encrypted.
		"no frame":        {b.seal(nil), "the file ends early"},
		"a huge header":   {b.seal([]byte{0xff, 0xff, 0xff, 0xff, '{'}), "at most"},
		"a huge frame":    {b.seal(append(bytes.Clone(header(plain)), 0x7f, 0xff, 0xff, 0xff, '{')), "at most"},
		"a frame of none": {b.seal(append(bytes.Clone(header(plain)), 0, 0, 0, 0)), "at least 1"},
		"endless":         {b.seal(frames(`{"format":"causeway-backup","v":1,"last":18446744073709551615,"hub_key":"x"}`)), "no hub key"},
		"lines":           {b.seal(frames("{\"format\":\"causeway-backup\",\"v\":1,\"last\":1,\"hub_key\":\"a\\nb\\u001b[2J\"}")), "no hub key"},
		"another format":  {b.seal(frames(`{"format":"tar","v":1,"last":1}`)), "no backup of a causeway hub"},
		"another version": {b.seal(frames(`{"format":"causeway-backup","v":2,"last":1}`)), "version 2"},
		"more than told":  {b.seal(append(bytes.Clone(plain), frames(`{}`)...)), "follows"},
		"fewer than told": {b.seal(plain[:len(plain)-1]), "ends early"},
		"header alone":    {b.seal(header(plain)), "ends early"},
		"other changes":   {b.seal(append(bytes.Clone(header(plain)), frames(`{"v":1}`, `../../../etc/passwd`)...)), "transaction 2"},
		"a changed bit":   {b.seal(changed(plain, len(plain)-40)), ""},
	}
	for _, at := range []int{1, 100, 1000, n / 2, n - 17, n - 1} {
		bad[fmt.Sprintf("cut at %d of %d", at, n)] = struct {
			file []byte
			says string
		}{whole[:at], ""}
		bad[fmt.Sprintf("byte %d of %d", at, n)] = struct {
			file []byte
			says string
		}{changed(whole, at), ""}
	}
	old := treeOf(t, s.Hub.Dir)
	require.Greater(t, len(old), 5)
	for what, c := range bad {
		for where, dir := range map[string]string{"none there": b.dir("none"), "an empty one": b.empty("empty"), "a hub's": s.Hub.Dir} {
			err := b.restore(c.file, dir)
			if where == "a hub's" && c.says != "the file is empty or cannot be read" {
				requireOneLine(t, err)
			} else {
				requireOneLine(t, err, c.says)
			}
			switch where {
			case "none there":
				require.NoDirExists(t, dir, what)
			case "an empty one":
				require.Empty(t, treeOf(t, dir), what)
			default:
				require.Equal(t, old, treeOf(t, dir), what)
			}
		}
	}
	t.Logf("%d backups onto 3 directories", len(bad))
	requireOneLine(t, b.restore(whole, s.Hub.Dir), "is not empty")
	require.Equal(t, old, treeOf(t, s.Hub.Dir))

	b.notABackup(t, whole)
	dir := b.dir("good")
	require.NoError(t, b.restore(whole, dir))
	s.Hub.Dir = dir
	require.NoError(t, s.StartHub(step(t)))
}

// backups makes backups of a hub and restores them as the hub's user.
type backups struct {
	t            *testing.T
	s            *System
	at           string // the user's own directory
	key, secrets string // files
	id           *age.X25519Identity
}

func newBackups(t *testing.T, s *System) *backups {
	at := filepath.Join(filepath.Dir(s.Hub.Dir), "backups")
	require.NoError(t, os.MkdirAll(at, 0o700))
	key, err := os.ReadFile(filepath.Join(s.Hub.Dir, "cluster.key"))
	require.NoError(t, err)
	b := &backups{t: t, s: s, at: at, key: filepath.Join(at, "cluster.key"), secrets: filepath.Join(at, "identity"), id: stranger(t)}
	b.own(at)
	b.write(b.key, key)
	b.write(b.secrets, []byte(b.id.String()+"\n"))
	return b
}

func (b *backups) own(path string) {
	b.t.Helper()
	require.NoError(b.t, os.Chown(path, int(lab.Nobody.UID), int(lab.Nobody.GID)))
}

func (b *backups) write(path string, text []byte) {
	b.t.Helper()
	require.NoError(b.t, os.WriteFile(path, text, 0o600))
	b.own(path)
}

func (b *backups) dir(name string) string { return filepath.Join(b.at, name) }

func (b *backups) empty(name string) string {
	b.t.Helper()
	require.NoError(b.t, os.MkdirAll(b.dir(name), 0o700))
	b.own(b.dir(name))
	return b.dir(name)
}

// take makes a backup.
func (b *backups) take() []byte {
	b.t.Helper()
	file := filepath.Join(b.t.TempDir(), "backup")
	_, err := b.s.CLI(step(b.t), "backup", file, "--recipient", b.id.Recipient().String())
	require.NoError(b.t, err)
	text, err := os.ReadFile(file)
	require.NoError(b.t, err)
	return text
}

// open decrypts a backup.
func (b *backups) open(file []byte) []byte {
	b.t.Helper()
	r, err := age.Decrypt(bytes.NewReader(file), b.id)
	require.NoError(b.t, err)
	text, err := io.ReadAll(r)
	require.NoError(b.t, err)
	return text
}

// seal encrypts as a backup is encrypted.
func (b *backups) seal(plain []byte) []byte { return sealedTo(b.t, b.id, plain) }

func sealedTo(t *testing.T, id *age.X25519Identity, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := age.Encrypt(&out, id.Recipient())
	require.NoError(t, err)
	_, err = w.Write(plain)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

func stranger(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	return id
}

func (b *backups) command(file, dir string) []string {
	return []string{b.s.Bin.Hub, "restore", file, "--data-dir", dir, "--cluster-key", b.key, "--identity", b.secrets}
}

// restore restores the backup of that text onto dir.
func (b *backups) restore(text []byte, dir string) error {
	b.t.Helper()
	file := b.dir("backup")
	b.write(file, text)
	_, err := b.s.Hub.Host.RunAs(step(b.t), lab.Nobody, b.command(file, dir)...)
	return err
}

// notABackup has what is no file of bytes restored, and restores onto what is no directory.
func (b *backups) notABackup(t *testing.T, whole []byte) {
	run := func(file, dir string) error {
		_, err := b.s.Hub.Host.RunAs(step(t), lab.Nobody, b.command(file, dir)...)
		return err
	}
	good := b.dir("backup")
	b.write(good, []byte("x"))
	requireOneLine(t, run(b.dir("absent"), b.dir("none")), "absent")
	requireOneLine(t, run(b.at, b.dir("none")), "backup")
	requireOneLine(t, run("/dev/zero", b.dir("none")), "backup")
	b.write(b.dir("a file"), []byte("mine\n"))
	requireOneLine(t, b.restore(whole, b.dir("a file")), "a file")
	text, err := os.ReadFile(b.dir("a file"))
	require.NoError(t, err)
	require.Equal(t, "mine\n", string(text))
	require.NoError(t, os.Symlink(b.dir("elsewhere"), b.dir("dangling")))
	requireOneLine(t, b.restore(whole, b.dir("dangling")), "dangling")
	require.NoDirExists(t, b.dir("elsewhere"))
	// A FIFO that nobody writes to waits, as reading one does, and ends by a signal.
	require.NoError(t, syscall.Mkfifo(b.dir("fifo"), 0o600))
	b.own(b.dir("fifo"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = b.s.Hub.Host.RunAs(ctx, lab.Nobody, b.command(b.dir("fifo"), b.dir("none"))...)
	require.Error(t, err)
	require.NoDirExists(t, b.dir("none"))
}

// A restore that is killed amid its work leaves what no hub starts from, which hub and restore say, with what to do.
func TestRestoreIsKilled(t *testing.T) {
	t.Parallel()
	s, _ := newSmall(t, 0)
	for i := range 40 {
		require.NoError(t, s.CreateSite(step(t), fmt.Sprintf("s%d", i)))
	}
	b := newBackups(t, s)
	whole := b.take()
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	file, dir := b.dir("backup"), b.empty("killed")
	b.write(file, whole)
	restoring := filepath.Join(dir, "restoring")
	// It may be done before it is killed: it is tried until it was not.
	require.NoError(t, lab.Wait(step(t), "a restore that is killed", func(context.Context) error {
		p, err := s.Hub.Host.Start(lab.Program{Name: "restore", User: lab.Nobody, Dir: "/", Args: b.command(file, dir)})
		if err != nil {
			return err
		}
		for p.Running() {
			if _, err := os.Stat(filepath.Join(restoring, "nats")); err == nil {
				break
			}
		}
		p.Kill()
		if _, err := os.Stat(filepath.Join(restoring, "nats")); err == nil {
			return nil
		}
		require.NoError(t, os.RemoveAll(dir))
		b.empty("killed")
		return errors.New("it was done before")
	}))
	left := treeOf(t, dir)
	s.Hub.Dir = dir
	require.Error(t, s.StartHub(step(t)))
	out := s.Hub.Proc.Output()
	requireLine(t, out[strings.LastIndex(out, "causeway-hub: "):], dir, "a restore that did not end", "rm -r "+restoring)
	requireOneLine(t, b.restore(whole, dir), dir, "a restore that did not end", "rm -r "+restoring)
	require.Equal(t, left, treeOf(t, dir))
	require.NoError(t, os.RemoveAll(restoring))
	require.NoError(t, b.restore(whole, dir))
	require.NoError(t, s.StartHub(step(t)))
}

// changed is b with one bit of another value.
func changed(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 4
	return b
}

// frames are texts as an archive has them.
func frames(texts ...string) (b []byte) {
	for _, s := range texts {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
	}
	return b
}

// header is the first frame of an archive.
func header(plain []byte) []byte { return plain[:4+binary.BigEndian.Uint32(plain)] }

// treeOf has a sum of each file below dir, with its mode.
func treeOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		sum := ""
		if fi.Mode().IsRegular() {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			h := sha256.Sum256(text)
			sum = hex.EncodeToString(h[:])
		}
		name, err := filepath.Rel(dir, path)
		out[name] = fi.Mode().String() + " " + sum
		return err
	}))
	return out
}
