package protocol

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func testProbeKeys(t testing.TB) (a, b ProbeKeys) {
	t.Helper()
	ka, kb := WireGuardPrivateKey{8, 1, 31: 64}, WireGuardPrivateKey{16, 2, 31: 64}
	a, err := NewProbeKeys(ka, kb.Public())
	require.NoError(t, err)
	b, err = NewProbeKeys(kb, ka.Public())
	require.NoError(t, err)
	return a, b
}

func fullProbe() Probe {
	return Probe{
		Number: 0x010203, Kind: ProbeConfirm, Flags: ProbeActive, From: 0x040506, To: 0x070809, KeyEpoch: 0x0a0b0c0d,
		PathID: 0x0e0f, Padding: 4, Boot: BootID{1, 2, 3, 4, 5, 6, 7, 8}, Nonce: 0x1112131415161718, Counter: 0x2122232425262728,
		Stamp: 0x3132333435363738, Cookie: [16]byte{0x41, 15: 0x4f}, Observed: netip.MustParseAddrPort("192.0.2.1:51820"),
	}
}

// The bytes are a contract with every other version of the product.
const goldenProbe = "50010203" + "01050100" + "00040506" + "00070809" + "0a0b0c0d" + "0e0f0004" +
	"0102030405060708" + "1112131415161718" + "2122232425262728" + "3132333435363738" +
	"4100000000000000000000000000004f" + "00000000000000000000ffffc0000201" + "ca6c000000000000" +
	"e0062f386067641abdb92656a603550c" + "00000000"

func TestProbeGolden(t *testing.T) {
	a, b := testProbeKeys(t)
	enc := fullProbe().Append(nil, &a.Send)
	require.Equal(t, goldenProbe, hex.EncodeToString(enc))
	p, err := ParseProbe(enc)
	require.NoError(t, err)
	require.Equal(t, fullProbe(), p)
	require.True(t, b.Receive.Verify(enc))
	require.False(t, b.Send.Verify(enc), "the other direction has another key")

	for i := range enc[:ProbeSize] {
		c := bytes.Clone(enc)
		c[i] ^= 1
		// The relay rewrites the number; everything else is covered.
		require.Equal(t, i >= 1 && i <= 3, b.Receive.Verify(c), "byte %d", i)
	}
}

func TestProbeRefused(t *testing.T) {
	a, _ := testProbeKeys(t)
	good := fullProbe().Append(nil, &a.Send)
	for name, change := range map[string]func([]byte) []byte{
		"empty":          func(b []byte) []byte { return nil },
		"short":          func(b []byte) []byte { return b[:ProbeSize-1] },
		"cut padding":    func(b []byte) []byte { return b[:ProbeSize] },
		"longer":         func(b []byte) []byte { return append(b, 0) },
		"huge":           func(b []byte) []byte { return make([]byte, 65535) },
		"type":           func(b []byte) []byte { b[0] = 4; return b },
		"version":        func(b []byte) []byte { b[4] = 2; return b },
		"kind 0":         func(b []byte) []byte { b[5] = 0; return b },
		"kind 7":         func(b []byte) []byte { b[5] = 7; return b },
		"reserved":       func(b []byte) []byte { b[7] = 1; return b },
		"from 0":         func(b []byte) []byte { copy(b[8:], "\x00\x00\x00\x00"); return b },
		"from too large": func(b []byte) []byte { b[8] = 1; return b },
		"to too large":   func(b []byte) []byte { b[12] = 1; return b },
		"no port":        func(b []byte) []byte { b[88], b[89] = 0, 0; return b },
		"no address":     func(b []byte) []byte { clear(b[72:88]); return b },
		"tail":           func(b []byte) []byte { b[95] = 1; return b },
		"padding bytes":  func(b []byte) []byte { b[ProbeSize] = 1; return b },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseProbe(change(bytes.Clone(good)))
			require.ErrorIs(t, err, ErrMalformedProbe)
		})
	}
}

// Anybody on the Internet can send any bytes to a tunnel's socket, and decoding
// comes before the MAC is looked at. It must not panic, not read beyond the
// datagram, and hold to one encoding for one probe: what parses comes out of
// Append byte for byte, but for the MAC.
func FuzzParseProbe(f *testing.F) {
	a, b := testProbeKeys(f)
	f.Add(fullProbe().Append(nil, &a.Send))
	f.Add(Probe{Kind: ProbeQuestion, From: 1, To: 2}.Append(nil, &a.Send))
	f.Add(Probe{Kind: ProbeAnswer, From: 1, To: 2, Observed: netip.MustParseAddrPort("[2001:db8::1]:1")}.Append(nil, &a.Send))
	f.Add(make([]byte, ProbeSize))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParseProbe(data)
		if err != nil {
			return
		}
		enc := p.Append(nil, &a.Send)
		require.Equal(t, data[:probeMAC], enc[:probeMAC])
		require.Equal(t, len(data), len(enc))
		require.True(t, b.Receive.Verify(enc))
		q, err := ParseProbe(enc)
		require.NoError(t, err)
		require.Equal(t, p, q)
	})
}

func TestClassifyMessage(t *testing.T) {
	m := func(first byte, n int) []byte { return append([]byte{first}, make([]byte, n-1)...) }
	for _, c := range []struct {
		b    []byte
		want MessageType
	}{
		{nil, MessageUnknown}, {m(4, 3), MessageUnknown}, {m(4, 31), MessageUnknown}, {m(4, 32), MessageTransport},
		{m(4, 1452), MessageTransport}, {m(1, 148), MessageInitiation}, {m(1, 149), MessageUnknown}, {m(2, 92), MessageResponse},
		{m(3, 64), MessageCookie}, {m(0, 148), MessageUnknown}, {m(5, 148), MessageUnknown},
		{m(0x50, ProbeSize), MessageProbe}, {m(0x50, ProbeSize-1), MessageUnknown},
	} {
		require.Equal(t, c.want, ClassifyMessage(c.b))
	}
	b := m(4, 32)
	SetMessageNumber(b, 0xabcdef)
	require.Equal(t, []byte{4, 0xab, 0xcd, 0xef, 0}, b[:5])
	require.EqualValues(t, 0xabcdef, MessageNumber(b))
	SetMessageNumber(b, 0)
	require.Equal(t, m(4, 32), b)
}

// Counts ride where stamp and cookie are in other kinds, and are there only if the flag says so.
func TestProbeCounts(t *testing.T) {
	a, b := testProbeKeys(t)
	p := fullProbe()
	p.Kind, p.Flags, p.Stamp, p.Cookie = ProbeAnswer, ProbeCounts|ProbeOverrun, 0, [16]byte{}
	p.Counts = PathCounts{Received: DataCounts{1, 2, 3, CountMask}, Sent: DataCounts{0x040506, 5, 6, 7}}
	enc := p.Append(nil, &a.Send)
	require.Equal(t, "000001"+"000002"+"000003"+"ffffff"+"040506"+"000005"+"000006"+"000007", hex.EncodeToString(enc[48:72]))
	require.True(t, b.Receive.Verify(enc))
	got, err := ParseProbe(enc)
	require.NoError(t, err)
	require.Equal(t, p, got)
	enc[51] ^= 1
	require.False(t, b.Receive.Verify(enc), "counts are authenticated")

	p = fullProbe() // a confirmation has none, whatever its flags say
	p.Flags |= ProbeCounts
	got, err = ParseProbe(p.Append(nil, &a.Send))
	require.NoError(t, err)
	require.Equal(t, p, got)
}
