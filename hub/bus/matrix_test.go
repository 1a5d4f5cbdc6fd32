package bus

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// member is an agent of the matrix.
type member struct {
	site   string
	n      protocol.NodeNumber
	nc     *nats.Conn
	denied atomic.Int64 // operations that the server refused
	heard  atomic.Int64 // messages of others that reached it
	asked  atomic.Int64 // times that the hub asked it for a snapshot
}

func (m *member) own() string { return protocol.InventorySubject(m.site, m.n) }

func (m *member) inbox() string { return protocol.InboxPrefix(m.n) }

// connectMembers connects agents whose names and numbers begin like each other's.
func connectMembers(t *testing.T, s *Server) []*member {
	t.Helper()
	members := []*member{{site: "idc", n: 7}, {site: "idc", n: 8}, {site: "idc", n: 70}, {site: "idc-sh", n: 71}, {site: "idc-sh", n: 700}, {site: "i", n: 77}}
	for _, m := range members {
		var err error
		m.nc, err = nats.Connect("nats://hub:4222", nats.SetCustomDialer(&dialer{s: s, site: m.site, n: m.n, t: t}), nats.CustomInboxPrefix(m.inbox()),
			nats.NoReconnect(), nats.SkipHostLookup(), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
				if strings.Contains(strings.ToLower(err.Error()), "permissions violation") {
					m.denied.Add(1)
				}
			}))
		require.NoError(t, err)
		t.Cleanup(m.nc.Close)
	}
	return members
}

// hubSubjects are of nobody but the hub and the server, some of which act on what is sent there.
var hubSubjects = []string{
	"causeway", "causeway.v1", "causeway.v1.inventory", "causeway.v1.hub", "causeway.v1.flow", "causeway.v1.flow.idc", "$JS.API.STREAM.PURGE.CAUSEWAY_FLOWS", "causeway.v1.ask", "causeway.v1.ask.1", "causeway.v1.event.node_up", "causeway.state.v1.log", "causeway.state.v1.other", "_INBOX", "_INBOX.hub.x", "_INBOX.x", "_R_.x",
	"$JS.API.INFO", "$JS.API.STREAM.LIST", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.CREATE.OWN", "$JS.API.STREAM.UPDATE.CAUSEWAY_INVENTORY",
	"$JS.API.STREAM.DELETE.CAUSEWAY_INVENTORY", "$JS.API.STREAM.PURGE.CAUSEWAY_INVENTORY", "$JS.API.STREAM.MSG.GET.CAUSEWAY_INVENTORY",
	"$JS.API.STREAM.MSG.DELETE.CAUSEWAY_INVENTORY", "$JS.API.DIRECT.GET.CAUSEWAY_INVENTORY", "$JS.API.CONSUMER.CREATE.CAUSEWAY_INVENTORY",
	"$JS.API.CONSUMER.MSG.NEXT.CAUSEWAY_INVENTORY.c", "$JS.ACK.CAUSEWAY_INVENTORY.c.1.1.1.1.0", "$JS.EVENT.ADVISORY.API", "$JS.FC.x", "$JSC.R.x",
	"$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.PING.CONNZ", "$SYS.REQ.USER.INFO", "$SYS.ACCOUNT.x.CONNECT", "$SYS.SERVER.x.SHUTDOWN", "$SYS._INBOX.x",
	"$KV.b.k", "$O.b.C.x", "$G.x", "$NRG.V.x",
}

// wildcards are what only a listener may ask for.
var wildcards = []string{
	">", "*", "*.>", "*.*.*", "causeway.>", "causeway.*.>", "causeway.v1.>", "causeway.v1.inventory.>", "causeway.v1.inventory.*.>", "causeway.v1.flow.>", "causeway.v1.flow.*.*", "causeway.v1.ask.>", "causeway.v1.ask.*", "causeway.v1.event.>", "causeway.state.>", "_INBOX.>", "_INBOX.*",
	"_INBOX.*.>", "_INBOX.*.x", "$JS.>", "$JS.API.>", "$JS.EVENT.>", "$SYS.>", "$SYS.*.>", "$KV.>", "$O.>",
}

// Every agent against every subject that is not its own, in every way that NATS
// has: nothing goes out, nothing comes in, the server says so each time, and what an agent
// may do works throughout.
func TestSubjectMatrix(t *testing.T) {
	const evil, bait = "evil", "bait"
	s := start(t)
	st := inventory(t, s)
	members := connectMembers(t, s)
	var leaks sync.Map
	leak := func(what, subject string) { leaks.Store(what+" "+subject, true) }

	// The hub hears all of both accounts.
	hub, err := s.AgentsConn()
	require.NoError(t, err)
	t.Cleanup(hub.Close)
	state, err := s.StateConn()
	require.NoError(t, err)
	t.Cleanup(state.Close)
	var good atomic.Int64
	for _, nc := range []*nats.Conn{hub, state} {
		_, err := nc.Subscribe(">", func(m *nats.Msg) {
			switch string(m.Data) {
			case evil:
				leak("the hub heard", m.Subject)
			case "good":
				good.Add(1)
			}
		})
		require.NoError(t, err)
		require.NoError(t, nc.Flush())
	}
	for _, m := range members {
		_, err := m.nc.Subscribe(m.inbox()+".>", func(got *nats.Msg) {
			if string(got.Data) == evil {
				leak(fmt.Sprintf("node %d heard", m.n), got.Subject)
			}
			m.heard.Add(1)
		})
		require.NoError(t, err)
		_, err = m.nc.Subscribe(protocol.AskSubject(m.n), func(got *nats.Msg) {
			if string(got.Data) == evil {
				leak(fmt.Sprintf("node %d heard", m.n), got.Subject)
			}
			m.asked.Add(1)
		})
		require.NoError(t, err)
		require.NoError(t, m.nc.Flush())
	}

	var counts struct{ publish, request, headers, subscribe, queue, reply int }
	for _, a := range members {
		targets := append([]string(nil), hubSubjects...)
		patterns := append([]string{a.own()}, wildcards...) // not even its own facts come back
		for _, v := range members {
			if v == a {
				continue
			}
			base := fmt.Sprintf("causeway.v1.inventory.%s.%d", v.site, v.n)
			targets = append(targets, protocol.AskSubject(v.n), protocol.AskSubject(v.n)+".x", v.own(), protocol.FlowSubject(v.site, v.n), protocol.FlowSubject(a.site, v.n), protocol.SwitchesSubject(v.site, v.n), protocol.SwitchesSubject(a.site, v.n), base, base+".x", base+".x.y", v.inbox()+".x", v.inbox()+".x.y", v.inbox(),
				fmt.Sprintf("causeway.v1.inventory.%s.%d.snapshot", v.site, a.n), fmt.Sprintf("causeway.v1.inventory.%s.%d.snapshot", a.site, v.n))
			patterns = append(patterns, base+".>", base+".*", v.inbox()+".>", v.inbox()+".*", v.inbox()+".x.*")
		}
		targets = distinct(targets, a.own())
		patterns = distinct(append(patterns, targets...))
		targets = append(targets, protocol.AskSubject(a.n)) // the hub alone asks
		for _, to := range targets {
			require.NoError(t, a.nc.Publish(to, []byte(evil)))
			require.NoError(t, a.nc.PublishRequest(to, a.inbox()+".r", []byte(evil)))
			require.NoError(t, a.nc.PublishMsg(&nats.Msg{Subject: to, Header: nats.Header{"Nats-Msg-Id": {"1"}, "Nats-Rollup": {"all"}}, Data: []byte(evil)}))
			counts.publish, counts.request, counts.headers = counts.publish+1, counts.request+1, counts.headers+1
		}
		for _, p := range patterns {
			heard := func(m *nats.Msg) { leak(fmt.Sprintf("node %d listening on %s heard", a.n, p), m.Subject) }
			_, err := a.nc.Subscribe(p, heard)
			require.NoError(t, err)
			_, err = a.nc.QueueSubscribe(p, "workers", heard)
			require.NoError(t, err)
			counts.subscribe, counts.queue = counts.subscribe+1, counts.queue+1
		}
		require.NoError(t, a.nc.FlushTimeout(10*time.Second))
		refused := int64(3*len(targets) + 2*len(patterns))
		require.Eventually(t, func() bool { return a.denied.Load() >= refused }, 10*time.Second, time.Millisecond, "node %d: refused", a.n)
		require.Equal(t, refused, a.denied.Load(), "node %d", a.n)
		require.NoError(t, a.nc.Publish(a.own(), []byte("good")))
		require.NoError(t, a.nc.FlushTimeout(10*time.Second))
	}

	// What the hub and others say meanwhile.
	for _, nc := range []*nats.Conn{hub, state} {
		for _, subject := range []string{"causeway.v1.hub", "causeway.state.v1.other", "_INBOX.hub.x", "_INBOX.x", "$JS.EVENT.ADVISORY.API", "$KV.b.k", "x"} {
			require.NoError(t, nc.Publish(subject, []byte(bait)))
		}
		for _, m := range members {
			require.NoError(t, nc.Publish(m.own(), []byte(bait)))
			require.NoError(t, nc.Publish(m.inbox()+".x", []byte(bait)))
			require.NoError(t, nc.Publish(protocol.AskSubject(m.n), []byte(bait)))
		}
		require.NoError(t, nc.FlushTimeout(10*time.Second))
	}
	for _, m := range members {
		require.NoError(t, m.nc.FlushTimeout(10*time.Second))
		require.Eventually(t, func() bool { return m.asked.Load() == 1 }, 10*time.Second, time.Millisecond, "node %d is asked, once", m.n)
		require.Eventually(t, func() bool { return m.heard.Load() == 1 }, 10*time.Second, time.Millisecond, "node %d hears its own inbox, once", m.n)
	}
	require.Eventually(t, func() bool { return good.Load() == int64(len(members)) }, 10*time.Second, time.Millisecond, "what agents may say is heard")

	// A reply subject is where the server would answer with its own rights. It ends the session.
	for _, a := range members {
		for _, to := range append([]string{members[0].own(), members[3].inbox() + ".x", a.own(), a.inbox()}, hubSubjects...) {
			if to == members[3].inbox()+".x" && a == members[3] {
				continue
			}
			nc, d, _ := agent(t, s, a.site, a.n)
			require.NoError(t, nc.PublishRequest(a.own(), to, []byte(evil)))
			require.Error(t, nc.FlushTimeout(10*time.Second), to)
			require.Eventually(t, func() bool { return d.ended() != nil }, 10*time.Second, time.Millisecond)
			require.ErrorIs(t, d.ended(), ErrProtocol)
			nc.Close()
			counts.reply++
		}
	}
	require.NoError(t, hub.FlushTimeout(10*time.Second))
	info, err := st.Info(t.Context())
	require.NoError(t, err)
	require.Equal(t, uint64(2*len(members)), info.State.Msgs, "in the stream: each agent's own, and the hub's")
	n := 0
	leaks.Range(func(k, _ any) bool { n++; t.Error(k); return true })
	t.Logf("%d agents: publish %d, request %d, headers %d, subscribe %d, queue %d, reply %d; %d leaks", len(members),
		counts.publish, counts.request, counts.headers, counts.subscribe, counts.queue, counts.reply, n)
}

// distinct drops repetitions, and what is in without.
func distinct(l []string, without ...string) (out []string) {
	seen := map[string]bool{}
	for _, x := range without {
		seen[x] = true
	}
	for _, x := range l {
		if !seen[x] {
			seen[x] = true
			out = append(out, x)
		}
	}
	return out
}
