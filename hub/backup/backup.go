// Package backup is the format of a hub's backup: what a restored hub needs of
// the old one but the cluster key, which is kept apart. What a file holds is
// encrypted in age's format (https://age-encryption.org/v1) around this:
//
//	frame  header, as JSON
//	frame  transaction 1, as it stands in the state log
//	…
//	frame  transaction header.last
//
// A frame is its length, 4 bytes big-endian, and so many bytes. Nothing follows
// the last one. age authenticates the whole; a file that was cut or changed does
// not decrypt. The transactions' own chain of hashes is the restorer's to check.
package backup

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
)

// Limits of what Reader takes.
const (
	Version        = 1
	maxHeader      = 16 << 10
	maxTransaction = 1 << 20
	// What age reads as a whole, of any length, before it knows what it is: its header, a line of its text armour.
	maxAgeHeader  = 64 << 10
	maxArmourLine = 1 << 10
	// maxScrypt is the largest work factor of a passphrase that is tried: 2^maxScrypt.
	maxScrypt = 20
)

// Header is the first frame.
type Header struct {
	Format  string    `json:"format"` // "causeway-backup"
	Version int       `json:"v"`
	Made    time.Time `json:"made"`
	By      string    `json:"by"`                 // version of the hub
	Last    uint64    `json:"last"`               // number of transactions
	HubKey  string    `json:"hub_key"`            // private
	AdminCA string    `json:"admin_ca,omitempty"` // PEM, with the private key; empty: the hub takes no admins from elsewhere
}

const format = "causeway-backup"

// Writer writes an archive, not encrypted.
type Writer struct {
	w    io.Writer
	left uint64
}

// NewWriter writes the header; h.Last transactions have to follow.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	h.Format, h.Version = format, Version
	b, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	return &Writer{w, h.Last}, frame(w, b)
}

// Add writes the next transaction.
func (w *Writer) Add(tx []byte) error {
	if w.left == 0 {
		return errors.New("backup: more transactions than its header says")
	}
	w.left--
	return frame(w.w, tx)
}

func frame(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

// Reader reads an archive, not encrypted.
type Reader struct {
	Header
	r    io.Reader
	left uint64
}

// NewReader reads the header.
func NewReader(r io.Reader) (*Reader, error) {
	b, err := readFrame(r, maxHeader)
	if err != nil {
		return nil, fmt.Errorf("backup: header: %w", err)
	}
	out := &Reader{r: r}
	if err := json.Unmarshal(b, &out.Header); err != nil || out.Format != format {
		return nil, errors.New("backup: this is no backup of a causeway hub")
	}
	if out.Version != Version {
		return nil, fmt.Errorf("backup: it has version %d; this causeway-hub reads version %d", out.Version, Version)
	}
	if out.Last == 0 {
		return nil, errors.New("backup: it holds no transaction")
	}
	out.left = out.Last
	return out, nil
}

// Next returns the next transaction, io.EOF after the last.
func (r *Reader) Next() ([]byte, error) {
	if r.left == 0 {
		if n, err := io.ReadFull(r.r, make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("backup: something follows the last transaction")
		}
		return nil, io.EOF
	}
	b, err := readFrame(r.r, maxTransaction)
	if err != nil {
		return nil, fmt.Errorf("backup: transaction %d of %d: %w", r.Last-r.left+1, r.Last, err)
	}
	r.left--
	return b, nil
}

// readFrame refuses a length above limit before it makes room.
func readFrame(r io.Reader, limit uint32) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, ends(err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > limit {
		return nil, fmt.Errorf("%d bytes, at least 1 and at most %d", n, limit)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, ends(err)
	}
	return b, nil
}

func ends(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the file ends early")
	}
	return err
}

// Decrypt opens age's encryption of r with a passphrase or else with identities
// as age-keygen writes them. A text armour is taken off.
func Decrypt(r io.Reader, passphrase, identities string) (io.Reader, error) {
	var ids []age.Identity
	if passphrase != "" {
		id, err := age.NewScryptIdentity(passphrase)
		if err != nil {
			return nil, errors.New("backup: the passphrase is no use")
		}
		id.SetMaxWorkFactor(maxScrypt)
		ids = []age.Identity{id}
	} else {
		var err error
		if ids, err = age.ParseIdentities(bytes.NewReader([]byte(identities))); err != nil {
			return nil, errors.New("backup: the identity file holds no age identity (AGE-SECRET-KEY-1…)") // never quotes what is in it
		}
	}
	head := make([]byte, len(armor.Header))
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, errors.New("backup: the file is empty or cannot be read")
	}
	r = io.MultiReader(bytes.NewReader(head[:n]), r)
	if string(head[:n]) == armor.Header {
		r = armor.NewReader(&lineReader{r: r})
	}
	h := &headReader{r: r, left: maxAgeHeader}
	out, err := age.Decrypt(h, ids...)
	h.past = true
	var no *age.NoIdentityMatchError
	switch {
	case errors.As(err, &no) && passphrase != "":
		return nil, errors.New("backup: wrong passphrase, or the backup is not encrypted with one")
	case errors.As(err, &no):
		return nil, errors.New("backup: none of the identities opens it")
	case err != nil:
		return nil, fmt.Errorf("backup: not encrypted as a backup is: %.200v", err) // age quotes what it read
	}
	return out, nil
}

// headReader reads no more than left bytes before it is past the header.
type headReader struct {
	r    io.Reader
	left int
	past bool
}

func (h *headReader) Read(b []byte) (int, error) {
	if h.past {
		return h.r.Read(b)
	}
	if h.left == 0 {
		return 0, fmt.Errorf("its header has more than %d bytes", maxAgeHeader)
	}
	n, err := h.r.Read(b[:min(len(b), h.left)])
	h.left -= n
	return n, err
}

// lineReader reads no line of more than maxArmourLine bytes.
type lineReader struct {
	r    io.Reader
	line int // bytes since the last one ended
}

func (l *lineReader) Read(b []byte) (int, error) {
	n, err := l.r.Read(b)
	for _, c := range b[:n] {
		if l.line++; c == '\n' {
			l.line = 0
		} else if l.line > maxArmourLine {
			return 0, fmt.Errorf("a line of it has more than %d bytes", maxArmourLine)
		}
	}
	return n, err
}
