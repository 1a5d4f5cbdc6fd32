package reconcile

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"causeway/hub/fleet"
	"causeway/hub/object"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/tunnel"
)

// talk is who may talk to whom: compiled anew when what it follows from changed. The loop alone uses it.
type talk struct {
	state    *state.State // that in was last read from
	in       policy.Input
	compiled *policy.Compiled
	who      *policy.Enforcement // nil: everybody may talk to everybody
	classes  []*tunnel.RelayClass
	alone    *tunnel.RelayClass
	serial   uint64    // of changes
	since    time.Time // of the last one
}

// policy compiles what is declared, if it has changed or its time has come.
func (l *Loop) policy(_ context.Context, t *turn) error {
	news := l.pods.look(l.cfg.Facts, t.now)
	if next := l.talk.next(); t.state == l.talk.state && !news && (next.IsZero() || t.now.Before(next)) {
		return nil
	}
	l.talk.state = t.state
	before := l.talk.serial
	in := object.PolicyInput(t.state, nil, t.now)
	in.Pods = l.pods.list(l.cfg.Facts, t.state, policy.AsksPods(in.Policies))
	begun := time.Now()
	err := l.talk.settle(in)
	l.pods.compiled(time.Since(begun))
	if t.acted = l.talk.serial != before; t.acted {
		l.talk.since = t.now
		t.raised |= onTalk
		l.pace.changed(t.now)
	}
	l.cfg.Fleet.SetPolicy(fleet.Policy{Compiled: l.talk.compiled, Sequence: t.state.Seq, Since: l.talk.since, Err: err})
	return err
}

// settle takes over what is compiled from in. What cannot be compiled keeps what was in force; at a start nobody
// may talk to anybody.
func (k *talk) settle(in policy.Input) error {
	if k.compiled != nil && k.same(in) {
		return nil
	}
	c, err := policy.Compile(in, k.compiled)
	var who *policy.Enforcement
	if err == nil {
		who = c.Enforce()
		err = who.Check()
	}
	if err != nil {
		if k.compiled == nil && k.serial == 0 {
			k.enforce(&policy.Enforcement{Groups: policy.NewGroups(nil, 0, nil)})
		}
		return fmt.Errorf("policies cannot be compiled, and what was in force before goes on: %w", err)
	}
	k.in, k.compiled = in, c
	k.enforce(who)
	return nil
}

// next is when the time alone changes who may talk; zero: never.
func (k *talk) next() time.Time {
	if k.compiled == nil {
		return time.Time{}
	}
	return k.compiled.Next
}

// same reports whether what is compiled follows from in, too.
func (k *talk) same(in policy.Input) bool {
	if next := k.next(); !next.IsZero() && !in.Now.Before(next) {
		return false
	}
	in.Now = k.in.Now
	return reflect.DeepEqual(in, k.in)
}

// enforce takes groups over, and makes the switchboard's classes of them.
func (k *talk) enforce(g *policy.Enforcement) {
	k.serial++
	if k.who = g; g == nil {
		k.classes, k.alone = nil, tunnel.RelayAlone
		return
	}
	all := tunnel.NewRelayClasses(g.Len() + 1)
	k.classes, k.alone = all[:g.Len()], all[g.Len()]
	for a := range k.classes {
		for b := a; b < len(k.classes); b++ {
			if g.Talk(a, b) {
				k.classes[a].Allow(k.classes[b])
			}
		}
	}
}

// class is the switchboard's class of a node. One that has left hears that from the hub alone.
func (k *talk) class(n state.Node) *tunnel.RelayClass {
	if n.Quarantine != "" {
		return k.alone
	}
	if k.who == nil {
		return nil
	}
	if g, ok := k.who.Nodes[n.Number]; ok {
		return k.classes[g]
	}
	return k.alone
}
