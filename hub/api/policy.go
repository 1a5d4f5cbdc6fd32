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

// PolicyReport is who may talk to whom as it is in force, and what is to be said of it.
type PolicyReport struct {
	PolicyStatus
	Changed  time.Time    `json:"changed,omitzero"` // when a segment or policy was declared last
	Nodes    int          `json:"nodes"`            // that are told
	Have     int          `json:"have"`             // of these, that have acknowledged all of it
	Lack     []PolicyLack `json:"lack"`             // and those that have not, at most 100
	MoreLack int          `json:"more_lack,omitempty"`
	// Stale are rules that open nothing, though nobody says that they may: what they name is gone, or is nowhere.
	Stale   []PolicyRuleNote `json:"stale"`
	Ending  []PolicyRuleNote `json:"ending"`  // rules that have ended, or will within 14 days
	Failing []string         `json:"failing"` // tests that do not hold any more
}

// PolicyLack is a node that has not acknowledged what is in force.
type PolicyLack struct {
	Node string `json:"node"`
	Why  string `json:"why"`
}

// PolicyRuleNote is what is to be said of a rule.
type PolicyRuleNote struct {
	Rule string `json:"rule"` // POLICY/RULE
	Why  string `json:"why"`
}

// PolicyRuleState is a rule, and what it means now.
type PolicyRuleState struct {
	Rule   string      `json:"rule"` // POLICY/RULE
	Across []string    `json:"across,omitempty"`
	From   PolicyMeant `json:"from"`
	To     PolicyMeant `json:"to"`
	Allow  []string    `json:"allow"`
	Until  string      `json:"until,omitempty"` // last day on which it holds
	Ended  bool        `json:"ended,omitempty"`
	Why    string      `json:"why,omitempty"`   // it opens nothing, though it does not say that this is right
	Tests  int         `json:"tests,omitempty"` // that want something open by it
}

// PolicyMeant is a side of a rule, and who it means now.
type PolicyMeant struct {
	Side     string         `json:"side"`
	Segments []string       `json:"segments"` // that they are in; empty is none
	Classes  int            `json:"classes"`
	Nodes    int            `json:"nodes"` // that have or carry some
	Names    []string       `json:"names"` // of these, at most 50
	Count    int            `json:"count"` // of prefixes
	Prefixes []netip.Prefix `json:"prefixes"`
}

// PolicyExplain asks what a rule means, or why something is open or closed between two ends.
type PolicyExplain struct {
	Rule string `json:"rule,omitempty" maxLength:"130"` // POLICY/RULE, or RULE
	From string `json:"from,omitempty" maxLength:"255"` // an address or a node
	To   string `json:"to,omitempty" maxLength:"255"`
	Port string `json:"port,omitempty" maxLength:"40"` // empty: all ports
}

// PolicyExplained answers it: by Rule, or by the rest.
type PolicyExplained struct {
	Rule    *PolicyRuleState `json:"rule,omitempty"`
	From    *PolicyEnd       `json:"from,omitempty"`
	To      *PolicyEnd       `json:"to,omitempty"`
	Opens   []PolicyOpening  `json:"opens,omitempty"` // from From to To
	Back    []PolicyOpening  `json:"back,omitempty"`  // from To to From
	Verdict *PolicyAnswer    `json:"verdict,omitempty"`
}

// PolicyEnd is one end, and who it is for rules.
type PolicyEnd struct {
	Asked   string       `json:"asked"`
	Prefix  netip.Prefix `json:"prefix,omitzero"`   // it is in, which rules know; none: nothing is declared
	Segment string       `json:"segment,omitempty"` // none: it is in no segment; ?: it is in two, and closed
	Sites   []string     `json:"sites"`
	Nodes   []string     `json:"nodes"`
	Sides   []string     `json:"sides"` // of rules that mean it
}
