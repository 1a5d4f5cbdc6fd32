// Package items applies what operators declared, as far as it concerns this node: an Applier for
// each kind, a file each, run in the order of Appliers. What a kind has on the host is a part of the plan of netns.
package items

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"causeway/netns"
	"causeway/netns/policy"
	svc "causeway/netns/service"
	"causeway/protocol"
)

// Applier is a kind of items as this node has it. Apply and Text are called one at a time.
type Applier interface {
	Kind() string
	// Check says why this node does not take an item; nil: it does. It is pure.
	Check(protocol.Item) error
	// Apply makes the node as all items of the kind that were taken say: whole state, idempotent. Without
	// any it takes everything back.
	Apply(context.Context, []protocol.Item) error
	// Text words an item that was taken for whoever looks on the host.
	Text(protocol.Item) string
}

// Placer is an Applier whose kind is on the host: a part of the plan of netns, which is applied, repaired and taken back with
// the rest. Its Apply comes after that.
type Placer interface {
	Applier
	// Part is what all items of the kind that were taken are on the host, in a table that is called netns.PartPrefix and
	// the kind; nil: nothing. It is pure. Where it fails the host keeps what it has.
	Part(v View, taken []protocol.Item) (netns.Part, error)
}

// View is what a netmap says that is in force, as far as this node takes it.
type View struct {
	Items     []protocol.Item         // all, those that are not taken too
	Classes   []protocol.AddressClass // of what is at this node
	Own       []netip.Addr            // its overlay addresses
	Peers     []protocol.Peer
	Interface string // of the tunnel
	Overlay   []netip.Prefix
	Hubs      []netip.Addr   // inside the overlay
	Local     []netip.Prefix // what is at this node
	Services  *svc.Table     // that all netmaps' services have together
}

// appliers are all kinds that this agent knows, in the order in which they are applied.
var appliers = []Applier{limits{}, segments{}, policies{}, flowLogs{}, services{}}

// Appliers are all kinds that this agent knows, in the order in which they are applied.
func Appliers() []Applier { return slices.Clone(appliers) }

// Kinds are the names of the appliers' kinds.
func Kinds() (l []string) {
	for _, a := range Appliers() {
		l = append(l, a.Kind())
	}
	return l
}

// Held is an item that the node has taken, in words.
type Held struct {
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	Generation uint64 `json:"generation"`
	Text       string `json:"text"`
}

// Taken are the items of a netmap as this node takes them.
type Taken struct {
	Refused []protocol.RefusedPart
	Parts   []netns.Part      // of the host's plan
	items   [][]protocol.Item // of each of appliers
	errs    []string
}

// Take decides which items of v are taken; last are the parts of the plan before. What an applier refuses is told and the rest is taken.
// Items of kinds that this agent does not know are left alone: a netmap that cannot do without them says so by what it requires.
func Take(v View, last []netns.Part) Taken {
	var t Taken
	for _, a := range Appliers() {
		var taken []protocol.Item
		for _, i := range v.Items {
			if i.Kind != a.Kind() {
				continue
			}
			if err := a.Check(i); err != nil {
				t.Refused = append(t.Refused, protocol.RefusedPart{Kind: i.Kind, Name: i.Name, Reason: err.Error()})
				continue
			}
			taken = append(taken, i)
		}
		t.items = append(t.items, taken)
		if p, ok := a.(Placer); ok {
			x, err := p.Part(v, taken)
			if err != nil {
				t.errs = append(t.errs, fmt.Sprintf("%s: %s", a.Kind(), err))
				if i := slices.IndexFunc(last, func(x netns.Part) bool { return x.Table() == netns.PartPrefix+a.Kind() }); i >= 0 {
					x = last[i]
				}
			}
			if x != nil {
				t.Parts = append(t.Parts, x)
			}
		}
	}
	return t
}

// Refuses reports whether a part refuses with an answer what goes into the tunnel to nobody that the netmap knows.
func (t Taken) Refuses() bool {
	return slices.ContainsFunc(t.Parts, func(p netns.Part) bool { return p.Table() == policy.TableName })
}

// Apply applies what was taken, once the host's plan was applied with its parts. What failed is told by its kind.
func (t Taken) Apply(ctx context.Context) (held []Held, errs []string) {
	errs = t.errs
	for n, a := range Appliers() {
		taken := t.items[n]
		if err := a.Apply(ctx, taken); err != nil {
			errs = append(errs, fmt.Sprintf("%s: %s", a.Kind(), err))
			continue
		}
		for _, i := range taken {
			held = append(held, Held{i.Kind, i.Name, i.Generation, protocol.OneLine(a.Text(i), 256)})
		}
	}
	return held, errs
}

// bodyOf reads an item's body. Fields that this version does not know are left out: a kind that
// cannot bear that has another name.
func bodyOf[T any](i protocol.Item) (v T, err error) {
	if err := json.Unmarshal(i.Body, &v); err != nil {
		return v, fmt.Errorf("its body does not read: %w", err)
	}
	return v, nil
}
