package protocol

import (
	"bufio"
	"bytes"
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

// ErrFrameInvalid says that a frame is not what the reader expects.
var ErrFrameInvalid = errors.New("decode frame")

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

// maxPiece bounds the buffer of WriteMessageParts, and with it what yamux keeps for
// each session: it holds a buffer of the largest write there was.
const maxPiece = 8 << 10

// WriteMessageParts writes a message of this kind as WriteFrame does, with the
// concatenation of parts, which is JSON, for its body. Small parts are gathered,
// but the message is never held as a whole: it takes several Writes.
func WriteMessageParts(w io.Writer, kind MessageKind, parts [][]byte, limit int) error {
	head, err := json.Marshal(Message{Version, kind, json.RawMessage("0")})
	if err != nil {
		return err
	}
	head, ok := bytes.CutSuffix(head, []byte("0}"))
	if !ok {
		return fmt.Errorf("encode %s: body is not last", kind)
	}
	n := len(head) + 1
	for _, p := range parts {
		n += len(p)
	}
	if n > limit {
		return fmt.Errorf("%w: %d bytes, limit %d", ErrFrameTooLarge, n, limit)
	}
	bw := bufio.NewWriterSize(w, min(4+n, maxPiece))
	bw.Write(binary.BigEndian.AppendUint32(nil, uint32(n)))
	bw.Write(head)
	for _, p := range parts {
		bw.Write(p) // an error stays until Flush
	}
	bw.WriteByte('}')
	return bw.Flush()
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
		return fmt.Errorf("%w: %w", ErrFrameInvalid, err)
	}
	return nil
}
