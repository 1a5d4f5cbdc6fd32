package inventory

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"causeway/protocol"
)

// How often facts are looked at and sent.
const (
	// SnapshotInterval is how often a snapshot is sent while a hub is there.
	SnapshotInterval = 10 * time.Minute
	// PollInterval is how often facts are looked at that no event tells of: load,
	// memory, disks, rates.
	PollInterval = 30 * time.Second
	// minInterval keeps a host on which containers come and go from sending all the
	// time.
	minInterval = 500 * time.Millisecond
	// askInterval is how often a hub may ask for a snapshot.
	askInterval = 5 * time.Second
)

// Times of one attempt.
const (
	connectTimeout = 10 * time.Second
	ackTimeout     = 10 * time.Second
	pingInterval   = 30 * time.Second
	gatherTimeout  = 20 * time.Second
	flowTimeout    = 5 * time.Second
	flowRetry      = 20 * time.Second
)

// PublisherConfig configures a Publisher.
type PublisherConfig struct {
	// Facts gathers what is sent; version, sequence and boot id are set by the Publisher.
	Facts func(context.Context) protocol.Inventory
	// Changes fires when facts may have changed.
	Changes <-chan struct{}
	Number  protocol.NodeNumber
	Site    string
	Boot    protocol.BootID
	// File keeps what waits while no hub is there; empty: it is lost with the agent.
	File string
	// Incidents are told as well; nil: there are none.
	Incidents Incidents
	// Flows are told when nothing else waits; nil: there are none.
	Flows Flows
	// Switches of services are told likewise; nil: there are none.
	Switches Switches
	// Report hears whether inventory reaches the hub: nil, or why not.
	Report func(error)
	Log    zerolog.Logger
}

// Incidents is what a Publisher needs of the node's incidents.
type Incidents interface {
	Changed() <-chan struct{} // there may be one to tell
	Untold() (protocol.Incident, bool)
	Told(protocol.Incident) error // a hub has it as it is here
}

// Flows is what a Publisher needs of the node's log of flows.
type Flows interface {
	Changed() <-chan struct{} // there may be a report to send
	Next() (protocol.FlowReport, bool)
	Sent(protocol.FlowReport) // a hub has it
}

// Switches is what a Publisher needs of what the node switched of services.
type Switches interface {
	Changed() <-chan struct{} // there may be a report to send
	Next() (protocol.SwitchReport, bool)
	Sent(protocol.SwitchReport) // a hub has it
}

// Publisher sends the node's facts in order: snapshots, and deltas between them. What
// no hub has acknowledged waits, over restarts too. Follow gathers for as long as
// the agent lives; Run sends, for each control session.
type Publisher struct {
	cfg PublisherConfig

	asked chan struct{}
	more  chan struct{} // the queue got a message

	mu        sync.Mutex
	queue     *queue
	spool     spool
	connected bool
	seq       uint64
	last      protocol.Inventory // as it was pushed last
	doc       []byte             // the same, without what differs in each message
}

// New opens nothing.
func New(cfg PublisherConfig) *Publisher {
	return &Publisher{cfg: cfg, asked: make(chan struct{}, 1), more: make(chan struct{}, 1), queue: newQueue(), spool: spool{path: cfg.File}}
}

// Ask asks for a snapshot soon.
func (p *Publisher) Ask() { signal(p.asked) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Follow gathers facts until ctx ends: at once, after changes, at every PollInterval
// and when a snapshot was asked for.
func (p *Publisher) Follow(ctx context.Context) error {
	p.mu.Lock()
	q, err := p.spool.load()
	if err != nil {
		p.cfg.Log.Warn().Err(err).Msg("inventory that waited is lost")
	}
	p.queue = q
	p.mu.Unlock()
	defer p.end()
	p.gather(ctx, true)
	poll, snapshot := time.NewTicker(PollInterval), time.NewTicker(SnapshotInterval)
	defer poll.Stop()
	defer snapshot.Stop()
	var lastAsked time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(minInterval):
		}
		whole := false
		select {
		case <-ctx.Done():
			return nil
		case <-p.cfg.Changes:
		case <-poll.C:
		case <-snapshot.C:
			if whole = p.isConnected(); !whole { // what happened is told by deltas
				continue
			}
		case <-p.asked:
			whole = true
			if wait := askInterval - time.Since(lastAsked); wait > 0 {
				time.AfterFunc(wait, p.Ask)
				continue
			}
			lastAsked = time.Now()
		}
		p.gather(ctx, whole)
	}
}

func (p *Publisher) isConnected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connected
}

// end keeps what waits for the next start.
func (p *Publisher) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keep()
	p.spool.close()
}

// keep writes what waits to disk, or removes the file. p.mu is held.
func (p *Publisher) keep() {
	err := p.spool.clear
	if len(p.queue.items) > 0 {
		err = func() error { return p.spool.write(p.queue) }
	}
	if err := err(); err != nil {
		p.cfg.Log.Warn().Err(err).Msg("inventory waits in memory alone")
	}
}

// gather takes the facts and queues what changed, or all of them if whole.
func (p *Publisher) gather(ctx context.Context, whole bool) {
	gctx, cancel := context.WithTimeout(ctx, gatherTimeout)
	inv := p.cfg.Facts(gctx)
	cancel()
	if ctx.Err() != nil {
		return // cut short
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.take(inv, whole); err != nil {
		p.cfg.Log.Error().Err(err).Msg("inventory not sent")
	}
}

// take queues inv. p.mu is held.
func (p *Publisher) take(inv protocol.Inventory, whole bool) error {
	bound(&inv)
	if p.doc == nil {
		whole = true
	}
	if !whole {
		settle(p.last, &inv)
	}
	now := inv.Time
	inv.Version, inv.Sequence, inv.BootID, inv.Time = protocol.Version, 0, protocol.BootID{}, time.Time{}
	doc, err := fit(&inv)
	if err != nil {
		return err
	}
	m := message{Boot: p.cfg.Boot, Sequence: p.seq + 1}
	if !whole {
		patch, changed, err := protocol.DiffPatch(p.doc, doc)
		if err != nil || !changed {
			return err
		}
		if whole = len(patch) >= len(doc); !whole {
			if m.Data, err = json.Marshal(protocol.InventoryDelta{Version: protocol.Version, Sequence: m.Sequence, BootID: p.cfg.Boot, Time: now, Changes: patch}); err != nil {
				return err
			}
		}
	}
	p.last, p.doc = inv, doc
	if whole {
		inv.Sequence, inv.BootID, inv.Time = m.Sequence, p.cfg.Boot, now
		m.Snapshot = true
		if m.Data, err = json.Marshal(inv); err != nil {
			return err
		}
	}
	p.seq++
	folded, err := p.queue.push(m)
	if err != nil {
		return err
	}
	if !p.connected {
		err = p.spool.add(p.queue, m)
		if folded {
			err = p.spool.write(p.queue)
		}
		if err != nil {
			p.cfg.Log.Warn().Err(err).Msg("inventory waits in memory alone")
		}
	}
	signal(p.more)
	return nil
}

// Run connects over streams that open makes and sends what waits until ctx ends.
func (p *Publisher) Run(ctx context.Context, open func(context.Context) (net.Conn, error)) {
	b := backoff.NewExponentialBackOff(backoff.WithInitialInterval(200*time.Millisecond), backoff.WithMaxInterval(10*time.Second), backoff.WithMaxElapsedTime(0))
	for ctx.Err() == nil {
		start := time.Now()
		err := p.session(ctx, open)
		p.away()
		if ctx.Err() != nil {
			return
		}
		p.cfg.Report(err)
		p.cfg.Log.Debug().Err(err).Msg("nats connection ended")
		if time.Since(start) > time.Minute {
			b.Reset()
		}
		select {
		case <-ctx.Done():
		case <-time.After(b.NextBackOff()):
		}
	}
}

// away notes that there is no hub.
func (p *Publisher) away() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.connected {
		p.connected = false
		p.keep()
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
		nats.Name(fmt.Sprintf("causeway-agent %d", p.cfg.Number)),
		nats.CustomInboxPrefix(protocol.InboxPrefix(p.cfg.Number)),
		nats.NoReconnect(), // Run does it, on a stream of the session that is up then
		nats.IgnoreDiscoveredServers(),
		nats.Timeout(connectTimeout),
		nats.PingInterval(pingInterval),
		nats.ClosedHandler(func(*nats.Conn) { close(closed) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			p.cfg.Log.Warn().Err(err).Msg("nats refused something")
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
	if _, err := nc.Subscribe(protocol.AskSubject(p.cfg.Number), func(*nats.Msg) { p.Ask() }); err != nil {
		return fmt.Errorf("listen to the hub: %w", err)
	}
	p.arrived()
	var incidents, flows, switches <-chan struct{}
	if p.cfg.Switches != nil {
		switches = p.cfg.Switches.Changed()
	}
	if p.cfg.Flows != nil {
		flows = p.cfg.Flows.Changed()
	}
	if p.cfg.Incidents != nil {
		incidents = p.cfg.Incidents.Changed()
	}
	for {
		if err := p.tellIncidents(ctx, js, closed); err != nil {
			return err
		}
		m, ok := p.next()
		if ok {
			if err := p.sendFacts(ctx, js, m, closed); err != nil {
				return err
			}
			p.acknowledged(m)
			p.cfg.Report(nil)
			continue
		}
		moreSwitches, later := p.tellSwitches(ctx, js)
		moreFlows, laterFlows := p.tellFlows(ctx, js)
		if moreSwitches || moreFlows {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-closed:
			return fmt.Errorf("the hub's NATS server closed the connection: %w", errOr(nc.LastError(), nats.ErrConnectionClosed))
		case <-p.more:
		case <-incidents:
		case <-flows:
		case <-switches:
		case <-later:
		case <-laterFlows:
		}
	}
}

// arrived notes that there is a hub. It gets a snapshot after what waits, unless
// a snapshot is all that waits.
func (p *Publisher) arrived() {
	p.mu.Lock()
	p.connected = true
	fresh := len(p.queue.items) == 1 && p.queue.items[0].Snapshot && p.queue.items[0].Boot == p.cfg.Boot || p.doc == nil
	p.mu.Unlock()
	if !fresh {
		p.Ask()
	}
}

func (p *Publisher) next() (message, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.queue.head()
}

// acknowledged takes m out, unless it was folded meanwhile: then the snapshot that it
// went into is sent too.
func (p *Publisher) acknowledged(m message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h, ok := p.queue.head(); !ok || h.Boot != m.Boot || h.Sequence != m.Sequence {
		return
	}
	if err := p.queue.acked(); err != nil {
		p.cfg.Log.Warn().Err(err).Msg("inventory queue")
		signal(p.asked)
	}
	if len(p.queue.items) == 0 {
		if err := p.spool.clear(); err != nil {
			p.cfg.Log.Warn().Err(err).Msg("inventory queue")
		}
	}
}

func errOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// tellIncidents publishes the incidents that no hub has as they are here.
func (p *Publisher) tellIncidents(ctx context.Context, js jetstream.JetStream, closed <-chan struct{}) error {
	for p.cfg.Incidents != nil {
		i, ok := p.cfg.Incidents.Untold()
		if !ok {
			return nil
		}
		msg := nats.NewMsg(protocol.IncidentSubject(p.cfg.Site, p.cfg.Number))
		var err error
		if msg.Data, err = json.Marshal(i); err != nil {
			return fmt.Errorf("encode an incident: %w", err)
		}
		if err := p.send(ctx, js, msg, fmt.Sprintf("%s-incident-%d-%d", p.cfg.Boot, i.Number, i.Revision), closed); err != nil {
			return err
		}
		if err := p.cfg.Incidents.Told(i); err != nil { // it is told again after a restart, then
			p.cfg.Log.Warn().Err(err).Msg("incidents")
		}
	}
	return nil
}

// tellFlows publishes a report of flows, once: it is no reason to keep facts waiting. more: there may be another;
// later fires when it is to be tried again.
func (p *Publisher) tellFlows(ctx context.Context, js jetstream.JetStream) (more bool, later <-chan time.Time) {
	if p.cfg.Flows == nil {
		return false, nil
	}
	r, ok := p.cfg.Flows.Next()
	if !ok {
		return false, nil
	}
	if later = p.tellOnce(ctx, js, protocol.FlowSubject(p.cfg.Site, p.cfg.Number), r, protocol.MaxFlowReport, fmt.Sprintf("%s-flows-%d", p.cfg.Boot, r.Time.UnixNano())); later != nil {
		return false, later
	}
	p.cfg.Flows.Sent(r)
	return true, nil
}

// tellSwitches is tellFlows of switches.
func (p *Publisher) tellSwitches(ctx context.Context, js jetstream.JetStream) (more bool, later <-chan time.Time) {
	if p.cfg.Switches == nil {
		return false, nil
	}
	r, ok := p.cfg.Switches.Next()
	if !ok {
		return false, nil
	}
	r.BootID = p.cfg.Boot
	if later = p.tellOnce(ctx, js, protocol.SwitchesSubject(p.cfg.Site, p.cfg.Number), r, protocol.MaxSwitchReport, fmt.Sprintf("%s-switches-%d-%d", p.cfg.Boot, r.Switches[0].Number, len(r.Switches))); later != nil {
		return false, later
	}
	p.cfg.Switches.Sent(r)
	return true, nil
}

// tellOnce publishes a report; later fires when it is to be tried again, nil: it is told, or is no report that a hub takes.
func (p *Publisher) tellOnce(ctx context.Context, js jetstream.JetStream, subject string, report any, most int, id string) (later <-chan time.Time) {
	b, err := json.Marshal(report)
	if err != nil || len(b) > most {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, flowTimeout)
	defer cancel()
	if _, err = js.Publish(ctx, subject, b, jetstream.WithMsgID(id), jetstream.WithRetryAttempts(0)); err != nil {
		p.cfg.Log.Debug().Err(err).Msg("a report is not sent yet")
		return time.After(flowRetry)
	}
	return nil
}

// sendFacts publishes one message of the queue.
func (p *Publisher) sendFacts(ctx context.Context, js jetstream.JetStream, m message, closed <-chan struct{}) error {
	msg := nats.NewMsg(protocol.DeltaSubject(p.cfg.Site, p.cfg.Number))
	if m.Snapshot {
		msg.Subject = protocol.InventorySubject(p.cfg.Site, p.cfg.Number)
	}
	msg.Data = m.Data
	return p.send(ctx, js, msg, fmt.Sprintf("%s-%d", m.Boot, m.Sequence), closed)
}

// send publishes a message and waits for JetStream's acknowledgement, again and
// again while the connection stands.
func (p *Publisher) send(ctx context.Context, js jetstream.JetStream, msg *nats.Msg, id string, closed <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	attempt := func() error {
		actx, cancel := context.WithTimeout(ctx, ackTimeout)
		defer cancel()
		_, err := js.PublishMsg(actx, msg, jetstream.WithMsgID(id))
		return err
	}
	b := backoff.NewExponentialBackOff(backoff.WithInitialInterval(200*time.Millisecond), backoff.WithMaxInterval(30*time.Second), backoff.WithMaxElapsedTime(0))
	kept := false
	err := backoff.RetryNotify(attempt, backoff.WithContext(b, ctx), func(err error, _ time.Duration) {
		if ctx.Err() != nil {
			return
		}
		p.cfg.Report(fmt.Errorf("publish inventory: %w", err))
		if !kept {
			p.mu.Lock()
			p.keep()
			p.mu.Unlock()
			kept = true
		}
	})
	if err != nil {
		return fmt.Errorf("publish inventory: %w", err)
	}
	return nil
}
