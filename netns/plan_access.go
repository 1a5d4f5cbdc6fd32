package netns

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// The access list: what may come out of the tunnel, what may go into it, and what of this
// host itself may be reached by it. Chains of these names count what they drop. The engine
// holds the first by itself too, and peers' engines the second: either wall stands alone.
const (
	// chainDestination drops what peers send to anything but this node's own overlay
	// addresses and approved prefixes. It comes before any destination NAT.
	chainDestination = "access-destination"
	// chainInterface drops what is about to enter the tunnel from a source of this node's
	// own by another interface than the one at which the host's routes have that source.
	// rp_filter does not matter to it. Kernels before 5.19 can ask for that before
	// routing alone, so where the packet will go is asked as well.
	chainInterface = protocol.InterfaceChain
	// chainSource drops what is about to enter the tunnel from a source that is none of
	// this node's, after source NAT.
	chainSource = "access-source"
	// chainShields drops what peers send to this host itself, its published ports included.
	chainShields = protocol.ShieldsChain
)

// accessChains are all of them.
var accessChains = []string{chainDestination, chainInterface, chainSource, chainShields}

// IsAccessChain reports whether a chain of our table is one of the access list.
func IsAccessChain(name string) bool { return slices.Contains(accessChains, name) }

// Shields say what of the host itself is reached through the tunnel. The zero value: all
// that listens. Pods and LANs behind the host are not meant.
type Shields struct {
	Up    bool
	Allow []Port // what is reached all the same, besides echo and Causeway's own ports
}

// Port is a range of ports of one protocol, tcp or udp.
type Port struct {
	Proto       string
	First, Last uint16
}

// String is tcp/22, or udp/5000-5010.
func (p Port) String() string {
	if p.First == p.Last {
		return fmt.Sprintf("%s/%d", p.Proto, p.First)
	}
	return fmt.Sprintf("%s/%d-%d", p.Proto, p.First, p.Last)
}

// rule is what nft says for it.
func (p Port) rule() string {
	return strings.Replace(p.String(), "/", " dport ", 1)
}

// check says what is wrong with it.
func (p Port) check() error {
	if p.Proto != protocol.FlowTCP && p.Proto != protocol.FlowUDP || p.First == 0 || p.First > p.Last {
		return fmt.Errorf("shields: %s is no port", p)
	}
	return nil
}

// normalPorts sorts ports, and takes out what is there twice.
func normalPorts(in []Port) ([]Port, error) {
	out := slices.Clone(in)
	for _, p := range out {
		if err := p.check(); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	return slices.Compact(out), nil
}

// OwnDestinations are what peers may send to: the node's overlay addresses and its own
// approved prefixes. The tunnel's engine is given the same.
func OwnDestinations(overlay []netip.Addr, local []netip.Prefix) []netip.Prefix {
	out := slices.Clone(local)
	for _, a := range overlay {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// access are the chains of the access list.
func (p Plan) access() []string {
	t := " inet " + NftTable + " "
	var out []string
	chain := func(name, hook string, priority int) {
		out = append(out, fmt.Sprintf("chain%s%s { type filter hook %s priority %d; policy accept; }", t, name, hook, priority))
	}
	rule := func(chain, format string, args ...any) {
		out = append(out, "rule"+t+chain+" "+fmt.Sprintf(format, args...))
	}
	own := OwnDestinations(p.Overlay, p.Local)

	chain(chainDestination, "prerouting", -300)
	rule(chainDestination, "iifname != %q accept", p.Interface)
	for _, x := range own {
		rule(chainDestination, "%s daddr %s accept", kernel.NftFamily(x.Addr()), nftPrefix(x))
	}
	rule(chainDestination, "counter drop")

	chain(chainInterface, "prerouting", -50)
	rule(chainInterface, "iifname %q accept", "lo")
	for _, x := range own {
		rule(chainInterface, "%s saddr %s fib saddr . iif oif missing fib daddr oifname %q counter drop", kernel.NftFamily(x.Addr()), nftPrefix(x), p.Interface)
	}

	chain(chainSource, "postrouting", SourcePriority)
	rule(chainSource, "oifname != %q accept", p.Interface)
	for _, x := range own {
		rule(chainSource, "%s saddr %s accept", kernel.NftFamily(x.Addr()), nftPrefix(x))
	}
	// What the kernel and daemons multicast on every link is no sign of anything.
	rule(chainSource, "ip daddr 224.0.0.0/4 drop")
	rule(chainSource, "ip6 daddr ff00::/8 drop")
	rule(chainSource, "counter drop")

	if !p.Shields.Up {
		return out
	}
	// Before destination NAT, so that a port which Docker publishes is the host's.
	chain(chainShields, "prerouting", -140)
	rule(chainShields, "iifname != %q accept", p.Interface)
	rule(chainShields, "fib daddr type unicast accept")
	rule(chainShields, "fib daddr type unreachable accept")
	// Answers to what this host began, and errors about what it sent. Not what peers began before
	// the shields were up, or while somebody had taken them away: that would stay open for
	// as long as it goes on.
	rule(chainShields, "ct state established,related ct direction reply accept")
	rule(chainShields, "ct state related meta l4proto { 1, 58 } accept")
	rule(chainShields, "icmp type echo-request accept")
	rule(chainShields, "icmpv6 type echo-request accept")
	for _, proto := range []string{protocol.FlowTCP, protocol.FlowUDP} { // of a measurement between two nodes
		rule(chainShields, "%s accept", Port{proto, protocol.MeasurePortFirst, protocol.MeasurePortLast}.rule())
	}
	rule(chainShields, "%s accept", Port{protocol.FlowUDP, protocol.ServiceWordPort, protocol.ServiceWordPort}.rule()) // agents' words of services
	for _, x := range p.Shields.Allow {
		rule(chainShields, "%s accept", x.rule())
	}
	rule(chainShields, "counter drop")
	return out
}

// ClosedDrops names in AccessDrops what was about to leave by another way than the tunnel.
const ClosedDrops = chainClosed

// AccessDrops counts the packets that each chain of the access list has dropped since it
// was last made, by what it looks at: destination, interface, source, shields; and
// ClosedDrops.
func (h *Host) AccessDrops(context.Context) (map[string]uint64, error) {
	counted, err := nftCounted()
	if err != nil {
		return nil, err
	}
	out := map[string]uint64{}
	for _, c := range append(slices.Clone(accessChains), chainClosed) {
		out[strings.TrimPrefix(c, "access-")] = counted[c]
	}
	return out, nil
}
