// Package reconcile is what the hub does by itself. Each step is a pure function over the state and a snapshot of the
// fleet, which says what is to be done; a Loop runs them all, does what they say, and counts
// it by the step's name. What a step changes is the state, the tunnel's nodes, or the fleet's netmaps; sessions follow
// from these. Steps never wait for the state log: what is to be stored is stored beside the loop.
package reconcile

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"causeway/hub/facts/event"
	"causeway/hub/fleet"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/protocol"
	"causeway/tunnel"
)

// Tunnel is what of tunnel.Hub is needed here.
type Tunnel interface {
	// SetNodes replaces the nodes; whole state.
	SetNodes([]tunnel.HubNode) error
	// SetRelayBounds replaces what bounds the relay; whole state.
	SetRelayBounds([]tunnel.RelayBound)
	// Bound lists the underlay addresses bound for a node, newest first.
	Bound(protocol.NodeNumber) []netip.AddrPort
	// Proven is when a node last proved an address; zero: it is bound nowhere.
	Proven(protocol.NodeNumber) time.Time
	// BoundChanged receives, coalesced, when any of these change.
	BoundChanged() <-chan struct{}
}

// Sessions is what of the control sessions is needed here. None of it blocks. A session that has ended hears nothing.
type Sessions interface {
	// Farewell tells the agent of ses that its node is gone and ends the session, within half a second, and then calls done.
	Farewell(ses *fleet.Session, done func())
	// TellMark sends the agent of ses the mark of the state, if it can.
	TellMark(ses *fleet.Session, m protocol.StateMark)
}

// Config configures a Loop.
type Config struct {
	Cluster  protocol.ClusterPrivateKey
	Store    *state.Store
	Fleet    *fleet.Table
	Sessions Sessions
	Tunnel   Tunnel
	Boots    Boots // what the tunnel sees of boot ids; nil: nothing
	Facts    Facts // of nodes; nil: none, and no pods
	Events   *event.Log
	// New says that the state log was made in this run.
	New bool
	// Memory is a file that keeps what is known live of nodes for the next run; empty: none.
	Memory string
	Log    zerolog.Logger
}

// Loop runs the steps. Its other methods may be called concurrently with Run.
type Loop struct {
	cfg     Config
	metrics *metrics
	steps   []*step
	pace    pace // of netmaps
	work    sync.WaitGroup

	talk        talk
	pods        pods
	serve       services
	stage       atomic.Int32 // of talk
	goneList    goneList
	fingerprint string // of the tunnel's nodes
	bounded     bool   // the relay is, by a limit
	marked      uint64 // the last transaction of which sessions were told
	wasBound    map[protocol.NodeNumber][]netip.AddrPort
	moved       []protocol.NodeNumber // bound elsewhere since that was told
}

// New starts nothing.
func New(cfg Config) *Loop {
	l := &Loop{cfg: cfg, wasBound: map[protocol.NodeNumber][]netip.AddrPort{}}
	l.stage.Store(int32(policy.Whole))
	l.steps = l.all()
	for _, s := range l.steps {
		s.busy = make(chan struct{}, 1)
	}
	l.metrics = newMetrics(l.steps)
	return l
}

// trigger is why the loop is awake; a step runs at any of those that it names.
type trigger uint8

const (
	onState   trigger = 1 << iota // the state changed
	onGone                        // a node that is gone may have to be told so, or was
	onBoot                        // a node has proven another boot id
	onPace                        // netmaps are due
	onFinish                      // the hub stops
	onTalk                        // others may talk to each other than before
	onArrived                     // nodes have what was waited for
)

// step is one thing that the hub does by itself.
type step struct {
	name  string
	on    trigger
	every time.Duration // so often, too; 0: not by time
	run   func(context.Context, *turn) error
	// fatal says that the hub cannot go on without it.
	fatal bool

	due  time.Time     // of every
	busy chan struct{} // full while storeAlone stores something
}

// all are the steps, in the order in which they run.
func (l *Loop) all() []*step {
	return []*step{
		{name: "revoke", on: onState | onGone, run: l.revoke},
		{name: "policy", on: onState | onArrived, every: lookEvery, run: l.policy},    // before those that it binds
		{name: "tunnel", on: onState | onGone | onTalk, run: l.setNodes, fatal: true}, // after those who are told are known
		{name: "limits", on: onState, run: l.limits},
		{name: "clone", on: onBoot, run: l.clone},
		{name: "memory", on: onFinish, every: fleet.SaveEvery, run: l.save},
		{name: "missed", every: fleet.StartGrace, run: l.missed},
		{name: "judge", every: lookEvery, run: l.judge},
		{name: "departure", every: lookEvery, run: l.departure},
		{name: "proof", every: lookEvery, run: l.proof},
		{name: "upgrade", every: lookEvery, run: l.upgrade},
		{name: "mark", every: markEvery, run: l.mark},
		{name: "restored", every: settlePoll, run: l.restored},
		{name: "unconfirmed", on: onState, every: lookEvery, run: l.unconfirmed},
		{name: "services", on: onState, every: podsEvery, run: l.services},
		{name: "fence", on: onState | onArrived, every: lookEvery, run: l.fence}, // after services
		{name: "netmaps", on: onPace, run: l.netmaps},
	}
}

// lookEvery is how often nodes are looked at.
const lookEvery = 500 * time.Millisecond

// turn is what steps decide on: values of one moment.
type turn struct {
	step   *step
	raised trigger // by a step, for those after it
	state  *state.State
	now    time.Time
	table  *fleet.Table
	known  *fleet.Snapshot
	acted  bool // the step did something
	over   bool // it has nothing to do any more in this run of the hub
}

// fleet is what is known live. Steps of one turn share it until one of them acts.
func (t *turn) fleet() fleet.Snapshot {
	if t.known == nil {
		s := t.table.Snapshot()
		t.known = &s
	}
	return *t.known
}

// Run runs the steps until ctx ends. It fails if the tunnel does not take its nodes.
func (l *Loop) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer l.work.Wait()
	defer cancel()
	changed, stop := l.cfg.Store.Watch()
	defer stop()
	l.remember()
	now := time.Now()
	for _, s := range l.steps {
		s.due = now.Add(s.every)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(time.Until(l.next()))
		var why trigger
		select {
		case <-ctx.Done():
			return l.turn(ctx, onFinish)
		case <-changed:
			why = onState
			l.pace.changed(time.Now())
		case <-l.cfg.Fleet.Departed():
			why = onGone
			l.pace.touched(time.Now())
		case b := <-l.cfg.Boots:
			why = l.booted(b)
		case <-l.cfg.Tunnel.BoundChanged():
			l.pace.touched(time.Now())
		case <-l.cfg.Fleet.Arrived():
			why = onArrived
		case <-l.cfg.Fleet.Touched():
			l.pace.touched(time.Now())
		case <-timer.C:
		}
		if err := l.turn(ctx, why); err != nil {
			return err
		}
	}
}

// next is when a step is due by time.
func (l *Loop) next() time.Time {
	at := time.Now().Add(lookEvery)
	for _, s := range l.steps {
		if s.every > 0 && s.due.Before(at) {
			at = s.due
		}
	}
	if !l.pace.due.IsZero() && l.pace.due.Before(at) {
		at = l.pace.due
	}
	return at
}

// turn runs the steps that have to run now.
func (l *Loop) turn(ctx context.Context, why trigger) error {
	t := &turn{state: l.cfg.Store.State(), now: time.Now(), table: l.cfg.Fleet}
	if !l.pace.due.IsZero() && !t.now.Before(l.pace.due) && why != onFinish {
		why |= onPace
	}
	for _, s := range l.steps {
		byTime := s.every > 0 && !t.now.Before(s.due) && why != onFinish
		if s.on&(why|t.raised) == 0 && !byTime {
			continue
		}
		if byTime {
			s.due = t.now.Add(s.every)
		}
		if len(s.busy) > 0 {
			continue
		}
		if st := l.cfg.Store.State(); st != t.state { // what the step stored last is in it
			t.state, t.known = st, nil
		}
		t.step, t.acted, t.over = s, false, false
		begin := time.Now()
		err := s.run(ctx, t)
		l.ran(s, time.Since(begin), t.acted, err)
		if t.acted {
			t.known = nil
		}
		if t.over {
			s.every = 0
		}
		if err != nil && s.fatal {
			return err
		}
	}
	return nil
}

// ran tells how a run of a step went.
func (l *Loop) ran(s *step, took time.Duration, acted bool, err error) {
	l.metrics.ran(s.name, took)
	if err != nil {
		l.failed(s, err)
	} else if acted {
		l.cfg.Log.Debug().Str("step", s.name).Msg("the hub does something by itself")
	}
}

func (l *Loop) failed(s *step, err error) {
	l.metrics.failed(s.name)
	l.cfg.Log.Debug().Str("step", s.name).Err(err).Msg("what the hub does by itself failed")
}

// change is a transaction that a step asks for.
type change struct {
	who, why string
	decide   func(*state.Draft) error
	// then is told how it went, off the loop.
	then func(*state.State, error)
}

// store stores c beside the loop: a store that is busy must not keep netmaps waiting.
func (l *Loop) store(ctx context.Context, s *step, c change) {
	l.work.Go(func() { l.update(ctx, s, c) })
}

// storeAlone is store for a step that does not run again before that is stored. It is called once in a run.
func (l *Loop) storeAlone(ctx context.Context, s *step, c change) {
	s.busy <- struct{}{}
	l.work.Go(func() {
		defer func() { <-s.busy }()
		l.update(ctx, s, c)
	})
}

func (l *Loop) update(ctx context.Context, s *step, c change) {
	st, err := l.cfg.Store.Update(ctx, c.who, c.why, c.decide)
	if err != nil && ctx.Err() == nil && !state.IsKind(err, state.Conflict) { // a conflict: it is so already
		l.failed(s, fmt.Errorf("store %q: %w", c.why, err))
	}
	c.then(st, err)
}
