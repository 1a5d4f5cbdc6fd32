// Package facts is what nodes tell of themselves. It has what its parts share: how the stream of nodes' messages is read (Follow, which says
// whose a message is) and how a part's news are watched (Watchers).
//
//	facts/inventory  what a node is like now: snapshots and deltas, folded
//	facts/incident   what went wrong on nodes
//	facts/event      what happened on the hub, and its publication for readers
//	facts/flow       what nodes log of flows
//
// A message goes from the agent over hub/bus into the inventory's stream; both inventory
// and incident follow that, and each takes what is its own. Flows have a stream of their own.
package facts

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"causeway/hub/follow"
	"causeway/protocol"
)

// Message is one message of a node, as it lies in the inventory's stream. Every byte of Subject and
// Data is a stranger's.
type Message struct {
	Origin   protocol.FactOrigin // whose it is and of what; the zero value with Err
	Err      error               // the subject is none of a node's facts
	Subject  string
	Data     []byte
	Stream   uint64    // sequence in the stream
	Received time.Time // by the hub's server
}

// Read returns a message, with what its subject says.
func Read(subject string, data []byte, stream uint64, received time.Time) Message {
	o, err := protocol.ParseFactSubject(subject)
	return Message{Origin: o, Err: err, Subject: subject, Data: data, Stream: stream, Received: received}
}

// Follow calls each with every message of the inventory's stream that comes after the one with
// the sequence that last returns, as follow.Stream does it: one after the other, in order, until
// ctx ends; a message may come twice. With subjects, only messages of these come.
func Follow(ctx context.Context, s jetstream.Stream, last func() uint64, each func(Message), failed func(error), subjects ...string) {
	follow.Stream(ctx, s, last, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
		each(Read(m.Subject(), m.Data(), meta.Sequence.Stream, meta.Timestamp))
	}, failed, subjects...)
}
