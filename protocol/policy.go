package protocol

import (
	"fmt"
	"net/netip"
	"slices"
)

// Kinds of items that say who may talk to whom. Once a netmap has any of them, the node closes what none of them
// opens.
const (
	ItemSegment = "segment"
	ItemPolicy  = "policy"
)

// AddressClass says of which class the addresses in a prefix are, but for those in longer ones that have a class of
// their own. Classes are numbers from 1, of one netmap.
type AddressClass struct {
	Prefix netip.Prefix `json:"prefix"`
	Class  uint32       `json:"class"`
}

// Openings is the body of an item of kind segment or policy: what it opens between classes, of which one side
// lives at the node.
type Openings struct {
	Rules []Opening `json:"rules,omitempty"`
}

// Opening is what a rule opens from any of some classes to any of others. Answers pass.
type Opening struct {
	Rule  string   `json:"rule"` // its name in its policy
	From  []uint32 `json:"from"`
	To    []uint32 `json:"to"`
	Allow []string `json:"allow"` // see ParsePorts
	// Arrives opens it where it arrives alone: what begins here is not open by it yet. An agent that does not know that
	// opens both.
	Arrives bool `json:"arrives,omitempty"`
}

// MaxAddressClass is above all classes.
const MaxAddressClass = 1<<31 - 1

// MaxPolicyPairs bounds what the rules of one item open, counted by pairs of classes and ports.
const MaxPolicyPairs = 100_000

// Check says what is wrong with the rules of an item.
func (r Openings) Check() error {
	pairs := 0
	for _, a := range r.Rules {
		if !ValidName(a.Rule) {
			return fmt.Errorf("%.40q names no rule", a.Rule)
		}
		for _, text := range a.Allow {
			if _, err := ParsePorts(text); err != nil {
				return fmt.Errorf("rule %s: %w", a.Rule, err)
			}
		}
		for _, c := range slices.Concat(a.From, a.To) {
			if c == 0 || c >= MaxAddressClass {
				return fmt.Errorf("rule %s: %d is no class", a.Rule, c)
			}
		}
		// A body is bounded, and so each factor is: the product fits.
		if pairs += len(a.From) * len(a.To) * len(a.Allow); pairs > MaxPolicyPairs {
			return fmt.Errorf("its rules open more than %d pairs of classes to this node", MaxPolicyPairs)
		}
	}
	return nil
}
