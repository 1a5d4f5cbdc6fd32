package state

import (
	"encoding"
	"encoding/json"
	"reflect"
	"slices"
	"time"

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

// object names something that changes touch: an admin or NATS user by name, a token by id,
// a node by number, a route, site or declared object by its key.
type object struct {
	kind string
	key  any
}

const natsUser = "NATS user" // a kind of object

// touched lists what a change is about.
func touched(c Change) []object {
	switch c := c.(type) {
	case SiteCreated:
		return []object{{KindSite, ObjectKey{KindSite, c.Name}}}
	case SiteRanges:
		return []object{{KindSite, ObjectKey{KindSite, c.Name}}}
	case SiteMaxAge:
		return []object{{KindSite, ObjectKey{KindSite, c.Name}}}
	case SiteRotateKeys:
		return []object{{KindSite, ObjectKey{KindSite, c.Name}}}
	case SiteDeleted:
		return []object{{KindSite, ObjectKey{KindSite, c.Name}}}
	case TokenCreated:
		return []object{{"token", c.ID}}
	case TokenCancelled:
		return []object{{"token", c.ID}}
	case TokenRedeemed:
		return []object{{"token", c.ID}}
	case NodeJoined:
		return []object{{"node", c.Number}}
	case NodeLabelled:
		return []object{{"node", c.Number}}
	case NodeStated:
		return []object{{"node", c.Statement.Number}}
	case NodeKeyWanted:
		return []object{{"node", c.Number}}
	case NodeQuarantined:
		return []object{{"node", c.Number}}
	case NodeReleased:
		return []object{{"node", c.Number}}
	case NodeDrained:
		return []object{{"node", c.Number}}
	case NodeUndrained:
		return []object{{"node", c.Number}}
	case NodeRenamed:
		return []object{{"node", c.Number}}
	case NodeGone:
		return []object{{"node", c.Number}}
	case RouteAnnounced:
		return []object{{"route", RouteKey{c.Node, c.Prefix}}}
	case RouteWithdrawn:
		return []object{{"route", RouteKey(c)}}
	case RouteDecided:
		return []object{{"route", RouteKey{c.Node, c.Prefix}}}
	case AdminCreated:
		return []object{{"admin", c.Name}}
	case AdminRevoked:
		return []object{{"admin", c.Name}}
	case NATSUserCreated:
		return []object{{natsUser, c.Name}}
	case NATSUserRevoked:
		return []object{{natsUser, c.Name}}
	case ObjectPut:
		return []object{{c.Kind, ObjectKey{c.Kind, c.Name}}}
	case ObjectDeleted:
		return []object{{c.Kind, ObjectKey(c)}}
	case UpgradeStarted, UpgradeAdvanced, UpgradeEnded:
		return []object{{"upgrade", "of nodes"}}
	}
	return nil
}

// find returns the object as it is stored, nil if it is not there, and its name for a
// person.
func (s *State) find(o object) (stored any, name string) {
	switch k := o.key.(type) {
	case string:
		name = o.kind + " " + k
		if v, ok := s.Admins.Find(k); ok && o.kind == "admin" {
			stored = v
		} else if v, ok := s.NATSUsers.Find(k); ok && o.kind == natsUser {
			stored = v
		} else if s.Upgrade != nil && o.kind == "upgrade" {
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
	objects []object
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
