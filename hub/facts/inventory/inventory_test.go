package inventory

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/bus"
	"causeway/hub/facts/event"
	"causeway/protocol"
)

const (
	snapshots = "causeway.v1.inventory.idc-sh.7.snapshot"
	deltas    = "causeway.v1.inventory.idc-sh.7.delta"
)

func TestDecode(t *testing.T) {
	good := `{"v":1,"hostname":"h","os":"x\u001b[2J","labels":{"rack":"a\u001b[2J"},"interfaces":[{"name":"eth0"}],
		"containers":{"podman/1":{"id":"1","name":"a\nb","state":"running\u0007","addresses":["fe80::1%x\u001b"]}}}`
	f, err := decodeSnapshot([]byte(good))
	require.NoError(t, err)
	require.Equal(t, "x [2J", f.OS)
	require.Equal(t, "a [2J", f.Labels["rack"])
	require.Equal(t, "a b", f.Containers["podman/1"].Name)
	require.Equal(t, "fe80::1", f.Containers["podman/1"].Addresses[0].String())
	b, err := json.Marshal(f)
	require.NoError(t, err)
	require.NotContains(t, string(b), "null", "a list is a list, empty or not")
	many := func(edit func(*protocol.Inventory)) string {
		inv := protocol.Inventory{Version: 1, Hostname: "h"}
		edit(&inv)
		b, err := json.Marshal(inv)
		require.NoError(t, err)
		return string(b)
	}
	for _, data := range []string{
		`{"v":1}`, `{"v":9,"hostname":"h"}`, `{"stream":"CAUSEWAY_INVENTORY","seq":3}`, `[]`, `null`, ``,
		`{"v":1,"hostname":"h","containers":{"a\u001b[2J":{}}}`,
		`{"v":1,"hostname":"h","containers":{"` + strings.Repeat("k", maxKey+1) + `":{}}}`,
		many(func(i *protocol.Inventory) { i.Interfaces = make([]protocol.Interface, protocol.MaxInterfaces+1) }),
		many(func(i *protocol.Inventory) {
			i.Containers = map[string]protocol.Container{}
			for n := range protocol.MaxContainers + 1 {
				i.Containers[fmt.Sprint(n)] = protocol.Container{}
			}
		}),
		strings.Repeat(" ", protocol.MaxInventory) + good,
	} {
		_, err := decodeSnapshot([]byte(data))
		require.Error(t, err, "%.60s", data)
	}
}

// A node's messages, and what each does to its facts.
func TestFold(t *testing.T) {
	one, two := protocol.BootID{1}, protocol.BootID{2}
	snap := func(b protocol.BootID, seq int, kernel string) (string, string) {
		return snapshots, fmt.Sprintf(`{"v":1,"seq":%d,"boot_id":"%s","hostname":"h","kernel":"%s"}`, seq, b, kernel)
	}
	delta := func(b protocol.BootID, seq int, changes string) (string, string) {
		return deltas, fmt.Sprintf(`{"v":1,"seq":%d,"boot_id":"%s","changes":%s}`, seq, b, changes)
	}
	var f *present
	stream := uint64(0)
	step := func(subject, data string) (verdict, string, error) {
		stream++
		o, err := protocol.ParseFactSubject(subject)
		require.NoError(t, err)
		next, v, err := fold(f, o, []byte(data), stream, time.Unix(int64(stream), 0))
		var changes []byte
		if f != nil && err == nil && v == taken {
			changes = changed(f.doc, next.doc)
		}
		f = next
		return v, string(changes), err
	}
	for _, tt := range []struct {
		name    string
		do      func() (string, string)
		want    verdict
		bad     bool
		kernel  string
		changes string
	}{
		{"a delta of nothing", func() (string, string) { return delta(one, 2, `{"kernel":"b"}`) }, gap, false, "", ""},
		{"the first snapshot", func() (string, string) { return snap(one, 1, "a") }, taken, false, "a", ""},
		{"the next delta", func() (string, string) { return delta(one, 2, `{"kernel":"b","labels":{"x":"y"}}`) }, taken, false, "b", `{"kernel":"b","labels":{"x":"y"}}`},
		{"the same again", func() (string, string) { return delta(one, 2, `{"kernel":"z"}`) }, old, false, "b", ""},
		{"one is missing", func() (string, string) { return delta(one, 4, `{"kernel":"d"}`) }, gap, false, "b", ""},
		{"still", func() (string, string) { return delta(one, 5, `{"kernel":"e"}`) }, gap, false, "b", ""},
		{"a snapshot mends it", func() (string, string) { return snap(one, 6, "f") }, taken, false, "f", `{"kernel":"f","labels":null}`},
		{"an older snapshot", func() (string, string) { return snap(one, 3, "c") }, old, false, "f", ""},
		{"changes that are none", func() (string, string) { return delta(one, 7, `7`) }, taken, true, "f", ""},
		{"changes that break bounds", func() (string, string) { return delta(one, 7, `{"containers":{"\u001b":{}}}`) }, taken, true, "f", ""},
		{"changes that take the name", func() (string, string) { return delta(one, 7, `{"hostname":null}`) }, taken, true, "f", ""},
		{"changes cannot move the sequence", func() (string, string) { return delta(one, 7, `{"seq":99,"kernel":"g"}`) }, taken, false, "g", `{"kernel":"g"}`},
		{"a delta of another boot", func() (string, string) { return delta(two, 8, `{"kernel":"h"}`) }, gap, false, "g", ""},
		{"its snapshot", func() (string, string) { return snap(two, 1, "i") }, taken, false, "i", `{"kernel":"i"}`},
		{"and on", func() (string, string) { return delta(two, 2, `{"cpus":4}`) }, taken, false, "i", `{"cpus":4}`},
	} {
		subject, data := tt.do()
		v, changes, err := step(subject, data)
		require.Equal(t, tt.bad, err != nil, "%s: %v", tt.name, err)
		require.Equal(t, tt.want, v, tt.name)
		if tt.kernel != "" {
			require.Equal(t, tt.kernel, f.inventory().Kernel, tt.name)
		}
		if tt.changes != "" {
			require.JSONEq(t, tt.changes, changes, tt.name)
		} else {
			require.Empty(t, changes, tt.name)
		}
	}
	again, v, err := fold(f, protocol.FactOrigin{Site: "idc-sh", Node: 7, Kind: protocol.FactSnapshot}, []byte(`{}`), stream, time.Now())
	require.NoError(t, err)
	require.Equal(t, old, v, "read again after a restart")
	require.Equal(t, f, again)
}

// Agents are foreign code: no payload may panic, and what is kept is the
// subject's node, bounded, and fit for a terminal.
func FuzzTake(f *testing.F) {
	f.Add(true, []byte(`{"v":1,"seq":2,"boot_id":"0100000000000000","changes":{"containers":{"p/1":{"name":"x","addresses":["10.0.0.1"]},"p/0":null}}}`))
	f.Add(false, []byte(`{"v":1,"seq":9,"boot_id":"0100000000000000","hostname":"h","interfaces":[{"name":"eth0"}],"disks":{"/":{"total_bytes":18446744073709551615}}}`))
	base, _, err := fold(nil, protocol.FactOrigin{Site: "idc-sh", Node: 7, Kind: protocol.FactSnapshot}, []byte(`{"v":1,"seq":1,"boot_id":"0100000000000000","hostname":"h","containers":{"p/0":{"id":"0"}}}`), 1, time.Unix(1, 0))
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, delta bool, data []byte) {
		o := protocol.FactOrigin{Site: "idc-sh", Node: 7, Kind: protocol.FactSnapshot}
		if delta {
			o.Kind = protocol.FactDelta
		}
		got, _, err := fold(base, o, data, 2, time.Unix(2, 0))
		if got == nil || got.number != 7 || got.site != "idc-sh" || err != nil && got != base {
			t.Fatalf("%+v %v", got, err)
		}
		if err != nil {
			return
		}
		inv := got.inventory()
		if len(inv.Containers) > protocol.MaxContainers || len(inv.Hostname) > maxText || inv.Hostname == "" {
			t.Fatalf("%+v", inv)
		}
		if changed(base.doc, got.doc) != nil {
			describe(base.inventory(), inv)
		}
		for _, l := range describe(base.inventory(), inv) {
			if strings.ContainsAny(l, "\x1b\n\r\x07") {
				t.Fatalf("%q", l)
			}
		}
	})
}

// A store on a real server: what comes is folded and put into the bucket, what makes no
// sense is counted with its node, a gap is asked about, and a restart
// continues where it was.
func TestStore(t *testing.T) {
	b, err := bus.Start(t.Context(), bus.Config{Dir: t.TempDir(), Log: zerolog.Nop()})
	require.NoError(t, err)
	defer b.Close()
	nc, err := b.AgentsConn()
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	var events event.Log
	news, err := event.OpenNews(t.Context(), js, &events)
	require.NoError(t, err)
	heard := make(chan *nats.Msg, 10)
	_, err = nc.ChanSubscribe(protocol.SubjectEventsAll, heard)
	require.NoError(t, err)
	run := func() (s *Store, stop func()) {
		s, err := Open(t.Context(), Config{JetStream: js, Conn: nc, MaxBytes: 64 << 20, Events: &events, Log: zerolog.Nop(),
			Node: func(n protocol.NodeNumber) (string, bool) { return fmt.Sprintf("node-%d", n), n < 100 }})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx) }()
		go news.Run(ctx)
		return s, func() { cancel(); <-done }
	}
	s, stop := run()
	asked := make(chan *nats.Msg, 10)
	_, err = nc.ChanSubscribe(protocol.AskSubject(7), asked)
	require.NoError(t, err)
	publish := func(subject, data string) {
		_, err := js.Publish(t.Context(), subject, []byte(data))
		require.NoError(t, err)
	}
	kernel := func(s *Store, n protocol.NodeNumber) func() string {
		return func() string { f, _ := s.Get(n); return f.Kernel }
	}
	wait := func(what func() string, want string) {
		t.Helper()
		require.Eventually(t, func() bool { return what() == want }, 10*time.Second, 5*time.Millisecond)
	}
	changes := s.Watch(t.Context())
	publish(snapshots, `{"v":1,"seq":1,"boot_id":"0100000000000000","hostname":"h","kernel":"a"}`)
	wait(kernel(s, 7), "a")
	publish(deltas, `{"v":1,"seq":2,"boot_id":"0100000000000000","changes":{"kernel":"b","containers":{"podman/1":{"id":"1","name":"web","image":"i","state":"running","addresses":["10.0.0.2"]}}}}`)
	wait(kernel(s, 7), "b")
	require.Equal(t, []string{"first facts"}, (<-changes).Lines)
	c := <-changes
	require.Equal(t, []string{"kernel b, was a", "container web running at 10.0.0.2 (i, podman/1)"}, c.Lines)
	require.Equal(t, "node-7", c.Node)

	// The bucket has what the API shows.
	kv, err := js.KeyValue(t.Context(), protocol.FactsBucket)
	require.NoError(t, err)
	inBucket := func() string {
		var v api.Inventory
		if e, err := kv.Get(t.Context(), "idc-sh.7"); err == nil {
			require.NoError(t, json.Unmarshal(e.Value(), &v))
		}
		return v.Node + " " + v.Kernel
	}
	wait(inBucket, "node-7 b")

	// Nonsense.
	publish(deltas, `{"v":1,"seq":3,"boot_id":"0100000000000000","changes":{"hostname":null}}`)
	publish(snapshots, `nonsense`)
	require.Eventually(t, func() bool { d, ok := s.DroppedOf(7); return ok && d.Count == 2 }, 10*time.Second, 5*time.Millisecond)
	d, _ := s.DroppedOf(7)
	require.Equal(t, "not the JSON of an inventory", d.Why)
	require.Equal(t, uint64(2), s.Dropped())
	require.Equal(t, "node-7", events.Newest(1)[0].Node)
	select {
	case m := <-heard:
		require.Equal(t, "causeway.v1.event.inventory_bad", m.Subject)
		require.Contains(t, string(m.Data), "node-7")
	case <-time.After(10 * time.Second):
		t.Fatal("the event is not published")
	}

	// A bad delta and gaps ask for a snapshot, once in a while.
	publish(deltas, `{"v":1,"seq":5,"boot_id":"0100000000000000","changes":{"kernel":"d"}}`)
	publish(deltas, `{"v":1,"seq":6,"boot_id":"0100000000000000","changes":{"kernel":"e"}}`)
	publish("causeway.v1.inventory.idc-sh.8.snapshot", `{"v":1,"seq":1,"boot_id":"0100000000000000","hostname":"h","kernel":"x"}`)
	publish("causeway.v1.inventory.idc-sh.700.snapshot", `{"v":1,"seq":1,"boot_id":"0100000000000000","hostname":"h","kernel":"x"}`)
	wait(kernel(s, 8), "x")
	require.Equal(t, "b", kernel(s, 7)())
	require.NoError(t, nc.Flush())
	require.Len(t, asked, 1)
	_, known := s.Get(700)
	require.False(t, known, "a node that is none")

	stop()
	require.Eventually(t, func() bool { _, open := <-changes; return !open }, 10*time.Second, time.Millisecond, "watches end with the store")
	publish(snapshots, `{"v":1,"seq":7,"boot_id":"0100000000000000","hostname":"h","kernel":"f"}`)
	s, stop = run()
	defer stop()
	require.Equal(t, "x", kernel(s, 8)(), "from the bucket")
	wait(kernel(s, 7), "f")
	require.Zero(t, s.Dropped(), "what was read is not read again")
}
