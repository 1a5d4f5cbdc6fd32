package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func view() View {
	return View{
		Address: ip("169.254.53.53"), Serial: 42,
		Services: []Service{
			{Name: "web", Segment: "prod", VIP4: ip("198.18.128.1"), VIP6: ip("fd63::8000:1"),
				Ports:     []Port{{"http", "tcp", 80, 8080}, {"quic", "udp", 443, 8443}, {"", "tcp", 9, 9}},
				Endpoints: []Endpoint{{Addr: ip("10.1.0.5"), Site: "sh", Name: "web-1"}}},
			{Name: "four", Segment: "prod", VIP4: ip("198.18.128.2")},
			{Name: "db", Segment: "default", Headless: true, Ports: []Port{{"sql", "tcp", 5432, 15432}}, Endpoints: []Endpoint{
				{Addr: ip("10.1.0.7"), Site: "sh", Name: "db-0", Usable: true}, {Addr: ip("fd00::7"), Site: "sh", Name: "db-0", Usable: true},
				{Addr: ip("10.2.0.7"), Site: "eu", Name: "db-0"}, {Addr: ip("10.2.0.8"), Site: "eu", Usable: true}}},
			{Name: "dark", Segment: "default", Headless: true, Endpoints: []Endpoint{{Addr: ip("10.1.0.8"), Site: "sh"}, {Addr: ip("fd00::8"), Site: "sh"}}},
			{Name: "Bad_", Segment: "default", VIP4: ip("198.18.128.9")},
			{Name: "web", Segment: "prod", VIP4: ip("198.18.128.8")},
		},
		Nodes: []Node{{"n1", "sh", []netip.Addr{ip("198.18.0.2"), ip("fd63::2")}}, {"n2", "eu", []netip.Addr{ip("198.18.0.3")}}},
		Pods:  []Pod{{"c1", "n1", "sh", []netip.Addr{ip("10.1.0.5")}}, {"no_name", "n1", "sh", []netip.Addr{ip("10.1.0.6")}}},
	}
}

func question(name string, typ uint16) *dns.Msg {
	m := new(dns.Msg).SetQuestion(name, typ)
	m.Id = 4 // turns lists of one, two and four to their beginning
	return m
}

func ask(t *testing.T, z *zone, q *dns.Msg, tcp bool) *dns.Msg {
	t.Helper()
	b, err := q.Pack()
	require.NoError(t, err)
	out, code := z.answer(b, tcp)
	var a dns.Msg
	require.NoError(t, a.Unpack(out))
	require.Equal(t, code, codeOf(a.Rcode))
	require.Equal(t, q.Id, a.Id)
	require.True(t, a.Response)
	require.False(t, a.RecursionAvailable, "nobody is asked for others")
	return &a
}

// told is an answer in short: its code, its records, and SOA where it says that there is nothing.
func told(a *dns.Msg) string {
	out := []string{dns.RcodeToString[a.Rcode]}
	for _, r := range a.Answer {
		h := r.Header()
		out = append(out, fmt.Sprintf("%d %s %s", h.Ttl, dns.TypeToString[h.Rrtype], strings.TrimPrefix(r.String(), h.String())))
	}
	for _, r := range a.Ns {
		soa := r.(*dns.SOA)
		out = append(out, fmt.Sprintf("SOA %s %d %d", soa.Hdr.Name, soa.Hdr.Ttl, soa.Minttl))
	}
	return strings.Join(out, "; ")
}

const (
	nodata   = "NOERROR; SOA causeway. 1 1"
	nxdomain = "NXDOMAIN; SOA causeway. 1 1"
)

func TestAnswers(t *testing.T) {
	z := newZone(view())
	for _, x := range []struct {
		name string
		typ  uint16
		want string
	}{
		{"web.prod.svc.causeway.", dns.TypeA, "NOERROR; 30 A 198.18.128.1"},
		{"web.prod.svc.causeway.", dns.TypeAAAA, "NOERROR; 30 AAAA fd63::8000:1"},
		{"WeB.pRoD.SVC.CauseWay.", dns.TypeA, "NOERROR; 30 A 198.18.128.1"},
		{"four.prod.svc.causeway.", dns.TypeAAAA, nodata},
		{"web.prod.svc.causeway.", dns.TypeMX, nodata},
		{"web.prod.svc.causeway.", dns.TypeSRV, nodata},
		{"web.prod.svc.causeway.", 65280, nodata}, // private
		{"_http._tcp.web.prod.svc.causeway.", dns.TypeSRV, "NOERROR; 30 SRV 0 1 80 web.prod.svc.causeway."},
		{"_quic._udp.web.prod.svc.causeway.", dns.TypeSRV, "NOERROR; 30 SRV 0 1 443 web.prod.svc.causeway."},
		{"_http._tcp.web.prod.svc.causeway.", dns.TypeA, nodata},
		{"_http._udp.web.prod.svc.causeway.", dns.TypeSRV, nxdomain},
		{"_tcp.web.prod.svc.causeway.", dns.TypeSRV, nodata},
		{"_sctp.web.prod.svc.causeway.", dns.TypeSRV, nxdomain},
		{"_tcp.four.prod.svc.causeway.", dns.TypeSRV, nxdomain},
		{"web-1.sh.web.prod.svc.causeway.", dns.TypeA, "NOERROR; 5 A 10.1.0.5"},
		{"sh.web.prod.svc.causeway.", dns.TypeA, nodata},
		{"eu.web.prod.svc.causeway.", dns.TypeA, nxdomain},
		{"x.web-1.sh.web.prod.svc.causeway.", dns.TypeA, nxdomain},
		{"web-2.sh.web.prod.svc.causeway.", dns.TypeA, nxdomain},
		{"db.default.svc.causeway.", dns.TypeA, "NOERROR; 5 A 10.1.0.7; 5 A 10.2.0.8"},
		{"db.default.svc.causeway.", dns.TypeAAAA, "NOERROR; 5 AAAA fd00::7"},
		{"db-0.eu.db.default.svc.causeway.", dns.TypeA, "NOERROR; 5 A 10.2.0.7"},
		{"db-0.sh.db.default.svc.causeway.", dns.TypeAAAA, "NOERROR; 5 AAAA fd00::7"},
		{"10-2-0-8.eu.db.default.svc.causeway.", dns.TypeA, "NOERROR; 5 A 10.2.0.8"},
		{"10-2-0-7.eu.db.default.svc.causeway.", dns.TypeA, nxdomain},
		{"_sql._tcp.db.default.svc.causeway.", dns.TypeSRV, "NOERROR; 5 SRV 0 1 15432 db-0.sh.db.default.svc.causeway.; 5 SRV 0 1 15432 10-2-0-8.eu.db.default.svc.causeway."},
		{"dark.default.svc.causeway.", dns.TypeA, "NOERROR; 5 A 10.1.0.8"},
		{"fd00-0000-0000-0000-0000-0000-0000-0008.sh.dark.default.svc.causeway.", dns.TypeAAAA, "NOERROR; 5 AAAA fd00::8"},
		{"bad_.default.svc.causeway.", dns.TypeA, nxdomain},
		{"prod.svc.causeway.", dns.TypeA, nodata},
		{"none.svc.causeway.", dns.TypeA, nxdomain},
		{"web.default.svc.causeway.", dns.TypeA, nxdomain},
		{"svc.causeway.", dns.TypeA, nodata},
		{"n1.sh.node.causeway.", dns.TypeA, "NOERROR; 30 A 198.18.0.2"},
		{"n1.sh.node.causeway.", dns.TypeAAAA, "NOERROR; 30 AAAA fd63::2"},
		{"n2.eu.node.causeway.", dns.TypeAAAA, nodata},
		{"n2.sh.node.causeway.", dns.TypeA, nxdomain},
		{"sh.node.causeway.", dns.TypeA, nodata},
		{"us.node.causeway.", dns.TypeA, nxdomain},
		{"a.n1.sh.node.causeway.", dns.TypeA, nxdomain},
		{"c1.n1.sh.pod.causeway.", dns.TypeA, "NOERROR; 30 A 10.1.0.5"},
		{"n1.sh.pod.causeway.", dns.TypeA, nodata},
		{"n2.sh.pod.causeway.", dns.TypeA, nxdomain},
		{"sh.pod.causeway.", dns.TypeA, nodata},
		{"eu.pod.causeway.", dns.TypeA, nxdomain},
		{"a.c1.n1.sh.pod.causeway.", dns.TypeA, nxdomain},
		{"pod.causeway.", dns.TypeA, nodata},
		{"causeway.", dns.TypeA, nodata},
		{"causeway.", dns.TypeNS, "NOERROR; 30 NS ns.causeway."},
		{"causeway.", dns.TypeSOA, "NOERROR; 30 SOA ns.causeway. hostmaster.causeway. 42 7200 1800 86400 1"},
		{"ns.causeway.", dns.TypeA, "NOERROR; 30 A 169.254.53.53"},
		{"a.ns.causeway.", dns.TypeA, nxdomain},
		{"what.causeway.", dns.TypeA, nxdomain},
		{`web\.prod.svc.causeway.`, dns.TypeA, nxdomain},
		{"web.prod.svc.causeway.", dns.TypeANY, "NOERROR; 30 HINFO \"RFC8482\" \"\""},
		{"svc.causeway.", dns.TypeANY, nodata},
		{"what.causeway.", dns.TypeANY, nxdomain},
		{".", dns.TypeNS, "REFUSED"},
		{"example.org.", dns.TypeA, "REFUSED"},
		{"notcauseway.", dns.TypeA, "REFUSED"},
		{`a\.causeway.`, dns.TypeA, "REFUSED"},
		{"causeway.example.org.", dns.TypeA, "REFUSED"},
		{"causeway.", dns.TypeAXFR, "REFUSED"},
		{"causeway.", dns.TypeIXFR, "REFUSED"},
		{"causeway.", dns.TypeMAILB, "NOTIMP"},
		{"causeway.", dns.TypeOPT, "NOTIMP"},
	} {
		a := ask(t, z, question(x.name, x.typ), true)
		require.Equal(t, x.want, told(a), "%s %s", x.name, dns.TypeToString[x.typ])
		require.Equal(t, !slices.Contains([]string{"REFUSED", "NOTIMP"}, x.want), a.Authoritative, x.name)
	}
	require.Equal(t, "REFUSED", told(ask(t, newZone(View{}), question("example.org.", dns.TypeA), false)))
	require.Equal(t, nodata, told(ask(t, newZone(View{}), question("svc.causeway.", dns.TypeA), false)))
}

// A service's names stay, and their addresses move, as backends come and go.
func TestHeadlessFollowsWhatIsUsable(t *testing.T) {
	v := view()
	name := func() string {
		return told(ask(t, newZone(v), question("db.default.svc.causeway.", dns.TypeA), false))
	}
	v.Services[2].Endpoints = slices.Clone(v.Services[2].Endpoints)
	e := v.Services[2].Endpoints
	e[3].Usable = false
	require.Equal(t, "NOERROR; 5 A 10.1.0.7", name())
	e[0].Usable, e[1].Usable = false, false
	require.Equal(t, "NOERROR; 5 A 10.1.0.7; 5 A 10.2.0.7; 5 A 10.2.0.8", strings.Join(sorted(name()), "; "), "none is known to be: all")
	v.Services[0].Endpoints = nil
	require.Equal(t, "NOERROR; 30 A 198.18.128.1", told(ask(t, newZone(v), question("web.prod.svc.causeway.", dns.TypeA), false)), "the VIP stays")
}

func sorted(s string) []string {
	l := strings.Split(s, "; ")
	slices.Sort(l[1:])
	return l
}

// SRV brings the addresses of its targets, the question keeps its letters (0x20), and lists are turned.
func TestFormOfAnswers(t *testing.T) {
	z := newZone(view())
	a := ask(t, z, question("_SQL._tcp.DB.default.SVC.causeway.", dns.TypeSRV), true)
	require.Equal(t, "_SQL._tcp.DB.default.SVC.causeway.", a.Question[0].Name)
	require.Equal(t, "_SQL._tcp.DB.default.SVC.causeway.", a.Answer[0].Header().Name)
	require.Len(t, a.Extra, 3)
	q := question("db.default.svc.causeway.", dns.TypeA)
	q.Id = 1
	require.Equal(t, []string{"NOERROR", "5 A 10.2.0.8", "5 A 10.1.0.7"}, strings.Split(told(ask(t, z, q, true)), "; "))

	q = question("web.prod.svc.causeway.", dns.TypeA)
	require.Nil(t, ask(t, z, q, false).IsEdns0(), "who has not said EDNS0 gets none")
	q.SetEdns0(4096, true)
	a = ask(t, z, q, false)
	require.EqualValues(t, maxUDP, a.IsEdns0().UDPSize())
	q.IsEdns0().SetVersion(1)
	require.Equal(t, dns.RcodeBadVers, ask(t, z, q, false).Rcode)
	q.IsEdns0().SetVersion(0)
	q.Extra = append(q.Extra, q.Extra[0])
	require.Equal(t, "FORMERR", told(ask(t, z, q, false)))
}

// What does not fit says so, and comes whole by TCP.
func TestLongAnswers(t *testing.T) {
	v := View{Services: []Service{{Name: "many", Segment: "default", Headless: true, Ports: []Port{{"x", "tcp", 1, 1}}}}}
	for i := range 250 {
		v.Services[0].Endpoints = append(v.Services[0].Endpoints, Endpoint{Addr: netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), Site: "sh", Name: fmt.Sprintf("endpoint-%d-%s", i, strings.Repeat("x", 40))})
	}
	z := newZone(v)
	for _, size := range []uint16{0, 100, 512, 1000, 1232, 65535} {
		for _, name := range []string{"many.default.svc.causeway.", "_x._tcp.many.default.svc.causeway."} {
			typ := dns.TypeA
			if name[0] == '_' {
				typ = dns.TypeSRV
			}
			q := question(name, typ)
			most := min(max(int(size), dns.MinMsgSize), maxUDP)
			if size > 0 {
				q.SetEdns0(size, false)
			}
			b, err := q.Pack()
			require.NoError(t, err)
			out, _ := z.answer(b, false)
			require.LessOrEqual(t, len(out), most)
			require.Greater(t, len(out), most-120, "as much as fits")
			a := ask(t, z, q, false)
			require.True(t, a.Truncated)
			a = ask(t, z, q, true)
			require.False(t, a.Truncated)
			require.Len(t, a.Answer, 250)
		}
	}
	// Addresses that nobody asked for are no reason to come again.
	v.Services[0].Endpoints = v.Services[0].Endpoints[:4]
	a := ask(t, newZone(v), question("_x._tcp.many.default.svc.causeway.", dns.TypeSRV), false)
	require.False(t, a.Truncated)
	require.Empty(t, a.Extra)
	require.Len(t, a.Answer, 4)
}

func TestOtherMessages(t *testing.T) {
	z := newZone(view())
	q := question("web.prod.svc.causeway.", dns.TypeA)
	q.Question[0].Qclass = dns.ClassCHAOS
	require.Equal(t, "REFUSED", told(ask(t, z, q, false)))
	q.Question[0].Qclass = dns.ClassANY
	require.Equal(t, "REFUSED", told(ask(t, z, q, false)))
	for _, op := range []int{dns.OpcodeNotify, dns.OpcodeUpdate, dns.OpcodeStatus, dns.OpcodeIQuery} {
		q = question("causeway.", dns.TypeSOA)
		q.Opcode = op
		require.Equal(t, "NOTIMP", told(ask(t, z, q, false)))
	}
	q = question("causeway.", dns.TypeSOA)
	q.Question = append(q.Question, q.Question[0])
	require.Equal(t, "FORMERR", told(ask(t, z, q, false)))
	q.Question = nil
	require.Equal(t, "FORMERR", told(ask(t, z, q, false)))
	q = question("causeway.", dns.TypeSOA)
	q.Response = true
	b, err := q.Pack()
	require.NoError(t, err)
	out, code := z.answer(b, false)
	require.Nil(t, out, "two servers could go on for ever")
	require.Equal(t, codeDropped, code)
	b[2] &^= 0x80
	out, code = z.answer(b[:20], false)
	require.Equal(t, "formerr", code)
	require.Len(t, out, 12)
	out, _ = z.answer(b[:11], false)
	require.Nil(t, out)
	out, _ = z.answer(append(b, make([]byte, maxQuery)...), true)
	require.Nil(t, out)
}

// FuzzAnswer: anything comes from containers. No message is a panic, and each answer is one that reads, has the question's
// number and is no longer than it may be; what is of another zone is never answered.
func FuzzAnswer(f *testing.F) {
	z := newZone(view())
	for _, q := range []*dns.Msg{question("web.prod.svc.causeway.", dns.TypeA), question("_sql._tcp.db.default.svc.causeway.", dns.TypeSRV).SetEdns0(1232, true), question("causeway.", dns.TypeANY), question("example.org.", dns.TypeTXT)} {
		b, err := q.Pack()
		require.NoError(f, err)
		f.Add(b, false)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, query []byte, tcp bool) {
		before := bytes.Clone(query)
		out, code := z.answer(query, tcp)
		require.Equal(t, before, query)
		require.Contains(t, Codes, code)
		if out == nil {
			require.Equal(t, codeDropped, code)
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
			require.True(t, strings.HasSuffix(strings.ToLower(r.Header().Name), Zone))
		}
	})
}

// counts are questions by code.
type counts struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counts) add(code string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[code]++
}

func (c *counts) of(code string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[code]
}

// serving is a server at a free port of loopback.
func serving(t *testing.T) (s *Server, at string, c *counts) {
	t.Helper()
	now := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, now) })
	c = &counts{}
	s = New(Config{Counted: c.add})
	tcp, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free
	require.NoError(t, err)
	tcp.Close()
	x, err := Listen(t.Context(), tcp.Addr().(*net.TCPAddr).AddrPort())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, x) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return s, tcp.Addr().String(), c
}

func TestServer(t *testing.T) {
	s, at, c := serving(t)
	s.Set(view())
	for _, network := range []string{"udp", "tcp"} {
		a, _, err := (&dns.Client{Net: network, Timeout: 5 * time.Second}).Exchange(question("web.prod.svc.causeway.", dns.TypeA), at)
		require.NoError(t, err, network)
		require.Equal(t, "NOERROR; 30 A 198.18.128.1", told(a))
	}
	s.Set(View{})
	a, _, err := new(dns.Client).Exchange(question("web.prod.svc.causeway.", dns.TypeA), at)
	require.NoError(t, err)
	require.Equal(t, nxdomain, told(a))
	require.Equal(t, 2, c.of("noerror"))
	require.Equal(t, 1, c.of("nxdomain"))
	for _, taken := range []string{"192.0.2.1:53", at} {
		_, err = Listen(t.Context(), netip.MustParseAddrPort(taken))
		require.ErrorContains(t, err, "answer DNS")
	}
}

// Several questions by one connection are answered in order; a length beyond the bound, and what is no question, end it.
func TestTCP(t *testing.T) {
	s, at, _ := serving(t)
	s.Set(view())
	dial := func() net.Conn {
		c, err := net.Dial("tcp", at)
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		return c
	}
	c := dns.Conn{Conn: dial()}
	for range 3 {
		require.NoError(t, c.WriteMsg(question("web.prod.svc.causeway.", dns.TypeA)))
	}
	for range 3 {
		a, err := c.ReadMsg()
		require.NoError(t, err)
		require.Len(t, a.Answer, 1)
	}
	for _, b := range [][]byte{binary.BigEndian.AppendUint16(nil, maxQuery+1), {0, 3, 1, 2, 3}} {
		c := dial()
		_, err := c.Write(b)
		require.NoError(t, err)
		_, err = c.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
	}
}

// Who opens many connections closes his own; where all together are too many, whoever has most gives one.
func TestConnections(t *testing.T) {
	var c conns
	type end struct{ mine, theirs net.Conn }
	open := func(from string) end {
		var e end
		e.mine, e.theirs = net.Pipe()
		c.serve(e.theirs, ip(from), func() { _, _ = e.theirs.Read(make([]byte, 1)) })
		return e
	}
	closed := func(e end) bool {
		return e.mine.SetReadDeadline(time.Now().Add(time.Hour)) != nil // so says a pipe whose other end is closed
	}
	first := open("10.0.0.1")
	second := open("10.0.0.1")
	for range connsOf - 1 {
		open("10.0.0.1")
	}
	require.True(t, closed(first))
	require.False(t, closed(second))
	var one []end
	for i := range maxConns {
		one = append(one, open(fmt.Sprintf("10.0.1.%d", i)))
		c.mu.Lock()
		require.LessOrEqual(t, len(c.list), maxConns)
		c.mu.Unlock()
	}
	require.True(t, closed(second))
	require.False(t, closed(one[maxConns-1]))
	c.closeAll()
	c.wait()
	require.Empty(t, c.list)
}

// One who asks too much is not answered for a while, and nobody else is hit; the table of sources does not grow.
func TestQuestionsASecond(t *testing.T) {
	var s sources
	now := time.Now()
	n := 0
	for range 3 * burst {
		if s.take(ip("10.0.0.1"), now) {
			n++
		}
	}
	require.Equal(t, burst, n)
	require.True(t, s.take(ip("10.0.0.2"), now))
	require.True(t, s.take(ip("10.0.0.1"), now.Add(time.Millisecond)))
	for i := range 4 * maxSources {
		s.take(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), now)
		require.LessOrEqual(t, len(s.of), maxSources)
	}
	require.True(t, s.take(ip("10.9.0.1"), now), "those beyond are one together")
	s.take(ip("10.9.0.1"), now.Add(time.Hour))
	require.Equal(t, 1, len(s.of), "who is quiet is forgotten")
}
