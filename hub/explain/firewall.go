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
	if who, _ := d.Mend(s.e.Flow.Interface, s.e.Flow.Out.From); who != "" {
		f.Summary = fmt.Sprintf("%s on %s drops the flow's packets at %s", who, s.node(), d.Hook)
	}
	return f
}
