package explain

import (
	"fmt"
	"strings"

	"causeway/hub/api"
	"causeway/protocol"
)

// accessFault is what a drop by an agent's own access list means; false: it is another's rule.
func (j *judge) accessFault(s side, d protocol.Drop, hop string) (api.Fault, bool) {
	chain, ok := strings.CutPrefix(d.Chain, protocol.AccessTable)
	if !ok {
		return api.Fault{}, false
	}
	f := api.Fault{Hop: hop, Node: s.node(), Blocks: true, Evidence: []string{fmt.Sprintf("nftables chain %s: %s", d.Chain, d.Rule)}}
	switch chain {
	case protocol.ShieldsChain:
		port := fmt.Sprintf("%s/%d", j.Proto, j.Port)
		f.Cause, f.Summary = "shields", fmt.Sprintf("shields are up at %s: other nodes do not reach %s of the host itself", s.node(), port)
		f.Mend = fmt.Sprintf("on %s: add %s to shields: {allow: […]} in /etc/causeway/agent.yaml, then: systemctl reload causeway-agent", s.node(), port)
	case protocol.InterfaceChain:
		f.Cause, f.Summary = "source-interface", fmt.Sprintf("%s lets nobody send from %s into the tunnel but by the interface at which the host's routes have it", s.node(), s.Addr)
		f.Mend = fmt.Sprintf("on %s: ip route get %s names that interface; let what has the address send by it, or find who forges it: tcpdump -eni any src host %s", s.node(), s.Addr, s.Addr)
	default:
		f.Cause, f.Summary = "access-list", fmt.Sprintf("the access list of %s drops the flow's packets: %s is in none of its approved prefixes", s.node(), s.Addr)
		f.Mend = "announce a route that holds it, and approve it: causeway route list"
	}
	return f, true
}

// forged tells of drops that were counted at a source, which need not be the flow's own.
func (j *judge) forged(s side) {
	for _, d := range s.e.Flow.Drops {
		if f, ok := j.accessFault(s, d, HopFirewall); ok && f.Cause == "source-interface" && !d.Certain {
			f.Blocks = false
			f.Summary = fmt.Sprintf("packets from %s, or what is beside it, came to %s by another interface than the one at which the host's routes have it, and did not enter the tunnel", s.Addr, s.node())
			j.add(f)
			return
		}
	}
}
