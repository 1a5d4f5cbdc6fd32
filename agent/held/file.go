package held

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"

	"causeway/internal/durable"
	"causeway/protocol"
)

// fileVersion is that of the file.
const fileVersion = 1

// maxFile bounds what is read: a full book is a third of it.
const maxFile = 8 << 20

// file is {"v":1,"sum":"SHA-256 of book","book":{…}}.
type file struct {
	Version int             `json:"v"`
	Sum     string          `json:"sum"`
	Book    json.RawMessage `json:"book"`
}

// Copy is the second copy of a book in path, read where the first one is damaged.
func Copy(path string) string { return path + ".copy" }

// Load reads the book in path, or its copy where that is damaged or missing. good says
// that one of them could be read; the error says what is damaged, also where the copy
// was good.
func Load(path string) (b Book, good bool, err error) {
	var errs []error
	for _, p := range []string{path, Copy(path)} {
		b, e := read(p)
		switch {
		case e == nil:
			return b, true, errors.Join(errs...)
		case errors.Is(e, fs.ErrNotExist):
		default:
			errs = append(errs, e)
		}
	}
	return Book{}, false, errors.Join(errs...)
}

func read(path string) (Book, error) {
	b, err := durable.Read(path, maxFile)
	if err != nil {
		return Book{}, fmt.Errorf("read held ranges: %w", err)
	}
	book, err := Decode(b)
	if err != nil {
		return Book{}, fmt.Errorf("read held ranges: %s: %w", path, err)
	}
	return book, nil
}

// Decode reads a file's content. Nothing of it is believed that no agent writes.
func Decode(b []byte) (Book, error) {
	if len(b) > maxFile {
		return Book{}, errors.New("it is longer than any agent writes")
	}
	var f file
	if err := json.Unmarshal(b, &f); err != nil {
		return Book{}, fmt.Errorf("it is damaged: %w", err)
	}
	if f.Version != fileVersion {
		return Book{}, fmt.Errorf("its version %d is not %d, which this build reads", f.Version, fileVersion)
	}
	if f.Sum != sum(f.Book) {
		return Book{}, errors.New("it is damaged: its checksum is another")
	}
	var book Book
	if err := json.Unmarshal(f.Book, &book); err != nil {
		return Book{}, fmt.Errorf("it is damaged: %w", err)
	}
	if len(book.Ranges) > MaxRanges || len(book.Exceptions) > MaxExceptions {
		return Book{}, errors.New("it has more than any agent keeps")
	}
	for i, r := range book.Ranges {
		if err := protocol.CheckPrefix(r.Prefix); err != nil {
			return Book{}, fmt.Errorf("range %s %w", r.Prefix, err)
		}
		if r.Prefix != r.Prefix.Masked() || i > 0 && book.Ranges[i-1].Prefix.Compare(r.Prefix) >= 0 {
			return Book{}, errors.New("its ranges are not in order")
		}
	}
	for _, e := range book.Exceptions {
		if !e.Addr.IsValid() || e.Addr.Zone() != "" || protocol.CheckPrefix(netip.PrefixFrom(e.Addr, e.Addr.BitLen())) != nil {
			return Book{}, errors.New("an exception is no plain address")
		}
	}
	if len(book.Exceptions) == 0 {
		book.Exceptions = nil
	}
	return book, nil
}

// Encode is the content of a file.
func (b Book) Encode() ([]byte, error) {
	b.Ranges = slices.Concat([]Range{}, b.Ranges)
	body, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("encode held ranges: %w", err)
	}
	out, err := json.Marshal(file{fileVersion, sum(body), body})
	if err != nil {
		return nil, fmt.Errorf("encode held ranges: %w", err)
	}
	return append(out, '\n'), nil
}

func sum(b []byte) string {
	var c bytes.Buffer
	if json.Compact(&c, b) != nil {
		return ""
	}
	h := sha256.Sum256(c.Bytes())
	return hex.EncodeToString(h[:])
}

// Save replaces path and its copy, both durable when it returns.
func Save(path string, b Book) error {
	text, err := b.Encode()
	if err != nil {
		return err
	}
	for _, p := range []string{path, Copy(path)} {
		if err := durable.Replace(p, text); err != nil {
			return fmt.Errorf("write held ranges: %w; check that the directory is writable and the disk not full", err)
		}
	}
	return nil
}

// Remove takes both away.
func Remove(path string) error {
	var errs []error
	for _, p := range []string{path, Copy(path)} {
		for _, x := range []string{durable.Bad(p), durable.Temp(p), p} {
			if err := os.RemoveAll(x); err != nil { // somebody may have made it a directory
				errs = append(errs, fmt.Errorf("remove held ranges: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}
