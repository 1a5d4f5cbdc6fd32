package protocol

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Limits of framed JSON, checked before anything is allocated.
const (
	MaxStreamHeader = 4 << 10  // StreamHeader
	MaxToHub        = 1 << 20  // control messages from an agent
	MaxToAgent      = 16 << 20 // control messages from a hub: netmaps
)

// ErrFrameTooLarge says that a frame is longer than the reader allows. The
// stream cannot be used further.
var ErrFrameTooLarge = errors.New("frame too large")

// WriteFrame writes v as JSON behind its length, 4 bytes big endian, in one
// Write.
func WriteFrame(w io.Writer, v any, limit int) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > limit {
		return fmt.Errorf("%w: %d bytes, limit %d", ErrFrameTooLarge, len(b), limit)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))), b...))
	return err
}

// ReadFrame reads what WriteFrame wrote into v. Memory grows with what really
// arrives, not with what the length claims. It returns io.EOF only between
// frames.
func ReadFrame(r io.Reader, v any, limit int) error {
	var h [4]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return err
	}
	n := int64(binary.BigEndian.Uint32(h[:]))
	if n > int64(limit) {
		return fmt.Errorf("%w: %d bytes, limit %d", ErrFrameTooLarge, n, limit)
	}
	b, err := io.ReadAll(io.LimitReader(r, n))
	if err != nil {
		return err
	}
	if int64(len(b)) < n {
		return io.ErrUnexpectedEOF
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode frame: %w", err)
	}
	return nil
}
