package explain

import (
	"fmt"
	"slices"
	"strings"

	"causeway/hub/api"
	"causeway/protocol"
)

// firewall judges rules that drop the flow itself.
func (j *judge) firewall(s side) {
	j.forged(s)
	var certain []protocol.Drop
	for _, d := range s.e.Flow.Drops {
		if d.Certain && !strings.HasPrefix(d.Way, "underlay") {
			certain = append(certain, d)
		}
	}
	if len(certain) > 0 {
		j.add(j.dropFault(s, HopFirewall, certain...))
	}
}

// dropFault is what the first of some drops means; where other tools' rules make it, each of
// them has to let the flow pass.
func (j *judge) dropFault(s side, hop string, drops ...protocol.Drop) api.Fault {
	d := drops[0]
	if f, ok := j.accessFault(s, d, hop); ok {
		return f
	}
	f := api.Fault{Cause: "host-firewall", Hop: hop, Node: s.node(), Blocks: true, Summary: fmt.Sprintf("a firewall of %s drops the flow's packets at %s", s.node(), d.Hook)}
	drops = slices.DeleteFunc(slices.Clone(drops), func(d protocol.Drop) bool { return strings.HasPrefix(d.Chain, protocol.AccessTable) })
	for _, d := range drops {
		if text := fmt.Sprintf("nftables chain %s: %s", d.Chain, d.Rule); !slices.Contains(f.Evidence, text) {
			f.Evidence = append(f.Evidence, text)
		}
	}
	f.Mend = j.dropMend(s, drops)
	if strings.HasPrefix(d.Chain, protocol.FirewalldTable+" ") && d.Hook == "forward" { // its rules are written anew at each reload
		f.Mend = on(s.node(), protocol.FirewalldMend(s.e.Flow.Interface, s.e.Flow.Out.From))
	}
	if d.Owner == protocol.OwnerUfw && d.Hook == "forward" {
		f.Summary = fmt.Sprintf("ufw on %s drops the flow's packets at %s", s.node(), d.Hook)
		f.Mend = on(s.node(), protocol.UfwMend(s.e.Flow.Interface, s.e.Flow.Out.From))
	}
	switch docker := protocol.DockerTable + " "; {
	case strings.HasPrefix(d.Chain, "ip "+docker), strings.HasPrefix(d.Chain, "ip6 "+docker): // written anew with each container
		f.Summary = fmt.Sprintf("Docker on %s drops the flow's packets at %s", s.node(), d.Hook)
		f.Mend = fmt.Sprintf("on %s: %s", s.node(), protocol.DockerMend())
	case d.Chain == "ip raw PREROUTING" && d.Way == "in":
		f.Mend = fmt.Sprintf("on %s: iptables -t raw -I PREROUTING -i %s -d %s -j ACCEPT", s.node(), s.e.Flow.Interface, s.Addr)
	}
	return f
}
