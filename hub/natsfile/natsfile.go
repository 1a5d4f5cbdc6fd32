// Package natsfile reads the files of a JetStream stream without JetStream, which
// repairs what it opens: it cuts a block at the first record that it cannot read. Here
// nothing is written.
//
// A stream's directory holds meta.inf, with its checksum in meta.sum, and blocks of records,
// msgs/1.blk and on (nats-server, server/filestore.go, msgBlock.writeMsgRecordLocked):
//
//	total length  4 bytes, little-endian; the high bit says that there are headers
//	sequence      8; the high bits mark what was erased and what stands for a deletion
//	time          8
//	subject       2 bytes of length, and the subject
//	headers       4 bytes of length, and the headers; only with the high bit above
//	message
//	checksum      8: HighwayHash-64, keyed by SHA-256 of 'STREAM-BLOCK'
package natsfile

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minio/highwayhash"
)

const (
	headerLen   = 22
	checksumLen = 8
	// maxRecord and maxBlock are far above what the server writes for a stream of ours.
	maxRecord = 32 << 20
	maxBlock  = 256 << 20

	headersBit = 1 << 31
	erasedBit  = 1 << 63
	tombBit    = 1 << 62
)

// Stream is where a stream's files lie.
type Stream struct {
	Dir  string // of the stream
	Name string
}

// At is the stream of an account of the server that keeps its files in store.
func At(store, account, name string) Stream {
	return Stream{filepath.Join(store, "jetstream", account, "streams", name), name}
}

// Record is a message as it stands in a block. Data is valid until the next record is read.
type Record struct {
	Sequence uint64
	Data     []byte
	Place
	DataAt int64 // where Data begins in the file
}

// Place is where something lies.
type Place struct {
	File   string // below the stream's directory
	Offset int64
}

func (p Place) String() string { return fmt.Sprintf("%s, byte %d", p.File, p.Offset) }

// Fault is what is wrong with a file.
type Fault struct {
	Place
	What string
	Last bool // in the newest block: what follows the fault may be a write that never ended
}

func (f *Fault) Error() string { return f.Place.String() + ": " + f.What }

// Blocks lists the names of the blocks, the oldest first. No directory: none.
func (s Stream) Blocks() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.Dir, "msgs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if _, ok := index(e.Name()); ok && e.Type().IsRegular() {
			out = append(out, e.Name())
		}
	}
	slices.SortFunc(out, func(a, b string) int {
		x, _ := index(a)
		y, _ := index(b)
		return cmp.Compare(x, y)
	})
	return out, nil
}

func index(name string) (uint32, bool) {
	digits, ok := strings.CutSuffix(name, ".blk")
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), ok && err == nil && strconv.FormatUint(n, 10) == digits
}

// Block reads a block whole.
func (s Stream) Block(name string) ([]byte, error) {
	path := filepath.Join(s.Dir, "msgs", name)
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > maxBlock {
		return nil, &Fault{Place: Place{File: "msgs/" + name}, What: fmt.Sprintf("a block of %d bytes", st.Size())}
	}
	return os.ReadFile(path)
}

// Part reads n bytes of a block.
func (s Stream) Part(p Place, n int) ([]byte, error) {
	f, err := os.Open(filepath.Join(s.Dir, p.File))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, n)
	_, err = f.ReadAt(b, p.Offset)
	return b, err
}

// Read calls each with every message, in the order of the blocks. It returns what is wrong with
// the files, one fault for each block at most, since nothing behind a fault in it can be told
// apart; and the error of each or of the system.
func (s Stream) Read(each func(Record) error) ([]*Fault, error) {
	blocks, err := s.Blocks()
	if err != nil {
		return nil, err
	}
	var faults []*Fault
	for i, name := range blocks {
		b, err := s.Block(name)
		var f *Fault
		if errors.As(err, &f) {
			faults = append(faults, f)
			continue
		}
		if err != nil {
			return faults, err
		}
		n, _ := index(name)
		f, err = records(b, s.Name, n, "msgs/"+name, each)
		if err != nil {
			return faults, err
		}
		if f != nil {
			f.Last = i == len(blocks)-1
			faults = append(faults, f)
		}
	}
	return faults, nil
}

// records reads a block.
func records(b []byte, stream string, block uint32, file string, each func(Record) error) (*Fault, error) {
	key := sha256.Sum256(fmt.Appendf(nil, "%s-%d", stream, block))
	hash, err := highwayhash.NewDigest64(key[:])
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	for at := 0; at < len(b); {
		fault := func(what string) *Fault { return &Fault{Place: Place{file, int64(at)}, What: what} }
		if len(b)-at < headerLen+checksumLen {
			return fault("the file ends within a record"), nil
		}
		head := b[at : at+headerLen]
		total, subject := le.Uint32(head), int(le.Uint16(head[20:]))
		headers := total&headersBit != 0
		n := int(total &^ uint32(headersBit))
		before := subject
		if headers {
			before += 4
		}
		switch {
		case n > maxRecord || n < headerLen+before+checksumLen:
			return fault(fmt.Sprintf("a record of %d bytes", n)), nil
		case n > len(b)-at:
			return fault("the file ends within a record"), nil
		}
		body := b[at+headerLen : at+n-checksumLen]
		hash.Reset()
		hash.Write(head[4:20])
		hash.Write(body[:subject])
		hash.Write(body[before:])
		if !bytes.Equal(hash.Sum(nil), b[at+n-checksumLen:at+n]) {
			return fault("the record's checksum is wrong"), nil
		}
		data := body[before:]
		if headers {
			h := int(le.Uint32(body[subject:]))
			if h > len(data) {
				return fault("headers longer than their record"), nil
			}
			data = data[h:]
		}
		if seq := le.Uint64(head[4:]); seq != 0 && seq&(erasedBit|tombBit) == 0 {
			if err := each(Record{seq, data, Place{file, int64(at)}, int64(at + n - checksumLen - len(data))}); err != nil {
				return nil, err
			}
		}
		at += n
	}
	return nil, nil
}

// CheckMeta says what is wrong with the files that describe the stream, which was made at created; nil: nothing.
// A server passes over a stream whose description it cannot read.
func (s Stream) CheckMeta(created time.Time) error {
	meta, err := os.ReadFile(filepath.Join(s.Dir, "meta.inf"))
	if err != nil {
		return fmt.Errorf("meta.inf: %w", err)
	}
	sum, err := os.ReadFile(filepath.Join(s.Dir, "meta.sum"))
	if err != nil {
		return fmt.Errorf("meta.sum: %w", err)
	}
	key := sha256.Sum256([]byte(s.Name))
	hash, err := highwayhash.NewDigest64(key[:])
	if err != nil {
		return err
	}
	hash.Write(meta)
	if hex.EncodeToString(hash.Sum(nil)) != string(sum) {
		return &Fault{Place: Place{File: "meta.sum"}, What: "it is not the checksum of meta.inf"}
	}
	var v struct{ Created time.Time }
	if err := json.Unmarshal(meta, &v); err != nil {
		return fmt.Errorf("meta.inf: %w", err)
	}
	if !v.Created.Equal(created) {
		return &Fault{Place: Place{File: "meta.inf"}, What: fmt.Sprintf("the stream was made at %s, not %s", v.Created.UTC().Format(time.RFC3339Nano), created.UTC().Format(time.RFC3339Nano))}
	}
	return nil
}
