package inventory

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"causeway/protocol"
)

// present is what is known of a node now. The document is kept as JSON: typed, it takes three
// times the memory, and it is read far less often than it changes.
type present struct {
	site     string
	number   protocol.NodeNumber
	boot     protocol.BootID
	seq      uint64
	received time.Time
	stream   uint64 // sequence in the stream of the message that made them so
	doc      []byte // protocol.Inventory, cleaned
}

// verdict is what became of a message.
type verdict int

const (
	taken verdict = iota
	old           // it was taken before
	gap           // the one before it is missing: a snapshot is needed
)

// fold applies one message to f, which may be nil, and returns the facts after it. An error is a
// message that makes no sense; f holds on then.
func fold(f *present, o protocol.FactOrigin, data []byte, stream uint64, received time.Time) (next *present, v verdict, err error) {
	if f != nil && stream <= f.stream {
		return f, old, nil
	}
	next = &present{site: o.Site, number: o.Node, received: received, stream: stream}
	var inv protocol.Inventory
	if o.Kind == protocol.FactDelta {
		d, err := decodeDelta(data)
		if err != nil {
			return f, taken, err
		}
		switch {
		case f != nil && d.BootID == f.boot && d.Sequence <= f.seq:
			return f, old, nil
		case f == nil || f.site != o.Site || d.BootID != f.boot || d.Sequence != f.seq+1:
			return f, gap, nil
		}
		merged, err := protocol.MergePatch(f.doc, d.Changes)
		if err != nil {
			return f, taken, err
		}
		if inv, err = decodeSnapshot(merged); err != nil {
			return f, taken, fmt.Errorf("with its changes: %w", err)
		}
		inv.Version, inv.Sequence, inv.BootID, inv.Time = d.Version, d.Sequence, d.BootID, d.Time
	} else {
		if inv, err = decodeSnapshot(data); err != nil {
			return f, taken, err
		}
		if f != nil && inv.BootID == f.boot && inv.Sequence < f.seq {
			return f, old, nil
		}
	}
	next.boot, next.seq = inv.BootID, inv.Sequence
	if next.doc, err = json.Marshal(inv); err != nil {
		return f, taken, err
	}
	if len(next.doc) > 2*protocol.MaxInventory {
		return f, taken, errors.New("facts grew too long")
	}
	return next, taken, nil
}

// changed is the merge patch from one document to the other without what differs in every
// message; nil: nothing else does. It takes some twenty times the memory of a long document for a moment, so
// it is for who wants it.
func changed(from, to []byte) []byte {
	p, ok, err := protocol.DiffPatch(from, to)
	if err != nil || !ok {
		return nil
	}
	var m map[string]json.RawMessage
	if json.Unmarshal(p, &m) != nil {
		return nil
	}
	for _, k := range []string{"v", "seq", "boot_id", "time"} {
		delete(m, k)
	}
	if len(m) == 0 {
		return nil
	}
	p, _ = json.Marshal(m)
	return p
}

// inventory is the document, typed.
func (f *present) inventory() (inv protocol.Inventory) {
	_ = json.Unmarshal(f.doc, &inv) // our own
	return inv
}
