package protocol

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Own is something of a host's own that meets another site's range: a network of one of its
// links, a route by a gateway, or an address that the host relies on.
type Own struct {
	Prefix netip.Prefix `json:"prefix"`
	Of     netip.Prefix `json:"of,omitzero"`    // the host's route that has it; not valid: Prefix itself
	Link   string       `json:"link,omitempty"` // empty: an address, or no plain route of the main table
	Via    netip.Addr   `json:"via,omitzero"`   // the gateway that it is behind; not valid: it is not behind one
	// Needs is what the host relies on there, such as 'default gateway 10.2.0.1'; of an address
	// what it is.
	Needs []string `json:"needs,omitempty"`
	// Fixed says that accept: does not take it away: the host's gateway or hub is in it.
	Fixed bool `json:"fixed,omitempty"`
}

// address reports whether it is an address that the host relies on, and no network.
func (o Own) address() bool { return o.Link == "" && o.Prefix.IsSingleIP() && len(o.Needs) > 0 }

// String is for people: '10.2.0.0/24 of eth0 (with default gateway 10.2.0.1)'.
func (o Own) String() string {
	if o.address() {
		return fmt.Sprintf("%s (%s)", o.Prefix.Addr(), strings.Join(o.Needs, ", "))
	}
	s := o.Prefix.String()
	if o.Of.IsValid() && o.Of != o.Prefix {
		s += ", a part of " + o.Of.String()
	}
	switch {
	case o.Via.IsValid():
		s += " by gateway " + o.Via.String()
	case o.Link != "":
		s += " of " + o.Link
	}
	if len(o.Needs) > 0 {
		s += " (with " + strings.Join(o.Needs, ", ") + ")"
	}
	return s
}

// cuts reports whether to lose it cuts the host from a network of its own, or from what it
// relies on. What is behind a gateway is another's network, and may be the site's that is meant.
func (o Own) cuts() bool { return !o.Via.IsValid() || len(o.Needs) > 0 }

// OwnList names some of a host's own in a line.
func OwnList(l []Own) string {
	const most = 3
	var s []string
	for _, o := range l[:min(len(l), most)] {
		s = append(s, o.String())
	}
	if n := len(l) - len(s); n > 0 {
		s = append(s, fmt.Sprintf("%d more", n))
	}
	return strings.Join(s, " and ")
}

// AcceptAdvice says what to do about a range of another site that meets what a host has of its
// own. takes is what it would lose if accept: named the range exactly, which is no advice where it
// would cut the host from anything.
func AcceptAdvice(host string, r netip.Prefix, takes []Own) string {
	switch {
	case len(takes) == 0:
		return fmt.Sprintf("name %s exactly in accept: of %s", r, host)
	case !slices.ContainsFunc(takes, Own.cuts):
		return fmt.Sprintf("name %s exactly in accept: of %s, which takes %s from it, or give one of the two sites another range", r, host, OwnList(takes))
	case slices.ContainsFunc(takes, func(o Own) bool { return o.Fixed }):
		return fmt.Sprintf("give one of the two sites another range; accept: of %s cannot take %s from it", host, OwnList(takes))
	}
	return fmt.Sprintf("give one of the two sites another range; %s in accept: would take %s from %s", r, OwnList(takes), host)
}
