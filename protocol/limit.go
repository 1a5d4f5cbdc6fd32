package protocol

import (
	"fmt"
	"strings"
)

// ItemLimit is the kind of declared objects and items that are a Limit.
const ItemLimit = "limit"

// Limit is how much data some nodes may send through a hub's relay in a second, all of them
// together: direct paths are not held, nor are probes and handshakes. Each hub counts what
// passes by itself. All limits that are for a datagram hold.
type Limit struct {
	Node    string   `json:"node,omitempty"`    // what this node sends; '*' is each node for itself
	Site    string   `json:"site,omitempty"`    // what all nodes of this site send together
	Between []string `json:"between,omitempty"` // what goes between these two sites, both ways together
	Packets uint64   `json:"packets,omitempty"` // datagrams in a second; 0: any number
	Bytes   uint64   `json:"bytes,omitempty"`   // bytes of UDP payload in a second; 0: any number
}

// String words the limit for whoever looks on a host that it holds.
func (l Limit) String() string {
	var much []string
	if l.Packets > 0 {
		much = append(much, fmt.Sprintf("%d datagrams", l.Packets))
	}
	if l.Bytes > 0 {
		much = append(much, fmt.Sprintf("%d bytes", l.Bytes))
	}
	who := "this node sends"
	switch {
	case l.Site != "":
		who = "all nodes of site " + l.Site + " send together"
	case len(l.Between) == 2:
		who = "goes between sites " + l.Between[0] + " and " + l.Between[1] + ", both ways together"
	}
	return strings.Join(much, " and ") + " a second of what " + who + " through a hub's relay"
}
