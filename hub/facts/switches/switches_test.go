package switches

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/bus"
	"causeway/hub/facts"
	"causeway/hub/facts/event"
	"causeway/hub/facts/inventory"
	"causeway/protocol"
)

var begin = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func moved(n uint64, service string) protocol.ServiceSwitch {
	return protocol.ServiceSwitch{Number: n, Service: service, Time: begin.Add(time.Duration(n) * time.Second), From: []string{"idc-sh"}, To: []string{"cloud-eu"}, Site: "idc-sh", Why: protocol.SwitchSuspect, By: protocol.SwitchByClient,
		Gap: protocol.Duration(700 * time.Millisecond)}
}

func report(boot byte, l ...protocol.ServiceSwitch) []byte {
	b, _ := json.Marshal(protocol.SwitchReport{Version: 1, BootID: protocol.BootID{boot}, Switches: l})
	return b
}

func store(js jetstream.JetStream) (*Store, *event.Log) {
	var events event.Log
	return New(Config{JetStream: js, Events: &events, Log: zerolog.Nop(), Node: func(n protocol.NodeNumber) (string, bool) { return fmt.Sprintf("n%d", n), n < 100 }}), &events
}

// Each switch counts once, also where a report comes again with more in it; each node has its share.
func TestTake(t *testing.T) {
	s, events := store(nil)
	seq := uint64(0)
	take := func(n protocol.NodeNumber, b []byte) {
		seq++
		s.take(facts.Read(protocol.SwitchesSubject("idc-sh", n), b, seq, begin))
	}
	take(7, report(1, moved(1, "web"), moved(2, "db")))
	take(7, report(1, moved(1, "web"), moved(2, "db"), moved(3, "web")))
	take(7, report(2, moved(1, "web"))) // it started anew
	take(200, report(1, moved(1, "web")))
	require.Len(t, s.List(api.ServiceEventQuery{}), 4)
	l := s.List(api.ServiceEventQuery{Service: "web", Limit: 2})
	require.Len(t, l, 2)
	require.EqualValues(t, 3, l[0].Number)
	require.Equal(t, "n7", l[1].Node)
	require.Empty(t, s.List(api.ServiceEventQuery{Node: "n8"}))
	require.Len(t, s.List(api.ServiceEventQuery{Since: begin.Add(3 * time.Second)}), 1)
	e := events.Newest(10)
	require.Len(t, e, 3)
	require.Equal(t, "service web: idc-sh to cloud-eu, suspect (700ms after the last answer); and 1 more: causeway service events", e[2].Message)
	dead := moved(2, "web")
	dead.Why, dead.Reset = protocol.SwitchDead, 24
	take(7, report(2, dead))
	require.Equal(t, "service web: site idc-sh is dead, 24 connections reset (700ms after the last answer)", events.Newest(1)[0].Message)

	for i := range uint64(2 * perNode) {
		take(8, report(1, moved(i+1, "web")))
	}
	require.Len(t, s.List(api.ServiceEventQuery{Node: "n8"}), perNode)
	require.Len(t, s.List(api.ServiceEventQuery{Node: "n7"}), 5)
	require.EqualValues(t, 2*perNode, s.List(api.ServiceEventQuery{Node: "n8", Limit: 1})[0].Number)
}

// What makes no sense is dropped, and told of once.
func TestDrops(t *testing.T) {
	s, events := store(nil)
	long := make([]protocol.ServiceSwitch, protocol.MaxSwitches+1)
	for i := range long {
		long[i] = moved(uint64(i+1), "web")
	}
	bad := moved(1, "web")
	bad.To = []string{"a b"}
	early := moved(1, "web")
	early.Gap = -1
	for i, b := range [][]byte{nil, []byte("null"), make([]byte, protocol.MaxSwitchReport+1), report(1, long...), report(1, moved(0, "web")), report(1, moved(1, "WEB\x1b")), report(1, bad), report(1, early)} {
		s.take(facts.Read(protocol.SwitchesSubject("idc-sh", 7), b, uint64(i+1), begin))
		require.EqualValues(t, i+1, s.dropped, i)
	}
	require.Empty(t, s.List(api.ServiceEventQuery{}))
	require.Len(t, events.Newest(10), 1)
}

// A hub that starts again has what was told before, and makes no events of it.
func TestRunReadsWhatWasTold(t *testing.T) {
	b, err := bus.Start(t.Context(), bus.Config{Dir: t.TempDir(), Log: zerolog.Nop()})
	require.NoError(t, err)
	t.Cleanup(b.Close)
	nc, err := b.AgentsConn()
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	var none event.Log
	_, err = inventory.Open(t.Context(), inventory.Config{JetStream: js, Conn: nc, MaxBytes: 1 << 26, Inside: true, Events: &none, Log: zerolog.Nop(), Node: func(protocol.NodeNumber) (string, bool) { return "n", true }})
	require.NoError(t, err)
	_, err = js.Publish(t.Context(), protocol.SwitchesSubject("idc-sh", 7), report(1, moved(1, "web")))
	require.NoError(t, err)
	s, events := store(js)
	go func() { _ = s.Run(t.Context()) }()
	require.Eventually(t, func() bool { return len(s.List(api.ServiceEventQuery{})) == 1 }, 10*time.Second, 5*time.Millisecond)
	require.Empty(t, events.Newest(1))
	_, err = js.Publish(t.Context(), protocol.SwitchesSubject("idc-sh", 7), report(1, moved(2, "web")))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(s.News()) == 2 }, 10*time.Second, 5*time.Millisecond)
	require.Eventually(t, func() bool { return len(events.Newest(2)) == 1 }, 10*time.Second, 5*time.Millisecond)
}

// docs/LIMITS.md says what the code does.
func TestLimitsPage(t *testing.T) {
	b, err := os.ReadFile("../../../docs/LIMITS.md")
	require.NoError(t, err)
	require.Contains(t, string(b), fmt.Sprintf("| switches of services | each node, all | %d and %d; reports of %d, %d KiB |", perNode, overall, protocol.MaxSwitches, protocol.MaxSwitchReport>>10))
}

// The threat: a node that was taken over and sends what it likes under its own subject. What is taken is the same when it is written
// and read again, and fits a terminal.
func FuzzDecode(f *testing.F) {
	f.Add(protocol.SwitchesSubject("idc-sh", 7), report(1, moved(1, "web")))
	f.Add("causeway.v1.inventory.a.01.switches", []byte(`{"v":1,"switches":[{"switch":1,"service":"a","by":"\u001b[2J","gap":"-1s","addr":"fe80::1%x"}]}`))
	f.Fuzz(func(t *testing.T, subject string, data []byte) {
		m := facts.Read(subject, data, 1, begin)
		site, n, r, err := decode(m)
		if err != nil {
			return
		}
		require.Equal(t, subject, protocol.SwitchesSubject(site, n))
		b, err := json.Marshal(r)
		require.NoError(t, err)
		var again protocol.SwitchReport
		require.NoError(t, json.Unmarshal(b, &again))
		require.NoError(t, again.Clean())
		for _, x := range again.Switches {
			require.Equal(t, protocol.Printable(x.By+string(x.Why)), x.By+string(x.Why))
		}
		require.Equal(t, len(r.Switches), len(again.Switches))
	})
}
