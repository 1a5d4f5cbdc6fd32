package protocol

import (
	"fmt"
	"net/netip"
)

// MaxConnections bounds Connections.Flows. Agents keep to it, hubs refuse what is beyond.
const MaxConnections = 1000

// ConnectionsQuestion asks an agent which connections cross the tunnel at its node now.
type ConnectionsQuestion struct {
	Most int `json:"most"` // in Flows; 1 to MaxConnections
}

// Connections is what crosses the tunnel at a node, by the node's conntrack.
type Connections struct {
	Flows []Connection `json:"flows"`
	More  int          `json:"more,omitempty"` // connections that are in none of Flows
}

// Connection is connections of one client to one port of a server, with the addresses that the tunnel sees.
type Connection struct {
	Proto Proto          `json:"proto"` // ICMPv6 as ICMP
	From  netip.AddrPort `json:"from"`  // who began; the port is that of one of them
	To    netip.AddrPort `json:"to"`    // port 0: the protocol has none
	Count int            `json:"count"`
}

// Check says what is wrong with an agent's answer.
func (c Connections) Check() error {
	if len(c.Flows) > MaxConnections || c.More < 0 {
		return fmt.Errorf("%d connections, and %d more; at most %d", len(c.Flows), c.More, MaxConnections)
	}
	for _, f := range c.Flows {
		a, b := f.From.Addr(), f.To.Addr()
		if !a.IsValid() || !b.IsValid() || a.Zone() != "" || b.Zone() != "" || a.Is4() != b.Is4() || a.Is4In6() || b.Is4In6() || f.Count < 1 || f.Count > 1<<30 {
			return fmt.Errorf("a connection makes no sense")
		}
	}
	return nil
}
