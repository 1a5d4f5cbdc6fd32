package api

import "time"

// Severities of a Finding, the worst first.
const (
	SeverityCritical = "critical" // something does not work
	SeverityWarning  = "warning"  // it works badly, will not for long, or waits for an operator
	SeverityInfo     = "info"     // worth knowing; nobody has to act
)

// Severities in the order of a Checkup.
var Severities = []string{SeverityCritical, SeverityWarning, SeverityInfo}

// MaxFindings bounds the findings of a Checkup.
const MaxFindings = 500

// Checkup is what the hub finds wrong with itself, its nodes and the paths between
// them. Findings are sorted by severity, then by where; those with the same place stay
// in the order in which things were looked at.
type Checkup struct {
	Findings []Finding `json:"findings"`
	LeftOut  int       `json:"left_out,omitempty"` // findings beyond MaxFindings, the least severe
	Nodes    int       `json:"nodes"`              // that were looked at
	Pairs    int       `json:"pairs"`              // of ready nodes with a path, that were looked at
	Open     bool      `json:"open"`               // no segment or policy is declared: every node may talk to every other
}

// Finding is one thing that is wrong.
type Finding struct {
	Severity string    `json:"severity"`
	Check    string    `json:"check"` // what was looked at, for example node-unreachable
	Where    string    `json:"where"` // hub, a node's name, NODE NODE for a pair, or admin NAME
	Since    time.Time `json:"since,omitzero"`
	Summary  string    `json:"summary"`
	Mend     string    `json:"mend,omitempty"` // the command, or what to do
}
