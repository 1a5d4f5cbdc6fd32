// Package services publishes declared services for readers: each as the admin API shows it, with its addresses, sites and what nodes say
// of its backends, in a bucket of JetStream, within a second or two of a change: it looks again and again, as what nodes say comes with
// each of their status. It leaves to its caller what a service is.
package services

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"causeway/hub/api"
	"causeway/hub/follow"
	"causeway/protocol"
)

// Bounds of what is published.
const (
	maxValue = 16 << 10 // bytes of one; a longer one is without its endpoints
	maxAll   = 64 << 20 // of all; who comes then is left out
	// leastPause is between two looks at all services; the pause is at least restTimes what the look took.
	leastPause = time.Second
	restTimes  = 10
	// writeRate is how many are written a second.
	writeRate  = 50
	putTimeout = 5 * time.Second
)

// Config configures a Publisher.
type Config struct {
	JetStream jetstream.JetStream
	// List is all services as they are now.
	List func(context.Context) ([]api.Service, error)
	Log  zerolog.Logger
}

// Publisher writes the bucket.
type Publisher struct {
	cfg     Config
	bucket  jetstream.KeyValue
	written map[string]written
	sum     int // bytes
}

type written struct {
	hash [32]byte
	size int
}

// New opens nothing.
func New(cfg Config) *Publisher { return &Publisher{cfg: cfg, written: map[string]written{}} }

// Run publishes until ctx ends.
func (p *Publisher) Run(ctx context.Context) error {
	failed := func(err error) { p.cfg.Log.Warn().Err(err).Msg("services are not published") }
	if !follow.Until(ctx, func() error { return p.open(ctx) }, failed) {
		return nil
	}
	for {
		begun := time.Now()
		if err := p.publish(ctx); err != nil && ctx.Err() == nil {
			failed(err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(leastPause, restTimes*time.Since(begun))):
		}
	}
}

// open makes the bucket, or brings it up to date, and reads what is there.
func (p *Publisher) open(ctx context.Context) (err error) {
	p.bucket, err = p.cfg.JetStream.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: protocol.ServicesBucket, Description: "services, and who serves them", History: 1, MaxValueSize: maxValue + 4096, Storage: jetstream.FileStorage})
	if err != nil {
		return fmt.Errorf("open the bucket of services: %w", err)
	}
	keys, err := p.bucket.ListKeys(ctx)
	if err != nil {
		return fmt.Errorf("read the bucket of services: %w", err)
	}
	clear(p.written)
	p.sum = 0
	for k := range keys.Keys() {
		p.written[k] = written{}
	}
	return nil
}

// publish writes what is other than it was written.
func (p *Publisher) publish(ctx context.Context) error {
	l, err := p.cfg.List(ctx)
	if err != nil {
		return err
	}
	there, full := map[string]bool{}, ""
	for _, s := range l {
		there[s.Name] = true
		b, err := encode(s)
		if err != nil {
			return err
		}
		now, was := written{sha256.Sum256(b), len(b)}, p.written[s.Name]
		if now == was {
			continue
		}
		if p.sum-was.size+len(b) > maxAll {
			full = s.Name
			continue
		}
		if err := p.do(ctx, func(ctx context.Context) error { _, err := p.bucket.Put(ctx, s.Name, b); return err }); err != nil {
			return fmt.Errorf("publish service %s: %w", s.Name, err)
		}
		p.written[s.Name], p.sum = now, p.sum-was.size+len(b)
	}
	for _, name := range slices.Sorted(maps.Keys(p.written)) {
		if there[name] {
			continue
		}
		err := p.do(ctx, func(ctx context.Context) error { return p.bucket.Purge(ctx, name) })
		if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
			return fmt.Errorf("publish that service %s is gone: %w", name, err)
		}
		p.sum -= p.written[name].size
		delete(p.written, name)
	}
	if full != "" {
		return fmt.Errorf("all services together take %d MiB, and no more may be: some are left out, such as %s", maxAll>>20, full)
	}
	return nil
}

// do writes once, and lets as much time pass as that may take of a second.
func (p *Publisher) do(ctx context.Context, f func(context.Context) error) error {
	wctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	if err := f(wctx); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Second / writeRate):
		return nil
	}
}

func encode(s api.Service) ([]byte, error) {
	b, err := json.Marshal(s)
	if err == nil && len(b) > maxValue {
		s.Endpoints = nil
		b, err = json.Marshal(s)
	}
	if err == nil && len(b) > maxValue { // of more sites than a person reads
		s.Sites, s.Findings = nil, nil
		b, err = json.Marshal(s)
	}
	return b, err // what an operator declared is bounded by the state
}
