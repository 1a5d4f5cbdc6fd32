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
	"causeway/internal/policyfault"
	"causeway/tunnel"
)

const (
	// stageBound is how long a stage of a change waits for the agents' acknowledgements.
	stageBound = 3 * time.Second
	// openBound is how long something may wait to be opened, whatever else changes meanwhile: then all changes at once.
	openBound = 10 * time.Second
)

// talk is who may talk to whom: compiled anew when what it follows from changed, and then in force stage by stage. The
// loop alone uses it.
type talk struct {
	state    *state.State // that in was last read from
	in       policy.Input
	compiled *policy.Compiled
	force    *policy.Enforced   // what is in force of it; nil: nothing was compiled yet
	ahead    []*policy.Enforced // its stages to come
	since    time.Time          // when that came into force
	waits    time.Time          // since when something waits to be opened; zero: nothing does
	told     bool               // nodes were told what is in force

	who     *policy.Enforcement // nil: everybody may talk to everybody
	classes []*tunnel.RelayClass
	alone   *tunnel.RelayClass
	serial  uint64    // of changes
	changed time.Time // what is declared, last
}

// policy compiles what is declared, if it or a pod has changed or its time has come, and goes on to the next stage of a
// change once nodes have the one before. The relay has each stage at once, nodes by their netmaps.
func (l *Loop) policy(_ context.Context, t *turn) (err error) {
	k, before := &l.talk, l.talk.serial
	news := l.pods.look(l.cfg.Facts, t.now)
	if next := k.next(); t.state != k.state || news || !next.IsZero() && !t.now.Before(next) {
		k.state = t.state
		in := object.PolicyInput(t.state, nil, t.now)
		in.Pods = l.pods.list(l.cfg.Facts, t.state, policy.AsksPods(in.Policies))
		begun := time.Now()
		err = k.settle(in, t.now)
		l.pods.compiled(time.Since(begun))
		if k.serial != before {
			k.changed = t.now
			l.pace.changed(t.now)
		}
		l.cfg.Fleet.SetPolicy(fleet.Policy{Compiled: k.compiled, Sequence: t.state.Seq, Since: k.changed, Err: err})
	}
	if k.serial == before && l.arrived(t.now) {
		k.goOn(t.now)
		t.raised |= onPace
	}
	if t.acted = k.serial != before; t.acted {
		t.raised |= onTalk
		l.stage.Store(int32(k.stage()))
	}
	return err
}

// arrived reports whether there is a next stage and its time has come.
func (l *Loop) arrived(now time.Time) bool {
	k := &l.talk
	if len(k.ahead) == 0 {
		return false
	}
	if k.told && l.cfg.Fleet.Awaited() == 0 {
		return true
	}
	if now.Sub(k.since) < stageBound {
		return false
	}
	for i, n := range l.cfg.Fleet.Pass() {
		if i < 20 {
			l.cfg.Log.Warn().Str("node", k.state.Nodes.Get(n).Name).Msg("a node did not acknowledge in time who may talk, and is not waited for")
		}
	}
	return true
}

// tell notes that nodes were given what is in force, and waits for them if more is to come.
func (l *Loop) tell() {
	if k := &l.talk; len(k.ahead) > 0 && !k.told {
		k.told = true
		l.cfg.Fleet.Await()
	}
}

// Stage is how far the last change of who may talk is.
func (l *Loop) Stage() policy.Stage { return policy.Stage(l.stage.Load()) }

// settle takes over what is compiled from in: what of it closes at once, and what opens stage by stage. What cannot be
// compiled keeps what was in force; at a start nobody may talk to anybody, and what is compiled first holds at once.
func (k *talk) settle(in policy.Input, now time.Time) error {
	if k.compiled != nil && k.same(in) {
		return nil
	}
	c, err := policy.Compile(in, k.compiled)
	if err == nil {
		err = c.Enforce().Check()
	}
	if err != nil {
		if k.compiled == nil && k.serial == 0 {
			k.enforce(&policy.Enforcement{Groups: policy.NewGroups(nil, 0, nil)})
		}
		return fmt.Errorf("policies cannot be compiled, and what was in force before goes on: %w", err)
	}
	stages := []*policy.Enforced{c.All()}
	if k.force != nil && (k.waits.IsZero() || now.Sub(k.waits) < openBound) {
		stages = policy.NewChange(k.force, c).Stages()
	}
	k.in, k.compiled, k.ahead = in, c, stages
	k.goOn(now)
	return nil
}

// goOn has the next stage in force.
func (k *talk) goOn(now time.Time) {
	for {
		k.force, k.ahead = k.ahead[0], k.ahead[1:]
		who := k.force.Enforce()
		if len(k.ahead) > 0 && who.Check() != nil { // it is more than all is, for agents: there is no such stage then
			continue
		}
		k.since, k.told = now, false
		if len(k.ahead) == 0 {
			k.waits = time.Time{}
		} else if k.waits.IsZero() {
			k.waits = now
		}
		k.enforce(who)
		return
	}
}

func (k *talk) stage() policy.Stage {
	if k.force == nil {
		return policy.Whole
	}
	return k.force.Stage
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
	if k.who = g; g != nil && policyfault.Off(policyfault.Netmaps) {
		all := *g
		all.Groups = policy.NewGroups(g.Nodes, g.Len(), func(int, int) bool { return true })
		k.who = &all
	}
	if g == nil || policyfault.Off(policyfault.Relay) {
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
	if k.classes == nil {
		return nil
	}
	if g, ok := k.who.Nodes[n.Number]; ok {
		return k.classes[g]
	}
	return k.alone
}
