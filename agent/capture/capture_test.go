package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"
)

// holds is what a filter means, told without BPF: a load behind the end refuses the packet,
// as the kernel does.
func holds(e expr, p []byte) (ok, inside bool) {
	switch e.op {
	case '!':
		ok, inside = holds(e.kids[0], p)
		return !ok, inside
	case '&', '|':
		for _, k := range e.kids {
			if ok, inside := holds(k, p); !inside || ok == (e.op == '|') {
				return ok, inside
			}
		}
		return e.op == '&', true
	}
	off := int(e.off)
	if e.indirect {
		if len(p) == 0 {
			return false, false
		}
		off += int(p[0]&0xf) * 4
	}
	if off+e.size > len(p) {
		return false, false
	}
	var v uint32
	for _, b := range p[off : off+e.size] {
		v = v<<8 | uint32(b)
	}
	return v&e.mask == e.val, true
}

func run(t testing.TB, e expr, p []byte) bool {
	raw, err := program(e, 1)
	require.NoError(t, err)
	code, ok := bpf.Disassemble(raw)
	require.True(t, ok)
	vm, err := bpf.NewVM(code)
	require.NoError(t, err)
	n, err := vm.Run(p)
	require.NoError(t, err)
	return n > 0
}

func packet(t testing.TB, l ...gopacket.SerializableLayer) []byte {
	b := gopacket.NewSerializeBuffer()
	require.NoError(t, gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true}, append(l, gopacket.Payload("SECRET"))...))
	return b.Bytes()
}

func packets(t testing.TB) map[string][]byte {
	v4 := func(p layers.IPProtocol) *layers.IPv4 {
		return &layers.IPv4{Version: 4, TTL: 64, Protocol: p, SrcIP: net.ParseIP("10.1.1.11"), DstIP: net.ParseIP("10.2.1.11"), Options: []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}}
	}
	v6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: net.ParseIP("fd10:1:1::11"), DstIP: net.ParseIP("fd10:2:1::11")}
	later := v4(layers.IPProtocolTCP)
	later.FragOffset = 100
	return map[string][]byte{
		"tcp":      packet(t, v4(layers.IPProtocolTCP), &layers.TCP{SrcPort: 40000, DstPort: 443, DataOffset: 5}),
		"udp6":     packet(t, v6, &layers.UDP{SrcPort: 53, DstPort: 40000}),
		"icmp":     packet(t, v4(layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: 0x0800}),
		"fragment": packet(t, later, &layers.TCP{SrcPort: 40000, DstPort: 443, DataOffset: 5}),
	}
}

// What filters let through, by the BPF that the kernel gets.
func TestFilter(t *testing.T) {
	all := packets(t)
	for text, want := range map[string]string{
		"":                               "fragment icmp tcp udp6",
		"tcp":                            "fragment tcp",
		"icmp or ip6":                    "icmp udp6",
		"port 443":                       "tcp",
		"tcp dst port 443":               "tcp",
		"src port 443":                   "",
		"udp port 53":                    "udp6",
		"tcp port 53":                    "",
		"host 10.1.1.11":                 "fragment icmp tcp",
		"dst host 10.1.1.11":             "",
		"src net fd10:1::/32":            "udp6",
		"net 10.2.0.0/16 and not icmp":   "fragment tcp",
		"not (tcp or icmp)":              "udp6",
		"host fd10:2:1::11 and port 53":  "udp6",
		"proto 1":                        "icmp",
		"net 0.0.0.0/0":                  "fragment icmp tcp",
		"icmp or tcp and port 443":       "icmp tcp",
		"host ::ffff:10.1.1.11 and icmp": "icmp",
	} {
		e, err := parse(text)
		require.NoError(t, err, text)
		var got []string
		for _, name := range []string{"fragment", "icmp", "tcp", "udp6"} {
			if run(t, e, all[name]) {
				got = append(got, name)
			}
		}
		require.Equal(t, want, strings.Join(got, " "), text)
	}
	for text, want := range map[string]string{
		"port":                       "no port",
		"port 70000":                 "no port",
		"host nowhere":               "no address",
		"host fe80::1%eth0":          "no address",
		"src tcp":                    "not expected",
		"tcp tcp":                    "not expected",
		"(tcp":                       "a ) is missing",
		"tcp or":                     "the end",
		"vlan 3":                     "not expected",
		strings.Repeat("(", 200):     "deep",
		strings.Repeat("not ", 100):  "deep",
		strings.Repeat("a", 600):     "longer",
		strings.Repeat("ip or ", 40): "conditions",
		"udp host 10.0.0.1":          "not expected",
		"net 10.0.0.0":               "no address or range",
		"host 10.0.0.0/8":            "no address",
		"proto 300":                  "no protocol",
		"\x1b[2J":                    "not expected",
		"tcp and src dst port 3":     "not expected",
		"host 10.0.0.1 port 443":     "not expected",
		"net ::ffff:10.0.0.0/100":    "no address or range",
		"not":                        "the end",
	} {
		_, err := parse(text)
		require.ErrorContains(t, err, want, text)
		require.NotContains(t, err.Error(), "\x1b")
	}
}

// Whatever an operator, or who has his credentials, writes: it is refused in a line, or its
// BPF loads, ends and means what the text says, for any packet.
func FuzzFilter(f *testing.F) {
	for _, p := range packets(f) {
		f.Add("tcp port 443 or not host 10.1.1.11 and (icmp or net fd00::/8)", p)
	}
	f.Add("((((not ip))))", []byte{0x45})
	f.Fuzz(func(t *testing.T, text string, p []byte) {
		e, err := parse(text)
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		raw, err := program(e, 1)
		require.NoError(t, err)
		require.Less(t, len(raw), 4096, "the kernel's bound")
		if len(p) == 0 {
			return
		}
		want, inside := holds(e, p)
		require.Equal(t, want && inside, run(t, e, p), text)
	})
}

// No payload is left of what is cut.
func TestHeaders(t *testing.T) {
	for name, p := range packets(t) {
		n := headers(p)
		if name == "fragment" {
			require.Equal(t, 24, n)
			continue
		}
		require.Equal(t, "SECRET", string(p[n:]), name)
	}
	frag6 := append([]byte{0x60, 0, 0, 0, 0, 16, 44, 64}, make([]byte, 32)...)
	frag6 = append(frag6, 17, 0, 0x01, 0, 0, 0, 0, 1)
	require.Equal(t, 48, headers(append(frag6, "SECRET"...)))
	require.Zero(t, headers([]byte("SECRET")))
	f := func(p []byte) { require.LessOrEqual(t, headers(p), len(p)) }
	for i := range 200 { // cut anywhere, nothing is read behind the end
		for _, p := range packets(t) {
			f(p[:min(i, len(p))])
		}
	}
}

// A real capture, read back by another implementation.
func TestCapture(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root: captures")
		}
		t.Skip("needs root: captures")
	}
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer c.Close()
	port := uint16(c.LocalAddr().(*net.UDPAddr).Port)
	other := netip.MustParseAddr("127.0.0.9")
	for _, payload := range []bool{false, true} {
		flushed := make(chan struct{}, 64)
		cfg := Config{Interface: "lo", Filter: "udp port " + c.LocalAddr().(*net.UDPAddr).String()[len("127.0.0.1:"):], Never: []netip.Addr{other},
			Time: time.Minute, Bytes: 1 << 20, Payload: payload, Flush: func() error { flushed <- struct{}{}; return nil }}
		k, err := Open(cfg)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var file bytes.Buffer
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx, &file) }()
		<-flushed // the file's header
		for _, from := range []string{"127.0.0.9:0", "127.0.0.1:0"} {
			d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))}
			s, err := d.Dial("udp", c.LocalAddr().String())
			require.NoError(t, err)
			_, err = s.Write([]byte("SECRET"))
			require.NoError(t, err)
			s.Close()
		}
		<-flushed // as soon as the packet is there, not at the end
		cancel()
		require.NoError(t, <-done)
		r, err := pcapgo.NewNgReader(bytes.NewReader(file.Bytes()), pcapgo.DefaultNgReaderOptions)
		require.NoError(t, err)
		require.Equal(t, layers.LinkTypeRaw, r.LinkType())
		n := 0
		for {
			data, ci, err := r.ReadPacketData()
			if err != nil {
				break
			}
			n++
			require.WithinDuration(t, time.Now(), ci.Timestamp, time.Minute)
			require.Equal(t, 20+8+6, ci.Length)
			u, ok := gopacket.NewPacket(data, layers.LayerTypeIPv4, gopacket.Default).Layer(layers.LayerTypeUDP).(*layers.UDP)
			require.True(t, ok)
			require.Equal(t, port, uint16(u.DstPort))
			require.Equal(t, payload, bytes.Contains(data, []byte("SECRET")))
			require.NotEqual(t, other.AsSlice(), data[12:16])
		}
		require.Positive(t, n)
		require.Equal(t, payload, bytes.Contains(file.Bytes(), []byte("SECRET")))
		require.Equal(t, uint32(blockStats), lastBlock(file.Bytes()))
	}
	_, err = Open(Config{Interface: "nosuch0", Time: time.Second, Bytes: 1000})
	require.ErrorContains(t, err, "nosuch0")
	_, err = Open(Config{Interface: "lo", Time: time.Hour, Bytes: 1000})
	require.ErrorContains(t, err, "takes up to")
}

func lastBlock(b []byte) uint32 {
	n := binary.LittleEndian.Uint32(b[len(b)-4:])
	return binary.LittleEndian.Uint32(b[len(b)-int(n):])
}
