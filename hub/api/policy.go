package api

import (
	"net/netip"
	"time"
)

// MaxDifferences bounds PolicyChange.Differences.
const MaxDifferences = 500

// PolicyChange is what a change opens and closes, by kinds of addresses: sets that neither what is in force nor what
// would be tells apart.
type PolicyChange struct {
	Tag         string             `json:"tag"`                // of the segments and policies that were looked at: see Apply
	Opens       int                `json:"opens"`              // pairs of kinds of which something opens
	Closes      int                `json:"closes"`             // and closes
	Differences []PolicyDifference `json:"differences"`        // the first 500
	LeftOut     int                `json:"left_out,omitempty"` // how many more there are
	Cuts        *PolicyCuts        `json:"cuts,omitempty"`     // none: nobody was asked
}

// PolicyDifference is what differs for connections that one kind of addresses begins to another.
type PolicyDifference struct {
	From   PolicyKind      `json:"from"`
	To     PolicyKind      `json:"to"`
	Opens  []PolicyOpening `json:"opens,omitempty"`
	Closes []PolicyOpening `json:"closes,omitempty"`
	Stays  []PolicyOpening `json:"stays,omitempty"` // what stays open of "any" that closes
}

// PolicyKind is addresses that no rule tells apart.
type PolicyKind struct {
	Text     string       `json:"text"`              // all of it in words
	Segment  string       `json:"segment,omitempty"` // none: they are in no segment
	Sites    []string     `json:"sites"`
	Nodes    int          `json:"nodes"`          // that have or carry them
	Node     string       `json:"node,omitempty"` // if it is one
	Prefix   netip.Prefix `json:"prefix"`         // one of them
	Prefixes int          `json:"prefixes"`       // how many there are
	Sides    []string     `json:"sides"`          // sides of rules that mean them; at most 20
}

// PolicyOpening is ports, and the rule that opens them.
type PolicyOpening struct {
	Ports string `json:"ports"`
	Rule  string `json:"rule,omitempty"` // POLICY/RULE; none: nothing closes them
}

// PolicyCuts are the connections that exist now and that a change would cut, by the word of the nodes' agents.
type PolicyCuts struct {
	Connections int                `json:"connections"`
	Pairs       int                `json:"pairs"` // of addresses
	List        []PolicyConnection `json:"list"`  // those with most connections first, at most 200
	Asked       int                `json:"asked"` // nodes
	Silent      []PolicySilent     `json:"silent,omitempty"`
	MoreSilent  int                `json:"more_silent,omitempty"`
	// More is how many connections the nodes have beyond those that they told.
	More int `json:"more,omitempty"`
}

// PolicyConnection is connections of one client to one port of a server.
type PolicyConnection struct {
	From  netip.Addr `json:"from"`
	To    netip.Addr `json:"to"`
	Ports string     `json:"ports"`
	Count int        `json:"count"`
	Rule  string     `json:"rule,omitempty"` // that opens them as yet
	Node  string     `json:"node"`           // whose agent told
}

// PolicySilent is a node of which it is not known what would be cut there.
type PolicySilent struct {
	Node string `json:"node"`
	Why  string `json:"why"`
}

// PolicyPending is a change of segments and policies that goes back by itself unless it is confirmed.
type PolicyPending struct {
	Deadline time.Time `json:"deadline"`
	Since    time.Time `json:"since"`
	By       string    `json:"by"`      // who made it
	Objects  []string  `json:"objects"` // that go back, such as "policy main"
}

// PolicyConfirm has the change that waits stay, or go back now.
type PolicyConfirm struct {
	Back bool `json:"back,omitempty"`
}

// PolicyConfirmed is what became of a change that waited.
type PolicyConfirmed struct {
	Result  string   `json:"result"` // confirmed; or went-back
	Objects []string `json:"objects"`
}
