package incident

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/bus"
	"causeway/hub/facts"
	"causeway/hub/facts/event"
	"causeway/hub/facts/inventory"
	"causeway/protocol"
)

var begin = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func incident(number, revision uint64, state protocol.IncidentState) protocol.Incident {
	i := protocol.Incident{Version: 1, Number: number, Revision: revision, Subject: "nftables", State: state, Since: begin.Add(time.Duration(number) * time.Second), Found: []string{"- x"}, Reason: "changed by nft (process 7)"}
	if state == protocol.IncidentOver {
		i.Until = i.Since.Add(time.Second)
	}
	return i
}

func encode(t *testing.T, i protocol.Incident) []byte {
	t.Helper()
	b, err := json.Marshal(i)
	require.NoError(t, err)
	return b
}

func store(t *testing.T, js jetstream.JetStream) (*Store, *event.Log) {
	var events event.Log
	return New(Config{JetStream: js, Events: &events, Log: zerolog.Nop(), Node: func(n protocol.NodeNumber) (string, bool) { return fmt.Sprintf("n%d", n), n < 100 }}), &events
}

// The last revision counts, in whatever order they come; old ones go.
func TestTake(t *testing.T) {
	s, events := store(t, nil)
	seq := uint64(0)
	take := func(n protocol.NodeNumber, i protocol.Incident) {
		seq++
		s.take(facts.Read(protocol.IncidentSubject("idc-sh", n), encode(t, i), seq, begin))
	}
	take(7, incident(1, 1, protocol.IncidentOpen))
	take(7, incident(1, 3, protocol.IncidentStopped))
	take(7, incident(1, 2, protocol.IncidentOver))
	take(8, incident(1, 1, protocol.IncidentOver))
	take(200, incident(1, 1, protocol.IncidentOver)) // no node
	l := s.List(Filter{Node: "n7"})
	require.Len(t, l, 1)
	require.Equal(t, protocol.IncidentStopped, l[0].State)
	require.Equal(t, "7-1", l[0].ID)
	require.Len(t, s.List(Filter{}), 2)
	require.Empty(t, s.List(Filter{Site: "other"}))
	require.Len(t, s.List(Filter{Since: begin.Add(time.Hour)}), 1, "what lasts is always of interest")
	require.Len(t, events.Newest(100), 3, "each when it is first heard of, and when it was given up")
	_, ok := s.Get("7-1")
	require.True(t, ok)
	_, ok = s.Get("7-2")
	require.False(t, ok)

	// A node that lost its list counts from 1 again.
	again := incident(1, 1, protocol.IncidentOpen)
	again.Since = begin.Add(time.Hour)
	take(7, again)
	require.Equal(t, again.Since, s.List(Filter{Node: "n7"})[0].Since)
	for n := range uint64(2 * perNode) {
		take(9, incident(n+1, 1, protocol.IncidentOver))
	}
	l = s.List(Filter{Node: "n9"})
	require.Len(t, l, perNode)
	require.Equal(t, fmt.Sprintf("9-%d", 2*perNode), l[0].ID)
}

// What makes no sense is counted and leaves nothing.
func TestNonsense(t *testing.T) {
	s, events := store(t, nil)
	good := encode(t, incident(1, 1, protocol.IncidentOpen))
	for n, c := range []struct {
		subject string
		data    []byte
	}{
		{"causeway.v1.inventory.idc-sh.7.incident.x", good},
		{"causeway.v1.inventory.idc-sh.0.incident", good},
		{"causeway.v1.inventory.IDC.7.incident", good},
		{protocol.IncidentSubject("idc-sh", 7), nil},
		{protocol.IncidentSubject("idc-sh", 7), []byte("null")},
		{protocol.IncidentSubject("idc-sh", 7), make([]byte, protocol.MaxIncident+1)},
		{protocol.IncidentSubject("idc-sh", 7), []byte(`{"v":1,"incident":1,"revision":1,"state":"over","subject":"x","since":"2026-01-01T00:00:00Z"}`)},
	} {
		s.take(facts.Read(c.subject, c.data, uint64(n+1), begin))
	}
	require.Equal(t, uint64(7), s.Dropped())
	require.Empty(t, s.List(Filter{}))
	require.Len(t, events.Newest(10), 1, "of a flood not every one")
}

// Incidents are there again after a restart of the hub, without news of them, and the
// inventory does not take them for facts.
func TestRestart(t *testing.T) {
	srv, err := bus.Start(t.Context(), bus.Config{Dir: t.TempDir(), Log: zerolog.Nop()})
	require.NoError(t, err)
	t.Cleanup(srv.Close)
	nc, err := srv.AgentsConn()
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	var events event.Log
	inv, err := inventory.Open(t.Context(), inventory.Config{JetStream: js, Conn: nc, MaxBytes: 64 << 20, Events: &events, Log: zerolog.Nop(),
		Node: func(protocol.NodeNumber) (string, bool) { return "n", true }})
	require.NoError(t, err)
	run := func(s *Store) {
		go s.Run(t.Context())
		require.Eventually(t, func() bool { return len(s.List(Filter{})) == 1 }, 20*time.Second, 10*time.Millisecond)
	}
	_, err = js.Publish(t.Context(), protocol.IncidentSubject("idc-sh", 7), encode(t, incident(1, 1, protocol.IncidentOpen)))
	require.NoError(t, err)
	s, news := store(t, js)
	run(s)
	require.Empty(t, news.Newest(10), "it was there before the start")
	_, err = js.Publish(t.Context(), protocol.IncidentSubject("idc-sh", 7), encode(t, incident(2, 1, protocol.IncidentOpen)))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(s.List(Filter{})) == 2 && len(news.Newest(10)) == 1 }, 20*time.Second, 10*time.Millisecond)

	// The inventory's stream has lost them; they are kept apart.
	st, err := js.Stream(t.Context(), protocol.InventoryStream)
	require.NoError(t, err)
	own, err := js.Stream(t.Context(), protocol.IncidentStream)
	require.NoError(t, err)
	require.Eventually(t, func() bool { i, err := own.Info(t.Context()); return err == nil && i.State.Msgs == 2 }, 20*time.Second, 10*time.Millisecond)
	require.NoError(t, st.Purge(t.Context()))
	s, news = store(t, js)
	go s.Run(t.Context())
	require.Eventually(t, func() bool { return len(s.List(Filter{})) == 2 }, 20*time.Second, 10*time.Millisecond)
	require.Empty(t, news.Newest(10))
	i, err := own.Info(t.Context())
	require.NoError(t, err)
	require.Equal(t, uint64(2), i.State.LastSeq, "nothing is kept twice")
	go inv.Run(t.Context())
	require.Never(t, func() bool { return inv.Dropped() > 0 }, 300*time.Millisecond, 50*time.Millisecond)
}

// The threat: a node that was taken over and sends what it likes under its own
// subject. What is taken is clean, and the same when it is written and read again.
func FuzzDecode(f *testing.F) {
	f.Add(protocol.IncidentSubject("idc-sh", 7), []byte(`{"v":1,"incident":1,"revision":1,"state":"open","subject":"x\u001b","since":"2026-01-01T00:00:00Z","found":["a"]}`))
	f.Add("causeway.v1.inventory.a.1.incident", []byte(`{"v":1,"incident":2,"revision":1,"state":"over","subject":"link","since":"2026-01-01T00:00:00Z","until":"2026-01-01T00:00:01Z","seconds":1e308}`))
	f.Fuzz(func(t *testing.T, subject string, data []byte) {
		site, n, i, err := decode(facts.Read(subject, data, 1, begin))
		if err != nil {
			return
		}
		for _, s := range append(i.Found, i.Subject, i.Reason, i.Action, i.Felt) {
			require.Equal(t, protocol.OneLine(s, protocol.MaxIncidentText), s)
		}
		b, err := json.Marshal(i)
		require.NoError(t, err)
		var again protocol.Incident
		require.NoError(t, json.Unmarshal(b, &again))
		require.NoError(t, again.Clean())
		require.Equal(t, i.Subject, again.Subject)
		require.True(t, protocol.ValidName(site) && n.Valid())
	})
}
