package state

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"causeway/protocol"
)

// Limits of declared objects.
const (
	maxObjects = 10_000
	maxSpec    = 64 << 10 // bytes of one as it is stored
)

// ObjectKey names a declared object.
type ObjectKey struct{ Kind, Name string }

// String is such as "limit branch".
func (k ObjectKey) String() string { return k.Kind + " " + k.Name }

// MarshalText is the key in snapshots: kind/name.
func (k ObjectKey) MarshalText() ([]byte, error) { return []byte(k.Kind + "/" + k.Name), nil }

// UnmarshalText reads what MarshalText wrote.
func (k *ObjectKey) UnmarshalText(b []byte) error {
	kind, name, ok := strings.Cut(string(b), "/")
	if !ok || !protocol.ValidName(kind) || !protocol.ValidName(name) {
		return fmt.Errorf("%.80q names no object", b)
	}
	*k = ObjectKey{kind, name}
	return nil
}

// Kinds of what declared objects name and is no declared object itself.
const (
	KindSite = "site"
	KindNode = "node"
)

// Object is what operators declared: a spec of a kind, under a name.
type Object struct {
	Kind       string
	Name       string
	Shape      uint32          // version of the kind's shape that Spec is in
	Essential  bool            // nothing may be planned without knowing the kind
	Spec       json.RawMessage // as its kind writes it
	Generation uint64          // transaction that put it last
	Created    time.Time
	Changed    time.Time
}

// Key names the object.
func (o Object) Key() ObjectKey { return ObjectKey{o.Kind, o.Name} }

// ObjectKind is a kind of declared objects. Its methods are pure and may be called
// concurrently.
type ObjectKind interface {
	// Kind is its name in documents, in the API and in the log: as names of sites.
	Kind() string
	// Shape is the version of specs that Canonical writes; it reads all below.
	Shape() uint32
	// Essential reports whether a hub that does not know the kind may not plan without it, and a node
	// that does not know it may not go on with a netmap that has an item of it.
	Essential() bool
	// Canonical reads a spec as somebody wrote it and returns it as it is stored. Unknown fields
	// are refused; the error names the field.
	Canonical(spec json.RawMessage) (json.RawMessage, error)
	// Check says what keeps an object, which is in st by now, from being declared. It is asked
	// when the object is put and not later.
	Check(st *State, o Object) error
	// Names are what an object names: sites (of kind "site"), nodes ("node") and other declared objects.
	// A site or object is not deleted and a node not renamed while one names it.
	Names(o Object) []ObjectKey
}

// Teller is a kind of which nodes are told: an ObjectKind that has items in netmaps.
type Teller interface {
	ObjectKind
	// Tells is what which nodes are told of an object: an item's body, the same for all of them, and
	// their numbers. It may depend on the state alone.
	Tells(st *State, o Object) (body json.RawMessage, nodes []protocol.NodeNumber)
}

// Tells is what which nodes are told of the object; of one that this build does not know, nothing.
func (o Object) Tells(st *State) (body json.RawMessage, nodes []protocol.NodeNumber) {
	if k, ok := o.known().(Teller); ok {
		return k.Tells(st, o)
	}
	return nil, nil
}

// tabled is an ObjectKind whose objects lie in a table of the state that much of the log is held against: a shape
// that this build does not know cannot be kept raw, it ends the log here. What a spec leaves out stays as it is.
type tabled interface {
	ObjectKind
	// over is Canonical of a spec that changes what is there, if anything is.
	over(s *State, name string, spec json.RawMessage) (json.RawMessage, error)
	// put says what forbids an object, or puts it into the table; also at fold.
	put(s *State, o Object) error
	// drop likewise takes it away.
	drop(s *State, name string, t time.Time) error
	find(s *State, name string) (Object, bool)
	all(s *State) []Object // by name
	// follow decides what follows from an object that was declared or changed.
	follow(d *Draft, name string) error
	// describe is a spec in words.
	describe(spec json.RawMessage) string
}

// hearer is an ObjectKind of which nodes are told by what is worked out of all its objects together.
type hearer interface {
	// Hear is who is told of an object.
	Hear(st *State, o Object) []protocol.NodeNumber
}

// Told are the nodes that are told of the object; of one that this build does not know, none.
func (o Object) Told(st *State) []protocol.NodeNumber {
	if k, ok := o.known().(hearer); ok {
		return k.Hear(st, o)
	}
	_, nodes := o.Tells(st)
	return nodes
}

// targeted is an ObjectKind of which no two objects may be for the same.
type targeted interface {
	// Target is what an object is for; empty: what others are for does not matter.
	Target(o Object) string
}

// whole is an ObjectKind whose objects are checked together, once all that is declared with them is there.
type whole interface {
	// Together is what they are checked by. Kinds that depend on each other have the same.
	Together() *Together
}

// Together checks all objects of some kinds.
type Together struct {
	// Check says what is wrong with them and with what they name, at a time. st is of a draft.
	Check func(st *State, now time.Time) error
	// Gone says what is wrong once one of them was taken away. What was wrong before and is no worse keeps none from going.
	Gone func(st *State, now time.Time) error
}

// DeleteObject takes a declared object away, if what is left is right without it.
func DeleteObject(d *Draft, key ObjectKey) error {
	if err := d.Add(ObjectDeleted(key)); err != nil {
		return err
	}
	if k, ok := objectKinds[key.Kind].(whole); ok && k.Together().Gone != nil {
		return k.Together().Gone(d.State, d.Now)
	}
	return nil
}

// CheckAll says what is wrong with the objects of some kinds, once a draft is whole.
func CheckAll(d *Draft, kinds []string) error {
	if err := d.checkRealms(); err != nil { // for who asks what would be; Update does it for all
		return err
	}
	var done []*Together
	for _, kind := range kinds {
		k, ok := objectKinds[kind].(whole)
		if !ok || slices.Contains(done, k.Together()) {
			continue
		}
		done = append(done, k.Together())
		if err := k.Together().Check(d.State, d.Now); err != nil {
			return err
		}
	}
	return nil
}

// objectKinds are the kinds that this build knows; see RegisterKind.
var objectKinds = map[string]ObjectKind{}

// RegisterKind makes a kind known. It is called by init functions of hub/object, and of this package for sites.
func RegisterKind(k ObjectKind) {
	if _, twice := objectKinds[k.Kind()]; twice || !protocol.ValidName(k.Kind()) {
		panic("kind " + k.Kind())
	}
	objectKinds[k.Kind()] = k
}

// ObjectKinds lists the kinds that this build knows and that can be declared, by name.
func ObjectKinds() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(objectKinds)), Hidden)
}

// FindKind returns the kind of that name, or an error for a person.
func FindKind(kind string) (ObjectKind, error) {
	if k := objectKinds[kind]; k != nil && !Hidden(kind) {
		return k, nil
	}
	return nil, Errorf(NotFound, "there is no kind %.80q of objects; there are %s", kind, strings.Join(ObjectKinds(), ", "))
}

// known returns an object's kind if this build knows it and the shape of its spec.
func (o Object) known() ObjectKind {
	if k := objectKinds[o.Kind]; k != nil && o.Shape <= k.Shape() {
		return k
	}
	return nil
}

// Known reports whether this build knows the object's kind, and the shape of its spec.
func (o Object) Known() bool { return o.known() != nil }

// Strange lists the objects that this build knows nothing of: a newer hub wrote them. They are
// kept as they are. essential says whether one of them forbids to plan without it.
func (s *State) Strange() (l []ObjectKey, essential bool) {
	for k, o := range s.Objects.All() {
		if o.known() == nil {
			l, essential = append(l, k), essential || o.Essential
		}
	}
	slices.SortFunc(l, CompareKeys)
	return l, essential
}

// CompareKeys orders keys by kind and name.
func CompareKeys(a, b ObjectKey) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
}

// Object returns the object of that name, if it is there.
func (s *State) Object(k ObjectKey) (Object, bool) {
	if t, ok := objectKinds[k.Kind].(tabled); ok {
		return t.find(s, k.Name)
	}
	return s.Objects.Find(k)
}

// ObjectsOf lists the objects of a kind, by name.
func (s *State) ObjectsOf(kind string) (l []Object) {
	if t, ok := objectKinds[kind].(tabled); ok {
		return t.all(s)
	}
	for k, o := range s.Objects.From(ObjectKey{Kind: kind}) {
		if k.Kind != kind {
			break
		}
		l = append(l, o)
	}
	return l
}

// FindObject returns the object of that name, or an error for a person.
func (s *State) FindObject(k ObjectKey) (Object, error) {
	if o, ok := s.Object(k); ok {
		return o, nil
	}
	if k.Kind == KindSite {
		return Object{}, noSite(s, k.Name)
	}
	return Object{}, Errorf(NotFound, "there is no %s %.80q; see 'causeway get %s'", k.Kind, k.Name, k.Kind)
}

// ObjectPut declares an object, in place of what it was before.
type ObjectPut struct {
	Kind      string          `json:"kind"`
	Name      string          `json:"name"`
	Shape     uint32          `json:"shape"`
	Essential bool            `json:"essential,omitempty"`
	Spec      json.RawMessage `json:"spec"`
}

func (c ObjectPut) apply(s *State, at time.Time) error {
	if !protocol.ValidName(c.Kind) {
		return Errorf(Invalid, "%.80q names no kind of objects", c.Kind)
	}
	if err := checkName(c.Kind, c.Name); err != nil {
		return err
	}
	if len(c.Spec) > maxSpec {
		return Errorf(Invalid, "%s %s: %d bytes; at most %d", c.Kind, c.Name, len(c.Spec), maxSpec)
	}
	key := ObjectKey{c.Kind, c.Name}
	t, rows := objectKinds[c.Kind].(tabled)
	old, there := s.Objects.Find(key)
	if !rows && !there && s.Objects.Len() >= maxObjects {
		return Errorf(Full, "there are %d declared objects, and no more than that may be", s.Objects.Len())
	}
	o := Object{Kind: c.Kind, Name: c.Name, Shape: c.Shape, Essential: c.Essential, Spec: c.Spec, Generation: s.Seq + 1, Created: at, Changed: at}
	if there {
		o.Created = old.Created
	}
	k := o.known()
	if k == nil && (rows || !s.folding) {
		return Errorf(Conflict, "%s: a newer causeway-hub wrote this kind of object, or its shape; change it there", key)
	}
	if rows {
		return t.put(s, o)
	}
	if err := s.guard(c.Kind); err != nil {
		return err
	}
	// What stands in the log was checked, perhaps by a hub that knew less: a check that fails here
	// would be the end of the log.
	s.divided(c.Kind)
	s.hold(old, o)
	if s.Objects.Set(key, o); k == nil || s.folding {
		s.targets, s.namers = nil, nil
		return nil
	}
	s.index(old, o)
	if err := s.target(k, old, o); err != nil {
		return err
	}
	if err := k.Check(s, o); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// Describe returns one line.
func (c ObjectPut) Describe() string {
	if t, ok := objectKinds[c.Kind].(tabled); ok {
		return fmt.Sprintf("%s %s declared: %s", c.Kind, c.Name, t.describe(c.Spec))
	}
	return fmt.Sprintf("%s %s declared", c.Kind, c.Name)
}

// ObjectDeleted takes a declared object away.
type ObjectDeleted struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

func (c ObjectDeleted) apply(s *State, at time.Time) error {
	key := ObjectKey(c)
	if t, ok := objectKinds[c.Kind].(tabled); ok {
		return t.drop(s, c.Name, at)
	}
	o, err := s.FindObject(key)
	if err != nil {
		return err
	}
	if o.known() == nil && !s.folding {
		return Errorf(Conflict, "%s: a newer causeway-hub wrote this kind of object, or its shape; delete it there", key)
	}
	if err := cmp.Or(s.guard(c.Kind), s.named(key)); err != nil {
		return err
	}
	s.Objects.Delete(key)
	s.hold(o, Object{})
	s.divided(c.Kind)
	s.targets = nil
	s.index(o, Object{})
	return nil
}

// target notes what an object is for, in place of what it was for before, if nothing else is for
// the same. What is noted is made anew when it is wanted: an index, for each that is declared asks.
func (s *State) target(k ObjectKind, old, o Object) error {
	of, ok := k.(targeted)
	if !ok {
		return nil
	}
	if s.targets == nil {
		s.targets = map[ObjectKey]string{}
		for key, other := range s.Objects.All() {
			if x, ok := other.known().(targeted); ok && key != o.Key() && x.Target(other) != "" {
				s.targets[ObjectKey{key.Kind, x.Target(other)}] = key.Name
			}
		}
	} else if was := (ObjectKey{o.Kind, of.Target(old)}); s.targets[was] == o.Name {
		delete(s.targets, was)
	}
	is := ObjectKey{o.Kind, of.Target(o)}
	if other := s.targets[is]; other != "" {
		return Errorf(Conflict, "%s: %s is for the same; change that one", o.Key(), ObjectKey{o.Kind, other})
	}
	if is.Name != "" {
		s.targets[is] = o.Name
	}
	return nil
}

// Describe returns one line.
func (c ObjectDeleted) Describe() string { return fmt.Sprintf("%s %s deleted", c.Kind, c.Name) }

// PutObject declares an object of a kind that this build knows. What is there already adds
// nothing.
func PutObject(d *Draft, kind, name string, spec json.RawMessage) error {
	k, err := FindKind(kind)
	if err != nil {
		return err
	}
	o, there := d.Object(ObjectKey{kind, name})
	t, rows := k.(tabled)
	var stored json.RawMessage
	if rows {
		stored, err = t.over(d.State, name, spec)
	} else {
		stored, err = k.Canonical(spec)
	}
	if err != nil {
		return Errorf(Invalid, "%s %.80s: %s", kind, name, err)
	}
	if by, ok := k.(stamper); ok {
		if stored, err = by.Stamp(d.State, name, o, stored); err != nil {
			return fmt.Errorf("%s %.80s: %w", kind, name, err)
		}
	}
	if there && o.Shape == k.Shape() && bytes.Equal(o.Spec, stored) {
		return nil
	}
	if err := d.Add(ObjectPut{Kind: kind, Name: name, Shape: k.Shape(), Essential: k.Essential(), Spec: stored}); err != nil || !rows {
		return err
	}
	return t.follow(d, name)
}

// PutGiven stores an object that is there as the hub itself decided it: its kind gives it nothing by Stamp.
func PutGiven(d *Draft, kind, name string, spec json.RawMessage) error {
	k, err := FindKind(kind)
	if err != nil {
		return err
	}
	o, err := d.FindObject(ObjectKey{kind, name})
	if err != nil {
		return err
	}
	stored, err := k.Canonical(spec)
	if err != nil {
		return Errorf(Invalid, "%s %.80s: %s", kind, name, err)
	}
	if o.Shape == k.Shape() && bytes.Equal(o.Spec, stored) {
		return nil
	}
	return d.Add(ObjectPut{Kind: kind, Name: name, Shape: k.Shape(), Essential: k.Essential(), Spec: stored})
}

func checkName(what, name string) error {
	if !protocol.ValidName(name) {
		return Errorf(Invalid, "%s name %.80q: use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'", what, name)
	}
	return nil
}

// Found says which of what an object names is not there; of a node, that nobody ever had the name.
func Found(s *State, names []ObjectKey) error {
	for _, k := range names {
		var err error
		switch k.Kind {
		case KindSite:
			_, err = s.FindSite(k.Name)
		case KindNode:
			if _, ok := s.NodeByName(k.Name); !ok {
				err = noNode(s, k.Name)
			}
		default:
			_, err = s.FindObject(k)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ReadStrictly decodes what somebody wrote: one JSON value, with no other fields than v's. The error is
// one line that names the field.
func ReadStrictly(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return Errorf(Invalid, "%s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Errorf(Invalid, "something follows the document")
	}
	return nil
}

// named says which other object names what has this key, and so keeps it from going: nil if none does, and
// of what stands in the log, which was asked when it was decided.
func (s *State) named(key ObjectKey) error {
	if s.folding || s.Objects.Len() == 0 {
		return nil
	}
	if s.namers == nil {
		s.namers = map[ObjectKey][]ObjectKey{}
		for _, o := range s.Objects.All() {
			s.index(Object{}, o)
		}
	}
	for _, by := range s.namers[key] {
		if by != key {
			return Errorf(Conflict, "%s names %s; first delete it, or change it: causeway delete %s", by, key, by)
		}
	}
	return nil
}

// index notes what an object names now, in place of what it named before.
func (s *State) index(old, o Object) {
	if s.namers == nil {
		return
	}
	if k := old.known(); k != nil {
		for _, n := range k.Names(old) {
			s.namers[n] = slices.DeleteFunc(s.namers[n], func(by ObjectKey) bool { return by == old.Key() })
		}
	}
	if k := o.known(); k != nil {
		for _, n := range k.Names(o) {
			s.namers[n] = append(s.namers[n], o.Key())
		}
	}
}
