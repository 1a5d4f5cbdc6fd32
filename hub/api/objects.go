package api

import (
	"encoding/json"
	"maps"
	"slices"
	"time"
)

// Documents are the kinds of documents that 'causeway apply' takes: the zero value of each one's
// type, by its kind. All but those in undeclared are of declared objects.
var Documents = map[string]any{
	"site":  SiteDocument{},
	"node":  NodeDocument{},
	"route": RouteDocument{},
	"limit": LimitDocument{},

	"segment": SegmentDocument{},
	"policy":  PolicyDocument{},
	"flowlog": FlowLogDocument{},
	"service": ServiceDocument{},
}

// undeclared are the kinds whose documents change what is there by itself.
var undeclared = []string{"node", "route"}

// DocumentKinds lists the kinds of documents, by name.
func DocumentKinds() []string { return slices.Sorted(maps.Keys(Documents)) }

// ObjectKinds lists the kinds of declared objects, by name.
func ObjectKinds() []string {
	return slices.DeleteFunc(DocumentKinds(), func(kind string) bool { return slices.Contains(undeclared, kind) })
}

// Object is a declared object.
type Object struct {
	Kind       string          `json:"kind"`
	Name       string          `json:"name"`
	Spec       json.RawMessage `json:"spec"`       // the fields of its document, without kind and name
	Generation uint64          `json:"generation"` // transaction that changed it last
	Created    time.Time       `json:"created"`
	Changed    time.Time       `json:"changed"`
	Known      bool            `json:"known"` // false: a newer hub wrote it; this one keeps it as it is
	// Nodes that are told of it: how many have acknowledged it as it is now, and who has not, or refused it.
	Have int      `json:"have"`
	Lack []string `json:"lack"`
	// Status is what this hub knows of it now, by field: of a limit the datagrams that it dropped.
	Status map[string]string `json:"status,omitempty"`
	ETag   string            `json:"etag"`
}

// SpecFields are a spec's fields as texts, for people.
func SpecFields(spec json.RawMessage) map[string]string {
	var m map[string]json.RawMessage
	out := map[string]string{}
	if json.Unmarshal(spec, &m) != nil {
		return out
	}
	for k, v := range m {
		if s := ""; json.Unmarshal(v, &s) == nil {
			out[k] = s
		} else {
			out[k] = string(v)
		}
	}
	return out
}

// Apply is what 'causeway apply' sends: all of it is done, or nothing.
type Apply struct {
	Documents []ApplyDocument `json:"documents" maxItems:"10000"`
	// Prune takes away what has no document here: each is KIND or KIND/PATTERN of names, such as
	// limit/sh-*; of sites and declared objects.
	Prune  []string `json:"prune,omitempty" maxItems:"64"`
	DryRun bool     `json:"dry_run,omitempty"` // say what would change, and change nothing
	// Sequence is that of the state which a dry run has shown: if the log has grown since, nothing is
	// done (status 409). 0: whatever it is now.
	Sequence uint64 `json:"sequence,omitempty"`
	// Preview has a dry run say in Policy what opens and closes; with Connections agents are asked, too, which
	// connections would be cut.
	Preview     bool `json:"preview,omitempty"`
	Connections bool `json:"connections,omitempty"`
	// Tag is that of the PolicyChange which a dry run has shown: if segments or policies are others by now, nothing is
	// done (status 409). None: whatever they are.
	Tag string `json:"tag,omitempty" maxLength:"64"`
	// Confirm has what changes of segments and policies go back by itself after this time, 30s to 24h, unless POST
	// /v1/policy/confirm comes before.
	Confirm Duration `json:"confirm,omitempty"`
}

// ApplyDocument is one document.
type ApplyDocument struct {
	At       string          `json:"at,omitempty" maxLength:"4096"` // where it stands, for errors: FILE:LINE
	Document json.RawMessage `json:"document"`                      // of one of the types in Documents
}

// Applied is what an Apply did, or would do.
type Applied struct {
	Sequence uint64      `json:"sequence"` // of the state afterwards
	Steps    []ApplyStep `json:"steps"`    // one for each document, then one for each that is pruned

	Policy  *PolicyChange  `json:"policy,omitempty"`  // what opens and closes; with Preview
	Confirm *PolicyPending `json:"confirm,omitempty"` // what goes back unless it is confirmed
}

// ApplyStep is what became of one document.
type ApplyStep struct {
	At     string   `json:"at,omitempty"`
	Object string   `json:"object"`         // such as "site idc-sh"
	Action string   `json:"action"`         // none, create, change or delete
	Diff   []string `json:"diff,omitempty"` // lines such as "- max_age: 72h" and "+ max_age: forever"
}
