// Package follow reads a JetStream stream as it grows, in order. It takes the place of the
// client's ordered consumer, which waits without end, whatever its context says,
// while a cluster has no majority.
package follow

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	createTimeout = 5 * time.Second
	// pause is between a failure and the next attempt.
	pause = time.Second
	// idle is when the server forgets a consumer that nobody asks any more.
	idle = 30 * time.Second
	// A consumer lives on one server. One of which nothing is heard for two heartbeats is
	// given up for another.
	expiry    = 10 * time.Second
	heartbeat = 2 * time.Second
	// What the server sends ahead: more is asked for when half of the messages have been taken.
	// The bytes are more than the largest message.
	atOnce      = 64
	atOnceBytes = 3 << 19
)

// Retry is how long Until waits between two attempts.
const Retry = 2 * time.Second

// Until opens what is to be followed, again and again until that succeeds; failed hears of each error. It is false once ctx ends.
func Until(ctx context.Context, open func() error, failed func(error)) bool {
	for {
		err := open()
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		failed(err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(Retry):
		}
	}
}

var errGap = errors.New("messages are missing")

// Stream calls each with every message of s that comes after the one with the sequence that
// last returns, one after the other, until ctx ends. When they cannot be had it tells
// failed, once, and begins again after what last returns then: so a message may come
// twice. It returns within a moment of ctx's end. With subjects, only messages of these
// come.
func Stream(ctx context.Context, s jetstream.Stream, last func() uint64, each func(jetstream.Msg, *jetstream.MsgMetadata), failed func(error), subjects ...string) {
	told := false
	for {
		err := once(ctx, s, last()+1, subjects, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
			told = false
			each(m, meta)
		})
		if ctx.Err() != nil {
			return
		}
		if !told {
			failed(err)
			told = true
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// once follows s from a sequence on until messages cannot be had.
func once(ctx context.Context, s jetstream.Stream, from uint64, subjects []string, each func(jetstream.Msg, *jetstream.MsgMetadata)) error {
	cctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	cons, err := s.CreateConsumer(cctx, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from, FilterSubjects: subjects, AckPolicy: jetstream.AckNonePolicy,
		MemoryStorage: true, Replicas: 1, InactiveThreshold: idle,
	})
	if err != nil {
		return fmt.Errorf("make a consumer: %w", err)
	}
	it, err := cons.Messages(jetstream.PullExpiry(expiry), jetstream.PullHeartbeat(heartbeat), jetstream.PullMaxMessagesWithBytesLimit(atOnce, atOnceBytes))
	if err != nil {
		return err
	}
	defer it.Stop()
	for n := uint64(1); ; n++ {
		m, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		if meta.Sequence.Consumer != n {
			return errGap
		}
		each(m, meta)
	}
}
