package object

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"causeway/hub/state"
)

// Bounds of the time in which a change has to be confirmed.
const (
	ConfirmLeast = 30 * time.Second
	ConfirmMost  = 24 * time.Hour
)

// confirmationKind is of objects that nobody declares: each says what one segment or policy goes back to unless a change
// is confirmed in time. A hub that does not know the kind keeps them as they are.
const confirmationKind = "confirmation"

type confirmations struct{}

func (confirmations) Kind() string    { return confirmationKind }
func (confirmations) Shape() uint32   { return 1 }
func (confirmations) Essential() bool { return false }
func (confirmations) Hidden()         {}

// Realms: what may go back keeps what is apart in it apart.
func (confirmations) Realms(st *state.State) []state.Realms { return realms(st) }

func (confirmations) Canonical(json.RawMessage) (json.RawMessage, error) {
	return nil, errors.New("nobody declares it; see 'causeway policy apply --confirm'")
}

func (confirmations) Check(*state.State, state.Object) error { return nil }

// Names: what it goes back to may need its sites and nodes.
func (confirmations) Names(o state.Object) (out []state.ObjectKey) {
	c, err := specOf[confirmation](o)
	if err != nil || c.Before == nil {
		return nil
	}
	kind, err := state.FindKind(c.Kind)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(kind.Names(state.Object{Kind: c.Kind, Name: c.Name, Spec: c.Before.Spec}), func(k state.ObjectKey) bool {
		return k.Kind != state.KindSite && k.Kind != state.KindNode // segments go back with it
	})
}

// confirmation is what is stored of one.
type confirmation struct {
	Deadline time.Time `json:"deadline"`
	Who      string    `json:"who"` // made the change
	Kind     string    `json:"kind"`
	Name     string    `json:"name"`
	Before   *before   `json:"before,omitempty"` // none: it was not there
	Deleted  bool      `json:"deleted,omitempty"`
}

type before struct {
	Shape uint32          `json:"shape"`
	Spec  json.RawMessage `json:"spec"`
}

func (c confirmation) key() state.ObjectKey { return state.ObjectKey{Kind: c.Kind, Name: c.Name} }

// Pending is a change of segments and policies that goes back unless it is confirmed.
type Pending struct {
	Deadline time.Time
	Since    time.Time
	Who      string            // made it
	Objects  []state.ObjectKey // that go back

	each []confirmation
	own  []state.ObjectKey // of the confirmations themselves
	made uint64            // the transaction that made the change
}

// Confirming is the change that waits to be confirmed; nil: none.
func Confirming(st *state.State) *Pending {
	var p *Pending
	for _, o := range st.ObjectsOf(confirmationKind) {
		c, err := specOf[confirmation](o)
		if err != nil {
			continue // of a newer hub
		}
		if p == nil {
			p = &Pending{Deadline: c.Deadline, Since: o.Created, Who: c.Who, made: o.Generation}
		}
		p.each, p.own, p.Objects = append(p.each, c), append(p.own, o.Key()), append(p.Objects, c.key())
	}
	return p
}

// guardTalk keeps segments and policies as they are while a change of them waits to be confirmed.
func guardTalk(st *state.State) error {
	if p := Confirming(st); p != nil {
		return state.Errorf(state.Conflict, "a change of who may talk by %s goes back at %s unless it is confirmed: first 'causeway policy confirm', or 'causeway policy confirm --back'",
			p.Who, p.Deadline.UTC().Format(time.DateTime+" UTC"))
	}
	return nil
}

// Talk lists the segments and policies of a state.
func Talk(st *state.State) []state.Object {
	return slices.Concat(st.ObjectsOf(SegmentKind), st.ObjectsOf(PolicyKind))
}

// AskToConfirm has what a draft changed of segments and policies go back, unless it is confirmed within a time. was
// is Talk of the state before.
func AskToConfirm(d *state.Draft, was []state.Object, who string, within time.Duration) error {
	if within < ConfirmLeast || within > ConfirmMost {
		return state.Errorf(state.Invalid, "confirm: %s; between %s and %s", within, ConfirmLeast, ConfirmMost)
	}
	now, had := Talk(d.State), map[state.ObjectKey]state.Object{}
	for _, o := range was {
		had[o.Key()] = o
	}
	var changed []confirmation
	for _, o := range now {
		if old, there := had[o.Key()]; !there {
			changed = append(changed, confirmation{Kind: o.Kind, Name: o.Name})
		} else if old.Generation != o.Generation {
			changed = append(changed, confirmation{Kind: o.Kind, Name: o.Name, Before: &before{old.Shape, old.Spec}})
		}
		delete(had, o.Key())
	}
	for _, o := range was {
		if _, gone := had[o.Key()]; gone {
			changed = append(changed, confirmation{Kind: o.Kind, Name: o.Name, Before: &before{o.Shape, o.Spec}, Deleted: true})
		}
	}
	for i, c := range changed {
		c.Deadline, c.Who = d.Now.Add(within), who
		spec, err := json.Marshal(c)
		if err != nil {
			return err
		}
		if err := d.Add(state.ObjectPut{Kind: confirmationKind, Name: strconv.Itoa(i + 1), Shape: 1, Spec: spec}); err != nil {
			return state.Errorf(state.Invalid, "%s is too much to be kept for going back: part it, or change it without --confirm (%s)", c.key(), err)
		}
	}
	return nil
}

// goesBackTo is what is declared once the change went back, by kind and name.
func (p *Pending) goesBackTo(st *state.State) []state.Object {
	l := Talk(st)
	for _, c := range p.each {
		l = slices.DeleteFunc(l, func(o state.Object) bool { return o.Key() == c.key() })
		if c.Before != nil {
			l = append(l, state.Object{Kind: c.Kind, Name: c.Name, Shape: c.Before.Shape, Spec: c.Before.Spec})
		}
	}
	slices.SortFunc(l, func(a, b state.Object) int { return state.CompareKeys(a.Key(), b.Key()) })
	return l
}

// errNonePending is of a confirmation that nobody waits for.
var errNonePending = state.Errorf(state.NotFound, "no change of who may talk waits to be confirmed")

// Confirm has the change that waits stay.
func Confirm(d *state.Draft) error {
	p := Confirming(d.State)
	if p == nil {
		return errNonePending
	}
	return p.end(d)
}

func (p *Pending) end(d *state.Draft) error {
	for _, k := range p.own {
		if err := d.Add(state.ObjectDeleted(k)); err != nil {
			return err
		}
	}
	return nil
}

// Overtaken says which object was changed since, by a hub that knows of no confirmations: nothing goes back then. Empty:
// none was.
func (p *Pending) Overtaken(st *state.State) string {
	for _, c := range p.each {
		if o, there := st.Object(c.key()); there == c.Deleted || there && o.Generation != p.made {
			return fmt.Sprintf("%s was changed since", c.key())
		}
	}
	return ""
}

// GoBack undoes the change that waits, or, if it was overtaken, has it stay.
func GoBack(d *state.Draft) error {
	p := Confirming(d.State)
	if p == nil {
		return errNonePending
	}
	if err := p.end(d); err != nil || p.Overtaken(d.State) != "" {
		return err
	}
	// Policies name segments: what was there first, then what was not, and segments that go when nothing names them.
	order := func(c confirmation) int {
		switch {
		case c.Kind == PolicyKind:
			return 0
		case c.Before != nil:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(p.each, func(a, b confirmation) int { return cmp.Compare(order(a), order(b)) })
	for _, c := range p.each {
		var change state.Change = state.ObjectDeleted(c.key())
		if c.Before != nil {
			change = state.ObjectPut{Kind: c.Kind, Name: c.Name, Shape: c.Before.Shape, Essential: true, Spec: c.Before.Spec}
		}
		if err := d.Add(change); err != nil {
			return err
		}
	}
	return nil
}
