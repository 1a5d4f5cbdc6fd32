package flow

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/bus"
	"causeway/protocol"
)

var begin = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func store(js jetstream.JetStream) *Store {
	return New(Config{JetStream: js, Log: zerolog.Nop(), Node: func(n protocol.NodeNumber) (string, bool) { return fmt.Sprintf("n%d", n), n < 100 }})
}

func flow(from, to string, port uint16) protocol.Flow {
	return protocol.Flow{From: netip.MustParseAddr(from), To: netip.MustParseAddr(to), Proto: 6, Port: port, Rule: "main/web", Here: true, Count: 2, First: begin, Last: begin.Add(time.Second)}
}

func report(t *testing.T, l ...protocol.Flow) []byte {
	b, err := json.Marshal(protocol.FlowReport{Version: 1, Time: begin, Flows: l})
	require.NoError(t, err)
	return b
}

// A flow is there once, as the node saw it where it began, with all that was told of it.
func TestFold(t *testing.T) {
	s := store(nil)
	seq := uint64(0)
	take := func(n protocol.NodeNumber, l ...protocol.Flow) {
		seq++
		s.take(protocol.FlowSubject("idc-sh", n), report(t, l...), seq)
	}
	f := flow("10.1.0.1", "10.2.0.1", 443)
	take(7, f)
	f.Last = begin.Add(time.Hour)
	take(7, f)
	there := f
	there.Here = false
	take(8, there)
	refused := flow("10.1.0.1", "10.2.0.1", 22)
	refused.Refused, refused.Rule, refused.Last = true, "", begin.Add(2*time.Hour)
	take(7, refused)
	take(200, f)                                                 // no node
	s.take(protocol.FlowSubject("idc-sh", 7), report(t, f), seq) // twice
	l := s.List(time.Time{})
	require.Len(t, l, 2)
	require.Equal(t, []any{"n7", "idc-sh", uint64(4), begin, begin.Add(time.Hour)}, []any{l[0].Node, l[0].Site, l[0].Count, l[0].First, l[0].Last})
	require.True(t, l[1].Refused, "the last is at the end")
	require.Len(t, s.List(begin.Add(90*time.Minute)), 1)
	news := s.News()
	require.Len(t, news, 4)
	require.Greater(t, news[3].Sequence, news[2].Sequence)
}

// One node that floods has its own share, and no more.
func TestBounds(t *testing.T) {
	s := store(nil)
	seq := uint64(0)
	put := func(n protocol.NodeNumber, count int) {
		for i := range count {
			f := flow(fmt.Sprintf("10.1.%d.%d", i>>8&0xff, i&0xff), "10.2.0.1", uint16(i>>16+1))
			f.Last = f.Last.Add(time.Duration(i) * time.Second)
			seq++
			s.mu.Lock()
			s.put(n, "idc-sh", f)
			s.mu.Unlock()
		}
	}
	put(7, 10)
	put(8, perNode+500)
	count := map[string]int{}
	for _, e := range s.List(time.Time{}) {
		count[e.Node]++
	}
	require.Equal(t, map[string]int{"n7": 10, "n8": perNode}, count)
	for n := range protocol.NodeNumber(overall/perNode + 3) {
		put(20+n, perNode)
	}
	require.LessOrEqual(t, s.total, overall)
	count = map[string]int{}
	for _, e := range s.List(time.Time{}) {
		count[e.Node]++
	}
	require.Equal(t, 10, count["n7"])
	require.LessOrEqual(t, len(s.News()), recent)
}

// What lies in the stream is there again after a restart of the hub.
func TestRestart(t *testing.T) {
	srv, err := bus.Start(t.Context(), bus.Config{Dir: t.TempDir(), Log: zerolog.Nop()})
	require.NoError(t, err)
	t.Cleanup(srv.Close)
	nc, err := srv.AgentsConn()
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	for range 2 {
		s := store(js)
		require.NoError(t, s.Open(t.Context()))
		if len(s.List(time.Time{})) == 0 {
			_, err = js.Publish(t.Context(), protocol.FlowSubject("idc-sh", 7), report(t, flow("10.1.0.1", "10.2.0.1", 443)), jetstream.WithMsgID("one"))
			require.NoError(t, err)
		}
		go s.Run(t.Context())
		require.Eventually(t, func() bool { return len(s.List(time.Time{})) == 1 }, 20*time.Second, 10*time.Millisecond)
	}
}

// docs/LIMITS.md says what the code does.
func TestLimitsPage(t *testing.T) {
	b, err := os.ReadFile("../../../docs/LIMITS.md")
	require.NoError(t, err)
	for _, want := range []string{
		fmt.Sprintf("| logged flows | each node, all | %d reports of %d KiB; %d and %d flows |", keptReports, protocol.MaxFlowReport>>10, perNode, overall),
		fmt.Sprintf("| stream of logged flows | all | %d MiB, %d reports, %d days |", maxBytes>>20, maxReports, int(maxAge.Hours()/24)),
	} {
		require.Contains(t, string(b), want)
	}
}

// The threat: a node that was taken over and sends what it likes under its own subject. What is taken is the same
// when it is written and read again.
func FuzzDecode(f *testing.F) {
	f.Add(protocol.FlowSubject("idc-sh", 7), []byte(`{"v":1,"time":"2026-01-01T00:00:00Z","flows":[{"from":"10.1.0.1","to":"10.2.0.1","proto":6,"port":22,"rule":"a/b","count":1,"first":"2026-01-01T00:00:00Z","last":"2026-01-01T00:00:00Z"}]}`))
	f.Add("causeway.v1.flow.a.01", []byte(`{"v":1,"flows":[{"from":"fe80::1%x\u001b","to":"::ffff:10.0.0.1","count":18446744073709551615}]}`))
	f.Fuzz(func(t *testing.T, subject string, data []byte) {
		site, n, r, err := decode(subject, data)
		if err != nil {
			return
		}
		require.Equal(t, subject, protocol.FlowSubject(site, n))
		b, err := json.Marshal(r)
		require.NoError(t, err)
		var again protocol.FlowReport
		require.NoError(t, json.Unmarshal(b, &again))
		require.NoError(t, again.Clean())
		for _, x := range again.Flows {
			require.Equal(t, protocol.Printable(x.Rule), x.Rule)
		}
	})
}
