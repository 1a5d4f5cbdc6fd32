package inventory

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/protocol"
)

func snapshotOf(seq uint64, kernel string) message {
	b, _ := json.Marshal(protocol.Inventory{Sequence: seq, Kernel: kernel, Hostname: "h", Time: time.Unix(int64(seq), 0)})
	return message{Snapshot: true, Sequence: seq, Data: b}
}

func deltaOf(seq uint64, patch string) message {
	b, _ := json.Marshal(protocol.InventoryDelta{Sequence: seq, Time: time.Unix(int64(seq), 0), Changes: json.RawMessage(patch)})
	return message{Sequence: seq, Data: b}
}

// However many messages wait, and however often the hub takes some: it ends with the same
// facts, hears in order, and what waits is bounded.
func TestQueueFolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := newQueue()
		q.maxItems = rapid.IntRange(2, 9).Draw(t, "bound")
		var hub []byte // as the hub folds
		var last uint64
		take := func() {
			m, ok := q.head()
			if !ok {
				return
			}
			if !m.Snapshot && m.Sequence != last+1 {
				t.Fatalf("delta %d after %d", m.Sequence, last)
			}
			if m.Sequence <= last {
				t.Fatalf("%d after %d", m.Sequence, last)
			}
			last = m.Sequence
			var err error
			if hub, err = after(hub, m); err != nil {
				t.Fatal(err)
			}
			if err := q.acked(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := q.push(snapshotOf(1, "0")); err != nil {
			t.Fatal(err)
		}
		n := rapid.IntRange(1, 60).Draw(t, "messages")
		for i := 1; i <= n; i++ {
			m := deltaOf(uint64(i+1), fmt.Sprintf(`{"kernel":"%d","containers":{"c%d":{"id":"x"},"c%d":null}}`, i, i, i-2))
			if rapid.IntRange(0, 9).Draw(t, "whole") == 0 {
				m = snapshotOf(uint64(i+1), fmt.Sprint(i))
			}
			if _, err := q.push(m); err != nil {
				t.Fatal(err)
			}
			if len(q.items) > q.maxItems {
				t.Fatalf("%d wait, at most %d", len(q.items), q.maxItems)
			}
			for range rapid.IntRange(0, 2).Draw(t, "taken") {
				take()
			}
		}
		for len(q.items) > 0 {
			take()
		}
		var inv protocol.Inventory
		if err := json.Unmarshal(hub, &inv); err != nil || inv.Kernel != fmt.Sprint(n) {
			t.Fatalf("%s %v", hub, err)
		}
		if last != uint64(n+1) || q.bytes != 0 {
			t.Fatalf("last %d of %d, %d bytes", last, n+1, q.bytes)
		}
	})
}

func TestQueueBytes(t *testing.T) {
	q := newQueue()
	q.maxBytes = 2000
	_, err := q.push(snapshotOf(1, "0"))
	require.NoError(t, err)
	folded := 0
	for i := range 100 {
		f, err := q.push(deltaOf(uint64(i+2), `{"os":"`+string(make([]byte, 0))+fmt.Sprintf("%0200d", i)+`"}`))
		require.NoError(t, err)
		if f {
			folded++
		}
		require.LessOrEqual(t, q.bytes, 2600)
	}
	require.Positive(t, folded)
	require.True(t, q.items[0].Snapshot)
}

// A file that a crash cut off gives what is whole.
func TestSpool(t *testing.T) {
	path := filepath.Join(t.TempDir(), "inventory.jsonl")
	s := spool{path: path}
	q, err := s.load()
	require.NoError(t, err)
	q.base = snapshotOf(1, "1").Data
	for i := uint64(2); i < 6; i++ {
		m := deltaOf(i, `{"kernel":"x"}`)
		_, err := q.push(m)
		require.NoError(t, err)
		require.NoError(t, s.add(q, m))
	}
	s.close()
	r := spool{path: path}
	got, err := r.load()
	require.NoError(t, err)
	require.Equal(t, q.items, got.items)
	require.Equal(t, q.bytes, got.bytes)
	require.JSONEq(t, string(q.base), string(got.base))

	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, b[:len(b)-5], 0o600))
	got, err = r.load()
	require.NoError(t, err)
	require.Len(t, got.items, 3)
	require.NoError(t, r.clear())
	require.NoFileExists(t, path)
	require.NoError(t, r.clear())
}

// Small moves of what never stands still are not worth a message; large ones are.
func TestSettle(t *testing.T) {
	last := protocol.Inventory{MemoryTotal: 1000, MemoryUsed: 500, Load: &protocol.Load{One: 1}, Paths: map[string]protocol.Path{"3": {RTT: 10, RxRate: 100_000}},
		Containers: map[string]protocol.Container{"p/1": {CPUUsed: 1000, MemoryUsed: 10 << 20}}}
	same := protocol.Inventory{MemoryTotal: 1000, MemoryUsed: 515, Load: &protocol.Load{One: 1.4}, Paths: map[string]protocol.Path{"3": {RTT: 12, RxRate: 120_000}},
		Containers: map[string]protocol.Container{"p/1": {CPUUsed: 1100, MemoryUsed: 10<<20 + 5000}}}
	settle(last, &same)
	require.Equal(t, last, same)
	other := protocol.Inventory{MemoryTotal: 1000, MemoryUsed: 600, Load: &protocol.Load{One: 3}, Paths: map[string]protocol.Path{"3": {RTT: 30, Loss: 0.1, RxRate: 900_000}},
		Containers: map[string]protocol.Container{"p/1": {CPUUsed: 2000, MemoryUsed: 20 << 20}, "p/2": {State: "running"}}}
	want := other
	settle(last, &other)
	require.Equal(t, want, other)
}

// However many containers there are, facts fit a message, and say what is left out.
func TestFit(t *testing.T) {
	inv := protocol.Inventory{Hostname: "h", Containers: map[string]protocol.Container{}}
	for i := range 3000 {
		l := map[string]string{}
		for j := range 100 {
			l[fmt.Sprintf("label-%d", j)] = "a value of some length, as such things have"
		}
		id := fmt.Sprintf("%064d", i)
		inv.Containers["docker/"+id] = protocol.Container{ID: id, Name: "n", Labels: l}
	}
	bound(&inv)
	require.Len(t, inv.Containers, protocol.MaxContainers)
	b, err := fit(&inv)
	require.NoError(t, err)
	require.LessOrEqual(t, len(b), protocol.MaxInventory)
	require.Equal(t, []string{"1976 containers", "labels of containers"}, inv.LeftOut)
	require.Len(t, inv.Containers, protocol.MaxContainers)
}
