package inventory

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"causeway/protocol"
)

// Interval is how often a snapshot is published when nothing changes.
const Interval = 10 * time.Minute

// Times of one attempt.
const (
	connectTimeout = 10 * time.Second
	ackTimeout     = 10 * time.Second
	pingInterval   = 30 * time.Second
	// minInterval keeps a host on which containers come and go from
	// publishing all the time.
	minInterval = 2 * time.Second
)

// Publisher publishes snapshots. It lives as long as its agent; Run is called
// for each control session.
type Publisher struct {
	// Snapshot gathers what is published; Sequence is set by the Publisher.
	Snapshot func(context.Context) protocol.Inventory
	Number   protocol.NodeNumber
	Site     string
	// Report hears whether inventory reaches the hub: nil, or why not.
	Report func(error)
	Log    zerolog.Logger

	changed chan struct{}
	seq     uint64
}

// New fills in what is not set from outside.
func New(p Publisher) *Publisher {
	p.changed = make(chan struct{}, 1)
	return &p
}

// Changed asks for a snapshot soon.
func (p *Publisher) Changed() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// Run connects over streams that open makes and publishes until ctx ends: on
// every connect, every Interval and after Changed. Nothing is queued: a
// snapshot that could not be sent is gathered anew, and is then the truth.
func (p *Publisher) Run(ctx context.Context, open func(context.Context) (net.Conn, error)) {
	b := backoff.NewExponentialBackOff(backoff.WithInitialInterval(200*time.Millisecond), backoff.WithMaxInterval(10*time.Second), backoff.WithMaxElapsedTime(0))
	for ctx.Err() == nil {
		start := time.Now()
		err := p.session(ctx, open)
		if ctx.Err() != nil {
			return
		}
		p.Report(err)
		p.Log.Debug().Err(err).Msg("nats connection ended")
		if time.Since(start) > time.Minute {
			b.Reset()
		}
		select {
		case <-ctx.Done():
		case <-time.After(b.NextBackOff()):
		}
	}
}

// dialer hands nats.go the control channel's stream instead of a socket.
type dialer struct {
	ctx  context.Context
	open func(context.Context) (net.Conn, error)
}

// Dial implements nats.CustomDialer. nats.go gives it no timeout, and the
// address that it is given means nothing here.
func (d dialer) Dial(string, string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.ctx, connectTimeout)
	defer cancel()
	return d.open(ctx)
}

// session is one NATS connection. The control channel's session is the
// identity: no credentials are sent.
func (p *Publisher) session(ctx context.Context, open func(context.Context) (net.Conn, error)) error {
	closed := make(chan struct{})
	nc, err := nats.Connect("nats://hub:4222",
		nats.SetCustomDialer(dialer{ctx, open}),
		nats.SkipHostLookup(), // the name is none
		nats.Name(fmt.Sprintf("causeway-agent %d", p.Number)),
		nats.CustomInboxPrefix(protocol.InboxPrefix(p.Number)),
		nats.NoReconnect(), // Run does it, on a stream of the session that is up then
		nats.IgnoreDiscoveredServers(),
		nats.Timeout(connectTimeout),
		nats.PingInterval(pingInterval),
		nats.ClosedHandler(func(*nats.Conn) { close(closed) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			p.Log.Warn().Err(err).Msg("nats refused something")
		}),
	)
	if err != nil {
		return fmt.Errorf("connect to the hub's NATS server: %w", err)
	}
	defer func() {
		nc.Close()
		<-closed
	}()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	t := time.NewTicker(Interval)
	defer t.Stop()
	for {
		if err := p.publish(ctx, js, closed); err != nil {
			return err
		}
		p.Report(nil)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-closed:
		case <-time.After(minInterval):
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-closed:
			return fmt.Errorf("the hub's NATS server closed the connection: %w", errOr(nc.LastError(), nats.ErrConnectionClosed))
		case <-t.C:
		case <-p.changed:
		}
	}
}

func errOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// publish sends one snapshot and waits for JetStream's acknowledgement, again
// and again while the connection stands.
func (p *Publisher) publish(ctx context.Context, js jetstream.JetStream, closed <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	send := func() error {
		inv := p.Snapshot(ctx)
		p.seq++
		inv.Sequence = p.seq
		b, err := json.Marshal(inv)
		if err != nil {
			return backoff.Permanent(err)
		}
		if len(b) > protocol.MaxInventory {
			return backoff.Permanent(fmt.Errorf("snapshot of %d bytes is larger than %d", len(b), protocol.MaxInventory))
		}
		actx, cancel := context.WithTimeout(ctx, ackTimeout)
		defer cancel()
		m := nats.NewMsg(protocol.InventorySubject(p.Site, p.Number))
		m.Data = b
		_, err = js.PublishMsg(actx, m, jetstream.WithMsgID(fmt.Sprintf("%s-%d", inv.BootID, inv.Sequence)))
		return err
	}
	b := backoff.NewExponentialBackOff(backoff.WithInitialInterval(200*time.Millisecond), backoff.WithMaxInterval(30*time.Second), backoff.WithMaxElapsedTime(0))
	err := backoff.RetryNotify(send, backoff.WithContext(b, ctx), func(err error, _ time.Duration) {
		if ctx.Err() == nil {
			p.Report(fmt.Errorf("publish inventory: %w", err))
		}
	})
	if err != nil {
		return fmt.Errorf("publish inventory: %w", err)
	}
	return nil
}
