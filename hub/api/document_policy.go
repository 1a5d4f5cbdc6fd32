package api

import "net/netip"

// SegmentDocument is an environment, such as production. Between two segments nothing passes unless a rule
// of a policy says across.
type SegmentDocument struct {
	Kind        string `json:"kind"` // segment
	Name        string `json:"name"` // 1 to 63 of a-z, 0-9 and '-'
	SegmentSpec `yaml:",inline"`
}

// SegmentSpec says which nodes belong to a segment. A node whose labels put it into a segment is in that one,
// whatever its site is in.
type SegmentSpec struct {
	Sites  []string          `json:"sites,omitempty"`  // whose nodes belong to it; a site is in one segment
	Labels map[string]string `json:"labels,omitempty"` // nodes that have all of them belong to it
}

// PolicyDocument is who may talk to whom. Once there is one, what no rule of any policy opens is closed.
type PolicyDocument struct {
	Kind       string `json:"kind"` // policy
	Name       string `json:"name"` // 1 to 63 of a-z, 0-9 and '-'
	PolicySpec `yaml:",inline"`
}

// PolicySpec has rules, which open and never close, in any order, and tests, which are asked of all rules
// together before they are taken.
type PolicySpec struct {
	Rules []PolicyRule `json:"rules"`
	Tests []PolicyTest `json:"tests,omitempty"` // all have to hold, or the file is refused
}

// PolicyRule opens ports from one side to another. Answers to what it opens pass.
type PolicyRule struct {
	Name   string         `json:"name"`             // unlike all others in its policy
	Across []string       `json:"across,omitempty"` // two segments: it opens the wall between them, and nothing inside one
	From   PolicyEndpoint `json:"from"`             // who begins
	To     PolicyEndpoint `json:"to"`               // whom it may reach
	Allow  []string       `json:"allow"`            // such as tcp/5432, udp/5000-5100, tcp, icmp or any
	Until  string         `json:"until,omitempty"`  // last day on which it holds, in UTC, such as 2027-01-31
	// ExpectEmpty: it is right that From or To is nobody now.
	ExpectEmpty bool `json:"expect_empty,omitempty"`
}

// PolicyEndpoint is a side of a rule: the addresses for which all holds that it says, of which there must be
// something. Node alone is the host itself, and not what is behind it.
type PolicyEndpoint struct {
	Segment string            `json:"segment,omitempty"` // at nodes of this segment
	Site    string            `json:"site,omitempty"`    // at nodes of this site
	Node    string            `json:"node,omitempty"`    // at this node: its own addresses, or with cidr or pods what it carries
	Labels  map[string]string `json:"labels,omitempty"`  // at nodes that have all of these labels
	CIDR    netip.Prefix      `json:"cidr,omitzero"`     // in this range
	Pods    map[string]string `json:"pods,omitempty"`    // of running pods that have all of these labels, as their nodes tell
}

// PolicyTest is a question to all policies, and what its answer has to be.
type PolicyTest struct {
	From string `json:"from"`         // an address, SEGMENT/ADDRESS where several segments have it, a node, or SITE/* for all that a site has
	To   string `json:"to"`           // as From
	Port string `json:"port"`         // such as tcp/5432 or icmp
	Want string `json:"want"`         // open or closed
	By   string `json:"by,omitempty"` // the rule that opens it
}

// PolicyQuestion asks whether something is open, by what is declared now.
type PolicyQuestion struct {
	From string `json:"from" maxLength:"255"` // as in a PolicyTest
	To   string `json:"to" maxLength:"255"`
	Port string `json:"port" maxLength:"40"` // such as tcp/5432 or icmp
}

// PolicyAnswer says so, and why.
type PolicyAnswer struct {
	Open    bool   `json:"open"`
	Rule    string `json:"rule,omitempty"`    // POLICY/RULE that opens it
	Nearest string `json:"nearest,omitempty"` // of what is closed the rule that comes nearest
	Lacks   string `json:"lacks,omitempty"`   // what keeps that from opening it
	Text    string `json:"text"`              // all of it in a sentence
}
