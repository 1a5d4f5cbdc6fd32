package state

import (
	"encoding"
	"encoding/json"
	"reflect"
	"slices"
	"time"

	"causeway/hub/notice"
	"causeway/protocol"
)

// keptDifferences is for how many of the newest transactions a Store knows what was
// before: as many as the audit shows.
const keptDifferences = 1000

// Difference is a field of an object that a transaction changed. Before or After is
// empty where there was or is no such object, or nothing in the field.
type Difference struct {
	Object string // such as "site idc-sh"
	Field  string
	Before string
	After  string
}

// Thing is something that transactions touch.
type Thing struct {
	Kind string
	Key  any // of an admin or NATS user its name, of a token its id, of a node its number, of a route its RouteKey, of a site or other object its ObjectKey
}

// Kinds of things, beside those of declared objects.
const (
	ThingSite     = "site"
	ThingToken    = "token"
	ThingNode     = "node"
	ThingRoute    = "route"
	ThingAdmin    = "admin"
	ThingNATSUser = "NATS user"
	ThingUpgrade  = "upgrade"
	// ThingName is a node that has another name; its key is of the type Renamed.
	ThingName = "name"
	// ThingLog is the log, which every transaction touches. It has no key.
	ThingLog = "log"
)

// Renamed is the key of ThingName.
type Renamed protocol.NodeNumber

// touched lists what a change is about.
func touched(c Change) []Thing {
	switch c := c.(type) {
	case SiteCreated:
		return []Thing{{ThingSite, ObjectKey{KindSite, c.Name}}}
	case SiteRanges:
		return []Thing{{ThingSite, ObjectKey{KindSite, c.Name}}}
	case SiteMaxAge:
		return []Thing{{ThingSite, ObjectKey{KindSite, c.Name}}}
	case SiteRotateKeys:
		return []Thing{{ThingSite, ObjectKey{KindSite, c.Name}}}
	case SiteDeleted:
		return []Thing{{ThingSite, ObjectKey{KindSite, c.Name}}}
	case TokenCreated:
		return []Thing{{ThingToken, c.ID}}
	case TokenCancelled:
		return []Thing{{ThingToken, c.ID}}
	case TokenRedeemed:
		return []Thing{{ThingToken, c.ID}}
	case NodeJoined:
		return []Thing{{ThingNode, c.Number}}
	case NodeLabelled:
		return []Thing{{ThingNode, c.Number}}
	case NodeStated:
		return []Thing{{ThingNode, c.Statement.Number}}
	case NodeKeyWanted:
		return []Thing{{ThingNode, c.Number}}
	case NodeQuarantined:
		return []Thing{{ThingNode, c.Number}}
	case NodeReleased:
		return []Thing{{ThingNode, c.Number}}
	case NodeDrained:
		return []Thing{{ThingNode, c.Number}}
	case NodeUndrained:
		return []Thing{{ThingNode, c.Number}}
	case NodeRenamed:
		return []Thing{{ThingNode, c.Number}, {ThingName, Renamed(c.Number)}}
	case NodeGone:
		return []Thing{{ThingNode, c.Number}}
	case RouteAnnounced:
		return []Thing{{ThingRoute, RouteKey{c.Node, c.Prefix}}}
	case RouteWithdrawn:
		return []Thing{{ThingRoute, RouteKey(c)}}
	case RouteDecided:
		return []Thing{{ThingRoute, RouteKey{c.Node, c.Prefix}}}
	case AdminCreated:
		return []Thing{{ThingAdmin, c.Name}}
	case AdminRevoked:
		return []Thing{{ThingAdmin, c.Name}}
	case NATSUserCreated:
		return []Thing{{ThingNATSUser, c.Name}}
	case NATSUserRevoked:
		return []Thing{{ThingNATSUser, c.Name}}
	case ObjectPut:
		return []Thing{{c.Kind, ObjectKey{c.Kind, c.Name}}}
	case ObjectDeleted:
		return []Thing{{c.Kind, ObjectKey(c)}}
	case UpgradeStarted, UpgradeAdvanced, UpgradeEnded:
		return []Thing{{ThingUpgrade, upgrade{}}}
	}
	return nil
}

// upgrade is the key of the one thing of its kind.
type upgrade struct{}

// everywhere reports whether a change is about more than what touched lists.
func everywhere(c Change) bool {
	switch c.(type) {
	case ClusterCreated, Restored, Settled, NumbersPassed, HubAdded, OverlayWidened, ClaimsBySegment:
		return true
	}
	return false
}

// Notices tells from now on what the log's transactions touch. See notice.Board.
func (s *Store) Notices(wake chan<- struct{}) *notice.Reader[Thing] { return s.notices.Join(wake) }

// tell has the news of what t touched.
func (s *Store) tell(t Transaction, things []Thing) {
	if slices.ContainsFunc(t.Changes, everywhere) {
		s.notices.MarkAll()
		return
	}
	s.notices.Mark(append(things, Thing{Kind: ThingLog})...)
}

// find returns the object as it is stored, nil if it is not there, and its name for a
// person.
func (s *State) find(o Thing) (stored any, name string) {
	switch k := o.Key.(type) {
	case string:
		name = o.Kind + " " + k
		if v, ok := s.Admins.Find(k); ok && o.Kind == ThingAdmin {
			stored = v
		} else if v, ok := s.NATSUsers.Find(k); ok && o.Kind == ThingNATSUser {
			stored = v
		}
	case upgrade:
		name = "upgrade of nodes"
		if s.Upgrade != nil {
			stored = *s.Upgrade
		}
	case protocol.TokenID:
		name = "token " + k.String()
		if v, ok := s.Tokens.Find(k); ok {
			stored = v
		}
	case protocol.NodeNumber:
		name = "node " + s.Nodes.Get(k).Name
		if v, ok := s.Nodes.Find(k); ok {
			stored = v
		}
	case ObjectKey:
		name = k.String()
		if v, ok := s.Sites.Find(k.Name); ok && k.Kind == KindSite {
			stored = v
		} else if v, ok := s.Objects.Find(k); ok {
			stored = v
		}
	case RouteKey:
		name = "route " + k.Prefix.String() + " of node " + s.Nodes.Get(k.Node).Name
		if v, ok := s.Routes.Find(k); ok {
			stored = v
		}
	}
	return stored, name
}

// hidden fields are no news to a person, or are shown in the object's name.
var hidden = []string{"Hash", "Cert", "Statement", "RouteKey", "Number", "ID", "Created", "Joined", "Proven", "Kind", "Shape", "Generation", "Changed"}

// fields are an object's fields as texts, those with nothing in them left out.
func fields(stored any) map[string]string {
	out := map[string]string{}
	v := reflect.ValueOf(stored)
	if stored == nil {
		return out
	}
	for i := range v.NumField() {
		name, f := v.Type().Field(i).Name, v.Field(i)
		if slices.Contains(hidden, name) || f.IsZero() {
			continue
		}
		out[name] = asText(f.Interface())
	}
	return out
}

func asText(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case time.Duration:
		return v.String()
	case time.Time:
		return v.UTC().Format(time.RFC3339)
	case encoding.TextMarshaler:
		if b, err := v.MarshalText(); err == nil {
			return string(b)
		}
	}
	if r := reflect.ValueOf(v); r.Kind() == reflect.String {
		return r.String()
	}
	b, err := json.Marshal(v)
	if err != nil {
		return "?"
	}
	return string(b)
}

// recorder notes what a transaction is about to change.
type recorder struct {
	objects []Thing
	before  []map[string]string
}

func (s *State) record(t Transaction) recorder {
	var r recorder
	for _, c := range t.Changes {
		for _, o := range touched(c) {
			if !slices.Contains(r.objects, o) {
				v, _ := s.find(o)
				r.objects, r.before = append(r.objects, o), append(r.before, fields(v))
			}
		}
	}
	return r
}

// differences compares with what is there now.
func (s *State) differences(r recorder) (out []Difference) {
	for i, o := range r.objects {
		v, name := s.find(o)
		before, after := r.before[i], fields(v)
		names := []string{}
		for n := range before {
			names = append(names, n)
		}
		for n := range after {
			if _, ok := before[n]; !ok {
				names = append(names, n)
			}
		}
		slices.Sort(names)
		for _, n := range names {
			if before[n] != after[n] {
				out = append(out, Difference{name, n, before[n], after[n]})
			}
		}
	}
	return out
}
