package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"causeway/agent/held"
	"causeway/agent/netmapcheck"
	"causeway/protocol"
)

// closed names the ranges that are held closed, and what stays outside the tunnel.
func closed(c Config, own *netmapcheck.Owned) (out []Check) {
	var l []string
	for _, r := range c.Held.Closed() {
		l = append(l, fmt.Sprintf("%s since %s", r.Prefix, r.Closed.Format(time.RFC3339)))
	}
	if len(l) > 0 {
		out = append(out, Check{Name: "held ranges", Status: Warn, What: "closed: " + few(l), Why: "they were routed into the tunnel and no peer has them any more: nothing of them takes the host's own routes, in clear, by a hub's word",
			Do: fmt.Sprintf("if this host shall reach one by its own routes: causeway-agent release %s; in the config, release: [%[1]s]", c.Held.Closed()[0].Prefix)})
	}
	l = nil
	ranges, do := held.NewCover(c.Held.Prefixes()), []string{"nothing, if they are this site's"}
	for _, e := range c.Held.Exceptions {
		l = append(l, fmt.Sprintf("%s (%s)", e.Addr, e.What))
		r, ok := ranges.Of(netip.PrefixFrom(e.Addr, e.Addr.BitLen()))
		text := fmt.Sprintf("if they are the other one's: %s exactly in accept:, which takes %s from this host", r, protocol.OwnList(own.Takes(r)))
		if ok && !own.Way(e.Addr) && len(do) < 3 && !slices.Contains(do, text) {
			do = append(do, text)
		}
	}
	if len(l) > 0 {
		out = append(out, Check{Name: "outside the tunnel", Status: Warn, What: few(l), Why: "this host relied on them when a range of another site came that has them, so that they are reached as before",
			Do: strings.Join(do, "; ")})
	}
	return out
}
