package inventory

import (
	"encoding/json"
	"fmt"
	"time"

	"causeway/protocol"
)

// Bounds of what waits for a hub: beyond them the oldest messages are folded into one
// snapshot.
const (
	maxQueued      = 1000
	maxQueuedBytes = 4 << 20
)

// message is one that waits to be acknowledged.
type message struct {
	Snapshot bool            `json:"snapshot,omitempty"`
	Boot     protocol.BootID `json:"boot"`
	Sequence uint64          `json:"seq"`
	Data     json.RawMessage `json:"data"`
}

// queue holds what the hub has not acknowledged, in order, and the facts as the hub has
// them. It does no I/O. Not safe for concurrent use.
type queue struct {
	base  []byte // facts before the first message; nil: not known
	items []message
	bytes int

	maxItems, maxBytes int
}

func newQueue() *queue { return &queue{maxItems: maxQueued, maxBytes: maxQueuedBytes} }

// push appends a message and folds if there are too many now. It reports whether it
// did, as then what is stored has to be written anew.
func (q *queue) push(m message) (folded bool, err error) {
	q.items = append(q.items, m)
	q.bytes += len(m.Data)
	if len(q.items) <= q.maxItems && q.bytes <= q.maxBytes {
		return false, nil
	}
	return true, q.fold()
}

// head is the message to send next.
func (q *queue) head() (message, bool) {
	if len(q.items) == 0 {
		return message{}, false
	}
	return q.items[0], true
}

// acked takes the first message out: the hub has it.
func (q *queue) acked() error {
	m := q.items[0]
	base, err := after(q.base, m)
	q.base = base
	q.items = q.items[1:]
	q.bytes -= len(m.Data)
	return err
}

// fold makes one snapshot of the older half. A snapshot in it makes what lies before
// it superfluous; without one, the facts as the hub has them are where it begins.
func (q *queue) fold() error {
	n := max(2, (len(q.items)+1)/2)
	if n > len(q.items) {
		return nil // one message alone is as small as it gets
	}
	facts := q.base
	for _, m := range q.items[:n] {
		var err error
		if facts, err = after(facts, m); err != nil {
			return err
		}
	}
	if facts == nil { // deltas of which nobody knows the beginning
		return fmt.Errorf("fold %d messages: no snapshot to begin with", n)
	}
	last := q.items[n-1]
	snap, err := withHeader(facts, last)
	if err != nil {
		return err
	}
	for _, m := range q.items[:n] {
		q.bytes -= len(m.Data)
	}
	q.items = append([]message{{Snapshot: true, Boot: last.Boot, Sequence: last.Sequence, Data: snap}}, q.items[n:]...)
	q.bytes += len(snap)
	return nil
}

// after is what the facts are once m is applied. Unknown facts stay unknown until a
// snapshot.
func after(facts []byte, m message) ([]byte, error) {
	if m.Snapshot {
		return m.Data, nil
	}
	if facts == nil {
		return nil, nil
	}
	var d protocol.InventoryDelta
	if err := json.Unmarshal(m.Data, &d); err != nil {
		return nil, fmt.Errorf("read delta %d: %w", m.Sequence, err)
	}
	return protocol.MergePatch(facts, d.Changes)
}

// withHeader is facts as the message that follows from m.
func withHeader(facts []byte, m message) ([]byte, error) {
	var h struct {
		Time time.Time `json:"time"`
	}
	if err := json.Unmarshal(m.Data, &h); err != nil {
		return nil, fmt.Errorf("read message %d: %w", m.Sequence, err)
	}
	patch, err := json.Marshal(map[string]any{"v": protocol.Version, "seq": m.Sequence, "boot_id": m.Boot, "time": h.Time})
	if err != nil {
		return nil, err
	}
	return protocol.MergePatch(facts, patch)
}
