package protocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, WriteFrame(&b, StreamHeader{Version: 1, Kind: StreamControl}, MaxStreamHeader))
	require.NoError(t, WriteFrame(&b, StreamHeader{Version: 1, Kind: StreamDebug}, MaxStreamHeader))
	require.Equal(t, "\x00\x00\x00\x18"+`{"v":1,"kind":"control"}`, string(b.Bytes()[:28]))
	var h StreamHeader
	require.NoError(t, ReadFrame(&b, &h, MaxStreamHeader))
	require.Equal(t, StreamControl, h.Kind)
	require.NoError(t, ReadFrame(&b, &h, MaxStreamHeader))
	require.Equal(t, StreamDebug, h.Kind)
	require.Equal(t, io.EOF, ReadFrame(&b, &h, MaxStreamHeader))

	require.ErrorIs(t, WriteFrame(&b, strings.Repeat("x", 100), 50), ErrFrameTooLarge)
	require.ErrorIs(t, ReadFrame(strings.NewReader("\xff\xff\xff\xff{}"), &h, MaxToAgent), ErrFrameTooLarge)
	require.ErrorIs(t, ReadFrame(strings.NewReader("\x00\x00\x00\x05{}"), &h, MaxToAgent), io.ErrUnexpectedEOF)
	require.ErrorIs(t, ReadFrame(strings.NewReader("\x00\x00"), &h, MaxToAgent), io.ErrUnexpectedEOF)
}

// A length that nothing follows costs the reader no memory.
func TestFrameLengthAllocatesNothing(t *testing.T) {
	var before, after runtime.MemStats
	claim := string(binary.BigEndian.AppendUint32(nil, MaxToAgent))
	runtime.ReadMemStats(&before)
	var h StreamHeader
	require.ErrorIs(t, ReadFrame(strings.NewReader(claim+"{"), &h, MaxToAgent), io.ErrUnexpectedEOF)
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<10))
}

// FuzzReadFrame: an agent writes to the hub, or a hub taken over writes to
// agents, whatever it likes. No frame may crash the reader, and none may hold
// more than the limit.
func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x18" + `{"v":1,"kind":"control"}`))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Add([]byte("\x00\x00\x00\x02[]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 4096
		var m Message
		err := ReadFrame(bytes.NewReader(b), &m, limit)
		if err != nil {
			return
		}
		if n := binary.BigEndian.Uint32(b); n > limit {
			t.Fatalf("a frame of %d bytes passed", n)
		}
		var w bytes.Buffer
		if err := WriteFrame(&w, m, 2*limit); err != nil && !errors.Is(err, ErrFrameTooLarge) {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		for _, v := range []any{new(Hello), new(Status), new(Netmap), new(NetmapAck), new(Welcome)} {
			_ = m.Decode(v)
		}
	})
}

// A message in parts is the same on the wire as one in a piece, however it is cut.
func TestMessageParts(t *testing.T) {
	body := []byte(`{"epoch":1,"peers":["` + strings.Repeat("x", 100_000) + `"]}`)
	var whole bytes.Buffer
	require.NoError(t, WriteFrame(&whole, Message{Version, KindNetmap, body}, MaxToAgent))
	for _, cut := range []int{0, 1, 50, maxPiece, len(body)} {
		var w bytes.Buffer
		require.NoError(t, WriteMessageParts(&w, KindNetmap, [][]byte{body[:cut], nil, body[cut:]}, MaxToAgent))
		require.Equal(t, whole.Bytes(), w.Bytes())
	}
	require.ErrorIs(t, WriteMessageParts(io.Discard, KindNetmap, [][]byte{body}, len(body)), ErrFrameTooLarge)
}
