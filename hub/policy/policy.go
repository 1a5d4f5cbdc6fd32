// Package policy compiles who may talk to whom. From what operators declare, segments and policies, it makes classes
// of addresses, and says what is open between two of them. It is pure: values in, values out.
//
// A class is a set of addresses that no rule can tell apart: of one segment, and meant by the same sides of
// rules. Rules become pairs of classes, never pairs of nodes.
package policy

import (
	"net/netip"
	"time"

	"causeway/hub/api"
	"causeway/protocol"
)

// Segment is a declared segment.
type Segment struct {
	Name       string
	Generation uint64 // transaction that declared it
	api.SegmentSpec
}

// Policy is a declared policy.
type Policy struct {
	Name       string
	Generation uint64 // transaction that declared it
	api.PolicySpec
}

// Node is what rules may ask of a node, and the addresses that are met there.
type Node struct {
	Number  protocol.NodeNumber
	Name    string
	Site    string
	Labels  map[string]string
	Own     []netip.Prefix // its own overlay addresses, whole
	Carries []netip.Prefix // approved routes that it announces, whether it carries them now or another of its site
}

// Pod is a pod that runs at a node, with one of the addresses that the node carries.
type Pod struct {
	Node   protocol.NodeNumber
	Addrs  []netip.Addr
	Labels map[string]string
}

// Input is all that a compilation depends on.
type Input struct {
	Now      time.Time
	Segments []Segment // by name
	Policies []Policy  // by name
	Nodes    []Node    // by number
	Pods     []Pod
}

// ClassID numbers a class. It stays with a class from one compilation to the next, and is never 0.
type ClassID uint32

// Class is a set of addresses.
type Class struct {
	ID      ClassID
	Segment string
	Sides   []string // sides of rules that mean it, as text, sorted
	key     string
	place   int // in Classes

	from, to bitset // rules in force of which it is that side
}

// Unassigned is the segment of nodes that are in no declared one.
const Unassigned = ""

// Unit is a prefix whose addresses are of one class, but for longer units inside it.
type Unit struct {
	Prefix netip.Prefix
	Realm  string // see Realms: others may have the same prefix
	Class  ClassID
	At     []protocol.NodeNumber // nodes that have or carry it, by number
}

// Allow is what a rule opens between two classes.
type Allow struct {
	protocol.Ports
	Rule string // POLICY/RULE
}

// Pair is two classes in the direction in which connections begin.
type Pair struct{ From, To ClassID }
