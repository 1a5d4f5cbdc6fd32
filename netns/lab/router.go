package lab

import "fmt"

// NAT is what a router does to IPv4 connections that leave by its interface
// "wan".
type NAT int

// Kinds of NAT. All but None let nothing in that was not asked for from
// inside; IPv6 is never translated, and let in only as an answer.
const (
	// None: a plain router, open both ways.
	None NAT = iota
	// EndpointIndependent maps a socket to one port for all destinations, as
	// most home and office routers do: hole punching works.
	EndpointIndependent
	// Symmetric maps to another port for each destination: hole punching
	// fails.
	Symmetric
	// FullCone is endpoint-independent and hands whatever comes to the host
	// that Inside names, from any source.
	FullCone
)

// Router makes a router. Its outer interface must be called "wan".
func (l *Lab) Router(name string, nat NAT) *Host {
	r := l.host(name, "router")
	r.Sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	flags := ""
	switch nat {
	case None:
		return r
	case Symmetric:
		flags = " random,fully-random"
	case FullCone:
		return r.Nft(`table ip lab {
	chain post { type nat hook postrouting priority srcnat; oifname "wan" masquerade; }
	chain pre { type nat hook prerouting priority dstnat; }
	chain forw { type filter hook forward priority 0; iifname "wan" ct state new ct status ! dnat drop; }
}
`)
	}
	// The drop on input matters: without it a peer's first packet makes a
	// conntrack entry that takes the port, and the own packet leaves from
	// another one.
	return r.Nft(fmt.Sprintf(`table ip lab {
	chain post { type nat hook postrouting priority srcnat; oifname "wan" masquerade%s; }
	chain inp { type filter hook input priority 0; iifname "wan" ct state new drop; }
	chain forw { type filter hook forward priority 0; iifname "wan" ct state new drop; }
}
table ip6 lab {
	chain inp { type filter hook input priority 0; iifname "wan" ct state new meta l4proto { tcp, udp } drop; }
	chain forw { type filter hook forward priority 0; iifname "wan" ct state new drop; }
}
`, flags))
}

// Loss drops a part of the packets that a router forwards from one of its
// interfaces to another, in this direction alone. Zero percent ends it.
func (h *Host) Loss(from, to string, percent int) *Host {
	rule := ""
	if percent >= 100 {
		rule = "counter drop;"
	} else if percent > 0 {
		rule = fmt.Sprintf("numgen random mod 100 < %d counter drop;", percent)
	}
	name := "loss-" + from + "-" + to
	return h.Nft(fmt.Sprintf(`table inet %[1]s
delete table inet %[1]s
table inet %[1]s {
	chain forw { type filter hook forward priority -10; iifname %[2]q oifname %[3]q %[4]s
	}
}
`, name, from, to, orNothing(rule)))
}

func orNothing(rule string) string {
	if rule == "" {
		return "accept;"
	}
	return rule
}

// Block drops what a router forwards that matches an nftables expression, such
// as 'udp dport 51820'. Unblock ends all of them.
func (h *Host) Block(match string) *Host {
	return h.Nft("table inet block {\n chain forw { type filter hook forward priority -20; }\n}\nadd rule inet block forw " + match + " counter drop\n")
}

// Unblock ends every Block.
func (h *Host) Unblock() *Host {
	return h.Nft("table inet block\ndelete table inet block\n")
}

// Inside names the host behind a FullCone router.
func (h *Host) Inside(addr string) *Host {
	return h.Nft(fmt.Sprintf("add rule ip lab pre iifname \"wan\" udp dport 1024-65535 dnat to %s\n", addr))
}

// UDPTimeout is how long the router keeps a mapping that nothing passes.
func (h *Host) UDPTimeout(seconds int) *Host {
	return h.Sysctl(fmt.Sprintf("net.netfilter.nf_conntrack_udp_timeout=%d", seconds), fmt.Sprintf("net.netfilter.nf_conntrack_udp_timeout_stream=%d", seconds))
}

// ForgetConnections empties the router's conntrack table: every mapping is
// lost, as when it restarts.
func (h *Host) ForgetConnections() *Host {
	h.sh("conntrack -F 2>/dev/null")
	return h
}
