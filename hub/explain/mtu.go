package explain

import (
	"fmt"

	"causeway/hub/api"
	"causeway/protocol"
)

// mtu judges what sizes pass.
func (j *judge) mtu() {
	if j.failed(HopAgent, HopAllowed, HopPath, HopHost) {
		return
	}
	for _, s := range j.sides() {
		e := s.e
		f := api.Fault{Hop: HopMTU, Node: s.node(), Mend: fmt.Sprintf("raise the MTU on the way between %s and %s to 1500, and let ICMP 'fragmentation needed' pass", s.node(), s.other.Node.Name)}
		lost := len(e.Probes) > 1 && e.Probes[0].Received >= sanePings && e.Probes[1].Sent > 0 && e.Probes[1].Received == 0 && e.Probes[1].Error == ""
		small := e.Path != nil && e.Path.Path != protocol.PathNone && e.Path.MTU > 0 && e.Path.MTU < fullMTU && (e.Underlay.LinkMTU == 0 || e.Path.MTU < e.Underlay.LinkMTU-tunnelBytes-16)
		switch {
		case !lost && !small:
			continue
		case lost:
			f.Blocks = true
			f.Evidence = append(f.Evidence, fmt.Sprintf("%d of %d small pings were answered, none of %d with %d bytes", e.Probes[0].Received, e.Probes[0].Sent, e.Probes[1].Sent, e.Probes[1].Size))
		}
		if small {
			f.Evidence = append(f.Evidence, fmt.Sprintf("the %s path carries %d bytes inside the tunnel, the interface has %d", e.Path.Path, e.Path.MTU, e.Underlay.LinkMTU))
		}
		if e.Underlay.PathMTU > 0 && e.Underlay.PathMTU < e.Underlay.LinkMTU {
			f.Cause, f.Summary = "mtu-small", fmt.Sprintf("the way from %s carries datagrams of %d bytes, as a router says by ICMP", s.node(), e.Underlay.PathMTU)
			f.Evidence = append(f.Evidence, fmt.Sprintf("the kernel learned an MTU of %d", e.Underlay.PathMTU))
			f.Mend = fmt.Sprintf("nothing has to be done: the tunnel uses less; for more speed raise the MTU between %s and %s", s.node(), s.other.Node.Name)
		} else {
			f.Cause, f.Summary = "mtu-hole", fmt.Sprintf("large datagrams from %s are lost on the way, and nobody says so: an MTU black hole", s.node())
		}
		if !f.Blocks {
			f.Summary += "; the tunnel sends smaller ones"
		}
		j.add(f)
		return
	}
}

func bytes(n int) string { return fmt.Sprintf("%d bytes", n) }
