package flows

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/netns/look"
	"causeway/netns/policy"
	"causeway/protocol"
)

var begin = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// watcher is one with a clock, whose kernel is the test.
func watcher(v View) (w *Watcher, clock *time.Time) {
	now := begin
	w = New(Config{View: func() View { return v }, Blind: func(string, string) {}, Now: func() time.Time { return now }, Log: zerolog.Nop()})
	w.see(v)
	return w, &now
}

func prefixes(l ...string) (out []netip.Prefix) {
	for _, s := range l {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func view(t *testing.T) View {
	mp, ma := netip.MustParsePrefix, netip.MustParseAddr
	wall, err := policy.NewPart(policy.Config{Interface: "cw0",
		Local:  []policy.Member{{Prefix: mp("10.1.0.0/16"), Class: 1}, {Prefix: mp("198.18.0.2/32"), Class: 2}},
		Remote: []policy.Member{{Prefix: mp("10.2.0.0/16"), Class: 3}},
		Allows: []policy.Allow{{From: 3, To: 1, Proto: policy.TCP, First: 443, Last: 443, Rule: "main.web"}, {From: 1, To: 3, Proto: policy.ICMP, Rule: "main.ping"}}})
	require.NoError(t, err)
	return View{Wall: wall, Logging: true, Own: []netip.Addr{ma("198.18.0.2")}, Hubs: []netip.Addr{ma("198.18.0.1")}, Overlay: prefixes("198.18.0.0/15"),
		Local: prefixes("10.1.0.0/16"), Remote: prefixes("198.18.0.0/15", "10.2.0.0/16")}
}

func way(proto uint8, from, to string) look.Ends {
	return look.Ends{From: netip.MustParseAddrPort(from), To: netip.MustParseAddrPort(to), Proto: proto}
}

// plain is a flow without NAT.
func plain(proto uint8, from, to string) look.Heard {
	e := way(proto, from, to)
	return look.Heard{Orig: e, Reply: look.Ends{From: e.To, To: e.From, Proto: proto}}
}

// text is what is logged, one flow a line.
func text(r protocol.FlowReport) (out []string) {
	for _, f := range r.Flows {
		out = append(out, fmt.Sprintf("%s %s %s %d rule=%s here=%t refused=%t midway=%t", f.From, f.To, f.PortText(), f.Count, f.Rule, f.Here, f.Refused, f.Midway))
	}
	slices.Sort(out)
	return out
}

func TestLog(t *testing.T) {
	w, clock := watcher(view(t))
	for _, h := range []look.Heard{
		plain(6, "10.2.0.7:40001", "10.1.0.1:443"), plain(6, "10.2.0.7:40002", "10.1.0.1:443"),
		plain(1, "10.1.0.1:0", "10.2.0.7:0"),
		plain(6, "192.168.1.9:40001", "10.1.0.1:443"),                                                         // of the LAN
		plain(6, "10.1.0.1:40001", "10.1.0.2:443"),                                                            // stays here
		plain(6, "198.18.0.2:40001", "198.18.0.1:4710"),                                                       // the hub
		plain(6, "198.18.0.2:40001", "198.18.0.3:4711"),                                                       // Causeway's own
		plain(1, "198.18.0.2:0", "198.18.0.3:0"),                                                              // and its echo
		plain(6, "198.18.0.2:40001", "198.18.0.3:22"),                                                         // is no such
		plain(17, "10.1.0.1:40001", "224.0.0.251:5353"),                                                       // to nobody in particular
		{Orig: way(6, "172.17.0.2:40001", "10.2.0.7:443"), Reply: way(6, "10.2.0.7:443", "198.18.0.2:40001")}, // masqueraded
		{Orig: way(17, "10.2.0.7:53", "10.1.0.1:40000"), Reply: way(17, "10.1.0.1:40000", "10.2.0.7:53"), Midway: true},
	} {
		w.heard(h, false)
	}
	w.heard(plain(6, "10.2.0.7:40009", "10.1.0.1:22"), true)
	w.report(*clock)
	r, ok := w.Next()
	require.True(t, ok)
	require.Equal(t, []string{
		"10.1.0.1 10.2.0.7 icmp 1 rule=main/ping here=true refused=false midway=false",
		"10.2.0.7 10.1.0.1 tcp/22 1 rule= here=false refused=true midway=false",
		"10.2.0.7 10.1.0.1 tcp/443 2 rule=main/web here=false refused=false midway=false",
		"10.2.0.7 10.1.0.1 udp/40000 1 rule= here=false refused=false midway=true",
		"198.18.0.2 10.2.0.7 tcp/443 1 rule= here=true refused=false midway=false",
		"198.18.0.2 198.18.0.3 tcp/22 1 rule= here=true refused=false midway=false",
	}, text(r))
	require.NoError(t, r.Clean())
	w.Sent(r)

	// What goes on is told of again after a while: refused flows sooner.
	w.heard(plain(6, "10.2.0.7:40003", "10.1.0.1:443"), false)
	w.heard(plain(6, "10.2.0.7:40009", "10.1.0.1:22"), true)
	for range 3 {
		*clock = clock.Add(reportEvery)
		w.report(*clock)
		_, ok = w.Next()
		require.False(t, ok)
	}
	*clock = clock.Add(refusedAgain)
	w.report(*clock)
	r, ok = w.Next()
	require.True(t, ok)
	require.Len(t, text(r), 1)
	require.True(t, r.Flows[0].Refused)
	w.Sent(r)
	*clock = clock.Add(passedAgain)
	w.report(*clock)
	r, _ = w.Next()
	require.Equal(t, []string{"10.2.0.7 10.1.0.1 tcp/443 1 rule=main/web here=false refused=false midway=false"}, text(r))

	// Another rule is told of at once, and what passed by the one before apart from it.
	w.Sent(r)
	w.heard(plain(6, "10.2.0.7:40003", "10.1.0.1:443"), false)
	other := view(t)
	cfg := other.Wall.Config()
	cfg.Allows[0].Rule = "main.https"
	wall, err := policy.NewPart(cfg)
	require.NoError(t, err)
	other.Wall = wall
	w.see(other)
	w.heard(plain(6, "10.2.0.7:40004", "10.1.0.1:443"), false)
	*clock = clock.Add(reportEvery)
	w.report(*clock)
	r, _ = w.Next()
	require.Equal(t, []string{
		"10.2.0.7 10.1.0.1 tcp/443 1 rule=main/https here=false refused=false midway=false",
		"10.2.0.7 10.1.0.1 tcp/443 1 rule=main/web here=false refused=false midway=false",
	}, text(r))
	w.Sent(r)

	// Nothing of it is kept once it is not wanted.
	v := view(t)
	v.Logging = false
	w.see(v)
	_, ok = w.Next()
	require.False(t, ok)
	w.heard(plain(6, "10.2.0.7:40003", "10.1.0.1:443"), false)
	require.Empty(t, w.keys)
}

// However much passes, what is kept and sent of it is bounded, and what was left out is said.
func TestBounds(t *testing.T) {
	v := view(t)
	v.Wall = nil
	w, clock := watcher(v)
	n := 0
	for range 4 {
		*clock = clock.Add(reportEvery)
		for range maxEvents + 100 {
			n++
			w.heard(plain(6, fmt.Sprintf("10.2.%d.%d:40001", n>>8&0xff, n&0xff), fmt.Sprintf("10.1.0.1:%d", n)), false)
		}
		w.report(*clock)
	}
	require.Len(t, w.keys, maxKeys)
	sent, left := 0, uint64(0)
	for {
		r, ok := w.Next()
		if !ok {
			break
		}
		b, err := json.Marshal(r)
		require.NoError(t, err)
		require.LessOrEqual(t, len(b), protocol.MaxFlowReport)
		sent, left = sent+len(r.Flows), left+r.LeftOut
		w.Sent(r)
	}
	require.Equal(t, 4*75, sent)
	require.NotZero(t, left)
	for range 2 * maxWaiting {
		*clock = clock.Add(reportEvery)
		w.report(*clock)
	}
	require.LessOrEqual(t, len(w.waiting), maxWaiting)

	// The longest that a report can be.
	r := protocol.FlowReport{Version: 1, Time: begin, LeftOut: 1 << 40}
	long := netip.MustParseAddr("fd63:7761:7900:1111:2222:3333:4444:5555")
	for range mostTold {
		r.Flows = append(r.Flows, protocol.Flow{From: long, To: long, Proto: 132, Port: 65535, Rule: strings.Repeat("a", 63) + "/" + strings.Repeat("b", 63), Here: true, Midway: true, Count: 1 << 40, First: begin.Add(time.Millisecond), Last: begin.Add(time.Millisecond)})
	}
	b, err := json.Marshal(r)
	require.NoError(t, err)
	t.Logf("%d bytes", len(b))
	require.LessOrEqual(t, len(b), protocol.MaxFlowReport)
}

// The flows that are refused most, and those that are refused again and again.
func TestRefusals(t *testing.T) {
	w, clock := watcher(view(t))
	for i := range 130 {
		for p := range 3 {
			w.heard(plain(6, "10.2.0.7:40001", fmt.Sprintf("10.1.0.1:%d", 20+p)), true)
			if p == 2 && i > 0 {
				break
			}
		}
		w.heard(plain(17, "10.9.9.9:40001", fmt.Sprintf("10.1.0.1:%d", 1000+i)), true) // nobody's address
		*clock = clock.Add(time.Second)
	}
	top := w.Refused()
	require.Len(t, top, topRefusals)
	require.Equal(t, protocol.RefusedFlow{From: netip.MustParseAddr("10.2.0.7"), To: netip.MustParseAddr("10.1.0.1"), Proto: 6, Port: 20, Count: 130, Since: begin}, top[0])
	l := w.Repeated()
	require.Len(t, l, 3)
	for _, f := range l {
		require.Equal(t, uint64(100), f.Count, "orders of magnitude")
		require.True(t, f.Valid())
	}
	for i := range 2 * maxRefusals {
		w.heard(plain(6, "10.2.0.8:40001", fmt.Sprintf("10.1.0.2:%d", i+1)), true)
	}
	require.LessOrEqual(t, len(w.refused), maxRefusals)
	require.Equal(t, uint16(20), w.Refused()[0].Port, "one who tries many ports does not hide them")
	*clock = clock.Add(protocol.RefusedWindow + time.Minute)
	require.Empty(t, w.Refused())
	require.Empty(t, w.refused)
}

// Rules that keep packets from conntrack are named while they do.
func TestDirection(t *testing.T) {
	var d direction
	now, untracked := begin, uint64(500)
	look := func(wall bool) (string, bool) {
		now = now.Add(lookEvery)
		return d.look(now, wall, func() (policy.Counts, error) {
			return policy.Counts{Untracked: policy.Count{Packets: untracked}}, nil
		})
	}
	_, news := look(true)
	require.False(t, news, "what was before is not known")
	untracked += manyBlinds - 1
	_, news = look(true)
	require.False(t, news, "some strays")
	untracked += manyBlinds
	cause, news := look(true)
	require.True(t, news)
	require.Contains(t, cause, "notrack; 10 just now")
	untracked += manyBlinds
	_, news = look(true)
	require.False(t, news, "known already")
	for range int(calm/lookEvery) - 1 {
		_, news = look(true)
		require.False(t, news)
	}
	cause, news = look(true)
	require.True(t, news)
	require.Empty(t, cause)
	untracked += manyBlinds
	_, _ = look(true)
	cause, news = look(false)
	require.True(t, news, "without a wall nothing is judged")
	require.Empty(t, cause)
}
