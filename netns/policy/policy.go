// Package policy is the wall on the host: an nftables table of its own that judges each
// packet which comes out of the tunnel or goes into it by the class of its two ends.
//
// A flow is judged, not only its first packet: what conntrack knows of a connection says
// who began it and by which addresses the tunnel sees it, never that it may go on. So a rule
// that goes cuts what it opened with the next packet, in both directions, and nothing else.
//
// Config says what shall hold, pure and without a kernel. Table writes it by netlink: what
// is new against what was written last, without reading the table.
package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"causeway/protocol"
)

// TableName is the nftables table, of family inet.
const TableName = "causeway-policy"

// Class is what rules tell ends of flows apart by, from 1 to MaxClass. Zero is none.
type Class uint32

// MaxClass is the highest class.
const MaxClass Class = 1<<31 - 1

// Proto is an IP protocol as rules know it. ICMP is that of either family; Any is every
// protocol, those without ports too.
type Proto uint8

// The protocols of rules.
const (
	Any  Proto = 0
	ICMP Proto = 1
	TCP  Proto = 6
	UDP  Proto = 17
)

// icmp6 is ICMP of IPv6.
const icmp6 Proto = 58

// Member says of which class all of a prefix is; the longest prefix wins.
type Member struct {
	Prefix netip.Prefix
	Class  Class
}

// Allow opens flows that From begins to To. First and Last are ports of TCP and UDP, both
// zero: all. Replies, and ICMP errors about the flow, belong to it.
type Allow struct {
	From, To    Class
	Proto       Proto
	First, Last uint16
	Rule        string // the rule's name, under which it is counted
	Arrives     bool   // it opens what arrives here from the tunnel alone, and not what begins here
}

// Config is what shall hold. Whatever no Allow opens is closed, for what belongs to no class too.
type Config struct {
	Interface string   // of the tunnel
	Remote    []Member // what is met at the other side of the tunnel
	Local     []Member // what lives at this node: its overlay addresses, pods, LANs behind it
	Allows    []Allow  // for pairs with a local class on one side

	// No subject of any rule, so that no policy locks anybody out: what passes between the
	// node's own overlay addresses and hubs, and Causeway's own ports and echo between the
	// node's own and other overlay addresses.
	Own     []netip.Addr
	Hubs    []netip.Addr
	Overlay []netip.Prefix
}

// MaxRule is the longest name of a rule, in bytes.
const MaxRule = 127

// normal is the config checked, with prefixes masked.
func (c Config) normal() (Config, error) {
	if c.Interface == "" || len(c.Interface) > 15 {
		return c, fmt.Errorf("policy: interface name %q: want 1 to 15 characters", c.Interface)
	}
	var err error
	if c.Remote, err = members("remote", c.Remote); err != nil {
		return c, err
	}
	if c.Local, err = members("local", c.Local); err != nil {
		return c, err
	}
	for _, a := range slices.Concat(c.Own, c.Hubs) {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			return c, fmt.Errorf("policy: %v is no plain address", a)
		}
	}
	c.Overlay = slices.Clone(c.Overlay)
	for i, x := range c.Overlay {
		if err := protocol.CheckPrefix(x.Masked()); err != nil {
			return c, fmt.Errorf("policy: overlay range %s %w", x, err)
		}
		c.Overlay[i] = x.Masked()
	}
	for _, a := range c.Allows {
		if err := a.check(); err != nil {
			return c, fmt.Errorf("policy: rule %q: %w", a.Rule, err)
		}
	}
	return c, nil
}

func (a Allow) check() error {
	switch {
	case a.From == 0 || a.To == 0:
		return errors.New("without a class")
	case a.Proto != Any && a.Proto != ICMP && a.Proto != TCP && a.Proto != UDP:
		return fmt.Errorf("protocol %d is none of rules", a.Proto)
	case a.First > a.Last || a.First == 0 && a.Last != 0:
		return fmt.Errorf("ports %d to %d are no range", a.First, a.Last)
	case a.Last != 0 && a.Proto != TCP && a.Proto != UDP:
		return errors.New("ports without tcp or udp")
	case a.Rule == "" || len(a.Rule) > MaxRule:
		return fmt.Errorf("a name has 1 to %d bytes", MaxRule)
	}
	for i := range len(a.Rule) {
		if b := a.Rule[i]; (b < 'a' || b > 'z') && (b < 'A' || b > 'Z') && (b < '0' || b > '9') && b != '-' && b != '_' && b != '.' {
			return errors.New("a name has letters, digits, '-', '_' and '.'")
		}
	}
	return nil
}

// members masks, sorts and checks members. The same prefix twice must be of one class.
func members(what string, in []Member) ([]Member, error) {
	out := make([]Member, len(in))
	for i, m := range in {
		m.Prefix = m.Prefix.Masked()
		if err := protocol.CheckPrefix(m.Prefix); err != nil {
			return nil, fmt.Errorf("policy: %s prefix %s %w", what, in[i].Prefix, err)
		}
		if m.Class == 0 || m.Class > MaxClass {
			return nil, fmt.Errorf("policy: %s prefix %s: class %d is not between 1 and %d", what, m.Prefix, m.Class, MaxClass)
		}
		out[i] = m
	}
	order := func(a, b Member) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	}
	if !slices.IsSortedFunc(out, order) {
		slices.SortFunc(out, order)
	}
	for i := 1; i < len(out); i++ {
		if a, b := out[i-1], out[i]; a.Prefix == b.Prefix && a.Class != b.Class {
			return nil, fmt.Errorf("policy: %s prefix %s is of two classes, %d and %d", what, a.Prefix, a.Class, b.Class)
		}
	}
	return slices.Compact(out), nil
}
