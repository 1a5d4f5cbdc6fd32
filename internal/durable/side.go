package durable

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"

	"golang.org/x/sys/unix"

	"causeway/internal/shortage"
)

// Side is a file that a service keeps beside what it cannot do without: one JSON
// object, with a checksum as its last member. Older versions wrote none, and skip it
// when they read. Where one does not read, nothing else has to stop: Load says so
// (Damage) and takes the copy, if there is one; Set aside, it is made anew by the next
// Save and kept for an engineer under one more name.
type Side struct {
	Path string
	Max  int64 // bytes that are read; longer is damaged
	// Twice keeps a second file of the same content (Copy): for what is not known
	// from elsewhere. It holds nothing that the first one does not, no older key either.
	Twice bool
	// Numbered is for objects whose members are keyed by numbers from 1 on: the checksum is
	// in a member of number 0.
	Numbered bool
}

// Copy is where the second file of path is.
func Copy(path string) string { return path + ".copy" }

// Bad is where a damaged file of path is kept: the last one.
func Bad(path string) string { return path + ".bad" }

// Damage says that a file was there and is of no use.
type Damage struct {
	Path   string
	Err    error
	Copied bool // the copy was read in its place, and is in its place by now
}

func (d *Damage) Error() string {
	what := "is damaged"
	if errors.Is(d.Err, fs.ErrPermission) { // it may well be good
		what = "cannot be read"
	}
	if d.Copied {
		return fmt.Sprintf("%s %s (%s); its copy was taken, the file itself is kept as %s", d.Path, what, reason(d.Err), filepath.Base(Bad(d.Path)))
	}
	return fmt.Sprintf("%s %s (%s)", d.Path, what, reason(d.Err))
}

func (d *Damage) Unwrap() error { return d.Err }

// reason strips the path, which is named already.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// Load reads the file into v, a pointer, and has check look at it; nil accepts all that
// v takes. fs.ErrNotExist says that there is none: what somebody removed stays removed,
// copy or not. After a *Damage that is Copied v is what the copy says; after another
// error it is zero, and the file still in its place. A shortage (of descriptors, of
// memory) is no Damage.
func (s Side) Load(v any, check func() error) error {
	err := s.read(s.Path, v, check)
	if err == nil || shortage.Is(err) || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	d := &Damage{Path: s.Path, Err: err}
	if !s.Twice {
		return d
	}
	if err := s.read(Copy(s.Path), v, check); shortage.Is(err) {
		return err
	} else if err != nil {
		return d
	}
	d.Copied = true
	if err := s.putBack(); err != nil {
		return errors.Join(d, err)
	}
	return d
}

// putBack puts the copy in place of the file, which is kept as Bad. At no time is there no
// file.
func (s Side) putBack() error {
	b, err := Read(Copy(s.Path), s.Max)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(Bad(s.Path)); err != nil {
		return err
	}
	if os.Link(s.Path, Bad(s.Path)) != nil { // a directory takes none
		if err := os.Rename(s.Path, Bad(s.Path)); err != nil {
			return err
		}
	}
	return WriteFile(s.Path, b)
}

// Peek is Load for who may not change anything: a good copy is as good as the file.
func (s Side) Peek(v any, check func() error) error {
	err := s.read(s.Path, v, check)
	if err == nil || !s.Twice || shortage.Is(err) || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if s.read(Copy(s.Path), v, check) == nil {
		return nil
	}
	return &Damage{Path: s.Path, Err: err}
}

func (s Side) read(path string, v any, check func() error) error {
	zero := func() { reflect.ValueOf(v).Elem().SetZero() }
	zero() // of a file that did not read
	b, err := Read(path, s.Max)
	if err == nil && !bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) { // null would be taken for nothing
		err = errors.New("it holds no JSON object")
	}
	if err == nil {
		b, err = s.opened(b)
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err == nil && check != nil {
		err = check()
	}
	if err != nil {
		zero()
	}
	return err
}

// Save replaces the file, and then its copy; durable when it returns.
func (s Side) Save(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return s.Write(b)
}

// Write is Save for an object that is JSON by now.
func (s Side) Write(object []byte) error {
	b, err := s.sealed(object)
	if err != nil {
		return err
	}
	if err := Replace(s.Path, b); err != nil || !s.Twice {
		return err
	}
	return Replace(Copy(s.Path), b)
}

// Replace is WriteFile, also where somebody made a directory of that name.
func Replace(path string, b []byte) error {
	err := WriteFile(path, b)
	if st, e := os.Lstat(path); err != nil && e == nil && st.IsDir() {
		if e := SetAside(path); e != nil {
			return errors.Join(err, e)
		}
		return WriteFile(path, b)
	}
	return err
}

// Remove removes the file, all that lies beside it, and last the file itself: what a
// crash leaves of it is not taken up from a copy.
func (s Side) Remove() error {
	for _, path := range []string{Bad(s.Path), Bad(Copy(s.Path)), Temp(Copy(s.Path)), Copy(s.Path), Temp(s.Path), s.Path} {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// SetAside keeps the file for an engineer as Bad, and makes room for a new one.
func (s Side) SetAside() error {
	if err := SetAside(s.Path); err != nil {
		return err
	}
	return os.RemoveAll(Copy(s.Path))
}

// SetAside moves what is at path, whatever it is, to Bad(path), in place of what is there.
func SetAside(path string) error {
	if _, err := os.Lstat(path); err != nil {
		return err
	}
	if err := os.RemoveAll(Bad(path)); err != nil {
		return err
	}
	if err := os.Rename(path, Bad(path)); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Open opens a regular file to read it. It does not wait for anything (a FIFO, a
// device) but, for two seconds, for a descriptor, and follows no symbolic link at path; root takes no hard link to another
// user's file in a directory of a user's.
func Open(path string) (*os.File, error) {
	var f *os.File
	err := shortage.Retry(func() (err error) {
		f, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_NOCTTY, 0)
		return err
	})
	if errors.Is(err, unix.ELOOP) {
		return nil, errors.New("it is a symbolic link")
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("it is no file but %s", kind(st.Mode()))
	}
	if owner, theirs := ownedByOther(filepath.Dir(path)); err == nil && theirs && linked(st, owner) {
		err = errLinked
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Read reads what Open opens, at most max bytes.
func Read(path string, max int64) ([]byte, error) {
	f, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("it has more than %d bytes", max)
	}
	return b, err
}

func kind(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return "a file"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case m&fs.ModeDevice != 0:
		return "a device"
	}
	return "a " + m.Type().String()
}

// The checksum's member, from the comma on: what lies before is summed.
const (
	sumHead, sumTail           = "\n  \"sum\": \"", "\"\n}\n"
	sumHeadNumber, sumTailZero = "\n  \"0\": {\"sum\": \"", "\"}\n}\n"
)

func (s Side) frame() (head, tail string) {
	if s.Numbered {
		return sumHeadNumber, sumTailZero
	}
	return sumHead, sumTail
}

func (s Side) sealed(object []byte) ([]byte, error) {
	body, ok := bytes.CutSuffix(bytes.TrimSpace(object), []byte("}"))
	if !ok || !bytes.HasPrefix(body, []byte("{")) {
		return nil, errors.New("what is to be kept is no object")
	}
	body = bytes.TrimSpace(body)
	sum := sha256.Sum256(body)
	head, tail := s.frame()
	var b bytes.Buffer
	b.Write(body)
	if len(body) > 1 {
		b.WriteByte(',')
	}
	b.WriteString(head + hex.EncodeToString(sum[:]) + tail)
	return b.Bytes(), nil
}

var errSum = errors.New("its checksum is wrong")

// opened checks the checksum, if there is one, and takes it out.
func (s Side) opened(b []byte) ([]byte, error) {
	head, tail := s.frame()
	n := len(head) + 2*sha256.Size + len(tail)
	if len(b) < n || !bytes.HasPrefix(b[len(b)-n:], []byte(head)) || !bytes.HasSuffix(b, []byte(tail)) {
		return b, nil // of an older version, or of somebody's hand
	}
	body := bytes.TrimSuffix(b[:len(b)-n], []byte(","))
	sum := sha256.Sum256(body)
	if hex.EncodeToString(sum[:]) != string(b[len(b)-n+len(head):len(b)-len(tail)]) {
		return nil, errSum
	}
	return append(bytes.Clone(body), '}'), nil
}
