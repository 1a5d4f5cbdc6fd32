package stream

import (
	"bytes"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/protocol"
)

// never is a connection of which nobody knows whether more is there.
type never struct{}

func (never) wholeRecord() bool { return false }

// pieces hands out what it has in pieces of some size.
type pieces struct {
	b []byte
	n int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.n)], p.b)
	p.b = p.b[n:]
	return n, nil
}

func TestHeaderBytes(t *testing.T) {
	require.Equal(t, []byte{0x82, 12, 0, 5}, appendRunHeader(nil, 10, 5, false))
	require.Equal(t, []byte{0x82, 0x80 | 12, 0, 0, 0, 0, 0, 5}, appendRunHeader(nil, 10, 5, true))
	require.Equal(t, []byte{0x82, 126, 0x05, 0x7a, 0x05, 0x78}, appendRunHeader(nil, 1400, 1400, false))
	require.Len(t, appendRunHeader(nil, maxRun, 1400, true), maxHeader)
}

// What was queued comes out as it went in, however the connection cuts it.
func TestRunsSurviveAnyCut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		masked := rapid.Bool().Draw(t, "masked")
		var wire []byte
		var want [][]byte
		var segments []int
		for range rapid.IntRange(1, 20).Draw(t, "runs") {
			segment := rapid.IntRange(1, 2000).Draw(t, "segment")
			n := rapid.IntRange(segment, min(segment*maxSegments, maxRun)).Draw(t, "length")
			b := bytes.Repeat([]byte{byte(len(want) + 1)}, n)
			h := appendRunHeader(nil, n, segment, masked)
			if masked && rapid.Bool().Draw(t, "rewritten") { // by something between, with a mask of its own
				key := [4]byte{1, 2, 3, 4}
				copy(h[len(h)-6:], key[:])
				p := append(append([]byte{}, h[len(h)-2:]...), b...)
				(&header{mask: key}).unmask(p)
				wire = append(append(wire, h[:len(h)-2]...), p...)
			} else {
				wire = append(append(wire, h...), b...)
			}
			want, segments = append(want, b), append(segments, segment)
		}
		r := reader{masked: masked, limit: maxRun, from: protocol.StreamAddr(3), buf: make([]byte, 0, smallBuffer)}
		from := &pieces{wire, rapid.IntRange(1, 70000).Draw(t, "piece")}
		i := 0
		for {
			messages, err := r.next(from, never{}, nil)
			if err != nil {
				require.ErrorIs(t, err, errEnded)
				break
			}
			for _, m := range messages {
				require.Equal(t, want[i], m.Data)
				require.Equal(t, segments[i], m.Segment)
				require.Equal(t, protocol.StreamAddr(3), m.From)
				i++
			}
		}
		require.Equal(t, len(want), i)
	})
}

// FuzzReader: whoever reaches the hub's HTTPS port chooses these bytes, before
// it has proven anything (limit) and after. No length may make the reader hold
// more than its buffer; what it hands on has the shape that it says.
func FuzzReader(f *testing.F) {
	f.Add(append(appendRunHeader(nil, 10, 5, true), make([]byte, 10)...), true, false, uint16(3))
	f.Add(append(appendRunHeader(nil, 1400, 1400, false), make([]byte, 1400)...), false, true, uint16(100))
	f.Add([]byte{0x89, 0x83, 1, 2, 3, 4, 'a', 'b', 'c', 0x88, 0x80, 0, 0, 0, 0}, true, true, uint16(1))
	f.Add([]byte{0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, true, true, uint16(1))
	f.Fuzz(func(t *testing.T, b []byte, masked, bound bool, piece uint16) {
		limit, most := unboundLimit, smallBuffer
		if bound {
			limit, most = maxRun, bigBuffer
		}
		r := reader{masked: masked, limit: limit, buf: make([]byte, 0, smallBuffer)}
		from := &pieces{b, max(int(piece), 1)}
		total := 0
		for {
			messages, err := r.next(from, never{}, func(op byte, payload []byte) error {
				require.LessOrEqual(t, len(payload), maxTiny)
				return nil
			})
			require.LessOrEqual(t, cap(r.buf), most)
			if err != nil {
				break
			}
			require.NotEmpty(t, messages)
			for _, m := range messages {
				total += len(m.Data)
				require.NotEmpty(t, m.Data)
				require.LessOrEqual(t, len(m.Data), limit)
				require.Positive(t, m.Segment)
				require.LessOrEqual(t, m.Segment, len(m.Data))
				require.LessOrEqual(t, (len(m.Data)+m.Segment-1)/m.Segment, maxSegments)
			}
		}
		require.LessOrEqual(t, total, len(b))
	})
}
