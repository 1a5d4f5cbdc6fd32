package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
)

func theZone(t testing.TB) Zone {
	t.Helper()
	z, err := ParseZone("LB.example.com", "ns1.lb.example.com=192.0.2.1, ns1.lb.example.com=2001:db8::1,ns2.example.net")
	require.NoError(t, err)
	return z
}

func addrs(l ...string) (out []netip.Addr) {
	for _, s := range l {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// view has a name at two sites, of which one has three slots of four, one below another, and one without any.
func view() View {
	return View{Serial: 7, Names: map[string]Name{
		"web": {TTL: 20, Four: Addresses{[][]netip.Addr{addrs("203.0.113.5", "203.0.113.6"), addrs("198.51.100.7")}, []uint8{0, 0, 0, 1}},
			Six: Addresses{[][]netip.Addr{addrs("2001:db8:1::5")}, []uint8{0, 0}}},
		"api.eu": {TTL: 5, Four: Addresses{[][]netip.Addr{addrs("203.0.113.9")}, []uint8{0}}},
		"none":   {TTL: 20},
	}}
}

func question(name string, typ uint16) *dns.Msg {
	var q dns.Msg
	q.SetQuestion(name, typ)
	return &q
}

func ask(t *testing.T, z *zone, q *dns.Msg, turn uint64) *dns.Msg {
	t.Helper()
	b, err := q.Pack()
	require.NoError(t, err)
	out, _ := z.answer(b, false, turn)
	require.NotNil(t, out)
	var a dns.Msg
	require.NoError(t, a.Unpack(out))
	require.Equal(t, q.Id, a.Id)
	require.True(t, a.Response)
	require.False(t, a.RecursionAvailable)
	return &a
}

// texts are records without their columns.
func texts(l []dns.RR) (out []string) {
	for _, r := range l {
		out = append(out, strings.Join(strings.Fields(r.String()), " "))
	}
	return out
}

func TestAnswer(t *testing.T) {
	z := newZone(theZone(t), view())
	soa := "lb.example.com. %d IN SOA ns1.lb.example.com. hostmaster.lb.example.com. 7 7200 1800 86400 10"
	nothing := []string{fmt.Sprintf(soa, 10)}
	for _, x := range []struct {
		name      string
		typ       uint16
		rcode     int
		answer    []string
		authority []string
	}{
		{"web.lb.example.com.", dns.TypeA, 0, []string{"web.lb.example.com. 20 IN A 203.0.113.5", "web.lb.example.com. 20 IN A 203.0.113.6"}, nil},
		{"wEb.LB.exaMple.com.", dns.TypeA, 0, []string{"wEb.LB.exaMple.com. 20 IN A 203.0.113.5", "wEb.LB.exaMple.com. 20 IN A 203.0.113.6"}, nil},
		{"web.lb.example.com.", dns.TypeAAAA, 0, []string{"web.lb.example.com. 20 IN AAAA 2001:db8:1::5"}, nil},
		{"web.lb.example.com.", dns.TypeTXT, 0, nil, nothing},
		{"web.lb.example.com.", dns.TypeANY, 0, []string{`web.lb.example.com. 3600 IN HINFO "RFC8482" ""`}, nil},
		{"api.eu.lb.example.com.", dns.TypeA, 0, []string{"api.eu.lb.example.com. 5 IN A 203.0.113.9"}, nil},
		{"api.eu.lb.example.com.", dns.TypeAAAA, 0, nil, nothing},
		{"eu.lb.example.com.", dns.TypeA, 0, nil, nothing},
		{"none.lb.example.com.", dns.TypeA, 0, nil, nothing},
		{"x.web.lb.example.com.", dns.TypeA, dns.RcodeNameError, nil, nothing},
		{"gone.lb.example.com.", dns.TypeA, dns.RcodeNameError, nil, nothing},
		{`api\.eu.lb.example.com.`, dns.TypeA, dns.RcodeNameError, nil, nothing},
		{"lb.example.com.", dns.TypeA, 0, nil, nothing},
		{"lb.example.com.", dns.TypeSOA, 0, []string{fmt.Sprintf(soa, 3600)}, nil},
		{"lb.example.com.", dns.TypeNS, 0, []string{"lb.example.com. 3600 IN NS ns1.lb.example.com.", "lb.example.com. 3600 IN NS ns2.example.net."}, nil},
		{"ns1.lb.example.com.", dns.TypeA, 0, []string{"ns1.lb.example.com. 3600 IN A 192.0.2.1"}, nil},
		{"example.com.", dns.TypeA, dns.RcodeRefused, nil, nil},
		{"xlb.example.com.", dns.TypeA, dns.RcodeRefused, nil, nil},
		{`web\.lb.example.com.`, dns.TypeA, dns.RcodeRefused, nil, nil},
		{".", dns.TypeNS, dns.RcodeRefused, nil, nil},
		{"web.lb.example.com.", dns.TypeAXFR, dns.RcodeRefused, nil, nil},
		{"web.lb.example.com.", dns.TypeIXFR, dns.RcodeRefused, nil, nil},
		{"web.lb.example.com.", dns.TypeMAILB, dns.RcodeNotImplemented, nil, nil},
	} {
		a := ask(t, z, question(x.name, x.typ), 0)
		what := fmt.Sprint(x.name, " ", dns.TypeToString[x.typ])
		require.Equal(t, x.rcode, a.Rcode, what)
		require.Equal(t, x.answer, texts(a.Answer), what)
		require.Equal(t, x.authority, texts(a.Ns), what)
		require.Empty(t, a.Extra, what)
		require.Equal(t, x.rcode == 0 || x.rcode == dns.RcodeNameError, a.Authoritative, what)
	}

	// Sites have their slots, and their addresses turn.
	first := map[string]int{}
	for turn := range uint64(800) {
		first[ask(t, z, question("web.lb.example.com.", dns.TypeA), turn).Answer[0].(*dns.A).A.String()]++
	}
	require.Equal(t, map[string]int{"203.0.113.5": 300, "203.0.113.6": 300, "198.51.100.7": 200}, first)

	// Other opcodes, classes, counts of questions and versions.
	for _, x := range []struct {
		change func(q *dns.Msg)
		rcode  int
	}{
		{func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented},
		{func(q *dns.Msg) { q.Opcode = dns.OpcodeNotify }, dns.RcodeNotImplemented},
		{func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		{func(q *dns.Msg) { q.Question = nil }, dns.RcodeFormatError},
		{func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) }, dns.RcodeFormatError},
		{func(q *dns.Msg) { q.SetEdns0(1232, false).IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
		{func(q *dns.Msg) { q.SetEdns0(1232, false).SetEdns0(1232, false) }, dns.RcodeFormatError},
	} {
		q := question("web.lb.example.com.", dns.TypeA)
		x.change(q)
		a := ask(t, z, q, 0)
		require.Equal(t, x.rcode, a.Rcode)
		require.Empty(t, a.Answer)
	}
	q := question("web.lb.example.com.", dns.TypeA).SetEdns0(4096, true)
	require.Equal(t, uint16(maxUDP), ask(t, z, q, 0).IsEdns0().UDPSize())

	// What is not known yet is asked again; what is no question has no answer.
	require.Equal(t, dns.RcodeServerFailure, ask(t, nil, question("web.lb.example.com.", dns.TypeA), 0).Rcode)
	b, err := question("web.lb.example.com.", dns.TypeA).Pack()
	require.NoError(t, err)
	b[2] |= 0x80
	for _, b := range [][]byte{nil, b[:11], b, make([]byte, maxQuery+1)} {
		out, what := z.answer(b, false, 0)
		require.Nil(t, out)
		require.Equal(t, codeDropped, what.code)
	}
}

// An answer is not much longer than its question, however a zone is made.
func TestAmplification(t *testing.T) {
	var servers []string
	for i := range maxNameServers {
		servers = append(servers, fmt.Sprintf("ns%d.lb.example.com=2001:db8::%d", i, i+1))
	}
	zone, err := ParseZone("lb.example.com", strings.Join(servers, ","))
	require.NoError(t, err)
	var six []netip.Addr
	for i := range 8 {
		six = append(six, netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", i+1)))
	}
	z := newZone(zone, View{Names: map[string]Name{"w": {TTL: 20, Six: Addresses{[][]netip.Addr{six}, []uint8{0}}}}})
	worst := 0.0
	for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeNS, dns.TypeSOA, dns.TypeANY, dns.TypeDNSKEY} {
		for _, name := range []string{"w.lb.example.com.", "lb.example.com.", "x.lb.example.com."} {
			for _, edns := range []bool{false, true} {
				q := question(name, typ)
				if edns {
					q.SetEdns0(4096, false)
				}
				b, err := q.Pack()
				require.NoError(t, err)
				out, _ := z.answer(b, false, 0)
				if !edns {
					require.LessOrEqual(t, len(out), dns.MinMsgSize)
				}
				worst = max(worst, float64(len(out))/float64(len(b)))
				if out := again(b); out != nil {
					require.LessOrEqual(t, len(out), len(b))
				}
			}
		}
	}
	t.Logf("at worst %.1f times", worst)
	require.LessOrEqual(t, worst, 8.0)
}

func TestParseZone(t *testing.T) {
	for _, x := range [][3]string{
		{"com", "ns1.example.com", "give a zone"},
		{"", "ns1.example.com", "give a zone"},
		{"a_b.example.com", "ns1.example.com", "give a zone"},
		{strings.Repeat("a.", 70) + "com", "ns1.example.com", "give a zone"},
		{"lb.example.com", "", "give the name"},
		{"lb.example.com", "lb.example.com=192.0.2.1", "give the name"},
		{"lb.example.com", "ns1.lb.example.com", "say its address"},
		{"lb.example.com", "ns1.lb.example.com=127.0.0.1", "the outside reaches"},
		{"lb.example.com", "ns1.example.net=192.0.2.1", "within lb.example.com"},
		{"lb.example.com", "a.b,b.b,c.b,d.b,e.b,f.b,g.b,h.b,i.b", "more than 8"},
	} {
		_, err := ParseZone(x[0], x[1])
		require.ErrorContains(t, err, x[2])
		require.NotContains(t, err.Error(), "\n")
	}
}

// Who asks too much by UDP is told to come by TCP, or nothing; by TCP it is answered all the same, and so are others.
func TestLimits(t *testing.T) {
	s := New(Config{theZone(t)})
	s.Set(view())
	q, err := question("web.lb.example.com.", dns.TypeA).Pack()
	require.NoError(t, err)
	now := time.Now()
	whole, tc, none, bytesOut := 0, 0, 0, 0
	for i := range 10000 { // from all over one network
		out := s.overUDP(q, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), now)
		bytesOut += len(out)
		switch {
		case out == nil:
			none++
		case out[2]&2 != 0:
			tc++
		default:
			whole++
		}
	}
	require.Equal(t, []int{burst, (10000 - burst) / 2, (10000 - burst) / 2}, []int{whole, tc, none})
	ratio := float64(bytesOut) / float64(10000*len(q))
	t.Logf("a flood of one network: %.2f bytes out for each in", ratio)
	require.Less(t, ratio, 0.6)
	require.NotNil(t, s.overUDP(q, netip.MustParseAddr("192.0.3.1"), now))
	require.NotNil(t, s.overUDP(q, netip.MustParseAddr("192.0.2.1"), now.Add(time.Second)))

	// Of IPv6 a /56 is one; and of networks without number the table is bounded.
	for i := range burst {
		require.NotNil(t, s.overUDP(q, netip.MustParseAddr(fmt.Sprintf("2001:db8:0:%x::1", i)), now))
	}
	require.LessOrEqual(t, len(s.overUDP(q, netip.MustParseAddr("2001:db8:0:ff::2"), now)), len(q))
	for i := range 3 * maxSources {
		s.overUDP(q, netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), now)
	}
	require.Equal(t, maxSources, len(s.udp.of))
	s.overUDP(q, netip.MustParseAddr("198.51.100.1"), now.Add(time.Hour))
	require.Equal(t, 1, len(s.udp.of))
}

// serve runs a server on a free port of all addresses.
func serve(t *testing.T) (*Server, uint16) {
	t.Helper()
	tcp, err := net.Listen("tcp", ":0")
	require.NoError(t, err)
	port := tcp.Addr().(*net.TCPAddr).Port
	udp, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
	require.NoError(t, err)
	s := New(Config{theZone(t)})
	ctx, cancel := context.WithCancel(t.Context())
	end := make(chan error, 1)
	go func() { end <- s.Serve(ctx, udp, tcp) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-end)
	})
	return s, uint16(port)
}

func TestServe(t *testing.T) {
	s, port := serve(t)
	c := dns.Client{Timeout: 5 * time.Second}
	at := fmt.Sprintf("127.0.0.2:%d", port) // an answer from 127.0.0.1 would not be heard
	a, _, err := c.Exchange(question("web.lb.example.com.", dns.TypeA), at)
	require.NoError(t, err)
	require.Equal(t, dns.RcodeServerFailure, a.Rcode, "nothing is known yet")
	s.Set(view())
	for _, at := range []string{at, fmt.Sprintf("[::1]:%d", port)} {
		a, _, err = c.Exchange(question("web.lb.example.com.", dns.TypeAAAA), at)
		require.NoError(t, err)
		require.Len(t, a.Answer, 1)
	}

	// TCP: several in one connection, and the end of what is no question.
	conn, err := net.Dial("tcp", at)
	require.NoError(t, err)
	defer conn.Close()
	q, err := question("api.eu.lb.example.com.", dns.TypeA).Pack()
	require.NoError(t, err)
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)
	_, err = conn.Write(bytes.Repeat(framed, 3))
	require.NoError(t, err)
	for range 3 {
		m, err := (&dns.Conn{Conn: conn}).ReadMsg()
		require.NoError(t, err)
		require.Len(t, m.Answer, 1)
	}
	_, err = conn.Write([]byte{0xff, 0xff, 0})
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(4*time.Second)))
	_, err = conn.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)

	// Connections of one source are bounded: the oldest one goes.
	var open []net.Conn
	for range connsOf + 1 {
		c, err := net.Dial("tcp", at)
		require.NoError(t, err)
		defer c.Close()
		open = append(open, c)
		_, err = c.Write(framed)
		require.NoError(t, err)
		_, err = (&dns.Conn{Conn: c}).ReadMsg()
		require.NoError(t, err)
	}
	require.NoError(t, open[0].SetReadDeadline(time.Now().Add(4*time.Second)))
	_, err = open[0].Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
}

// FuzzAnswer: anything comes from anywhere. No message is a panic, and each answer is one that reads, has the question's number and is
// no longer than it may be; what is of another zone is never answered.
func FuzzAnswer(f *testing.F) {
	z := newZone(theZone(f), view())
	for _, q := range []*dns.Msg{question("web.lb.example.com.", dns.TypeA), question("lb.example.com.", dns.TypeNS).SetEdns0(1232, true), question("lb.example.com.", dns.TypeANY), question("example.org.", dns.TypeTXT)} {
		b, err := q.Pack()
		require.NoError(f, err)
		f.Add(b, false, uint64(0))
		f.Add(b, true, uint64(1<<63))
	}
	f.Fuzz(func(t *testing.T, query []byte, tcp bool, turn uint64) {
		before := bytes.Clone(query)
		out, what := z.answer(query, tcp, turn)
		again := again(query)
		require.Equal(t, before, query)
		require.LessOrEqual(t, len(again), len(query))
		require.Contains(t, Codes, what.code)
		require.Contains(t, Kinds, what.kind)
		if out == nil {
			require.Equal(t, codeDropped, what.code)
			return
		}
		require.Equal(t, query[:2], out[:2])
		if !tcp {
			require.LessOrEqual(t, len(out), maxUDP)
		}
		var a dns.Msg
		require.NoError(t, a.Unpack(out))
		require.True(t, a.Response)
		for _, r := range a.Answer {
			require.True(t, strings.HasSuffix(strings.ToLower(r.Header().Name), "lb.example.com."))
		}
	})
}
