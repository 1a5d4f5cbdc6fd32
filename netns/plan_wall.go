package netns

import (
	"fmt"
	"net/netip"
	"slices"

	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// Wall is who on this host may talk to Causeway's own inside the overlay. Hubs take
// no session without proof of the node's identity; the wall is there so that nobody
// but the agent gets as far as asking. What is behind it:
//
//   - all that a hub has at its overlay addresses, but for echo
//   - protocol.OverlayPortFirst to OverlayPortLast of all nodes, from where agents measure
//
// A process of root can pass as any user; an agent that runs as root is walled off from
// other users' processes and from what is forwarded, not from other processes of root.
type Wall struct {
	UID     uint32         // the agent's
	Hubs    []netip.Addr   // overlay addresses of hubs; none: no wall
	Overlay []netip.Prefix // ranges of overlay addresses
}

func (w Wall) normal() (Wall, error) {
	w.Hubs, w.Overlay = slices.Clone(w.Hubs), slices.Clone(w.Overlay)
	for _, a := range w.Hubs {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			return Wall{}, fmt.Errorf("overlay address %v of a hub is no plain unicast address", a)
		}
	}
	for i, r := range w.Overlay {
		w.Overlay[i] = r.Masked()
		if err := protocol.CheckPrefix(w.Overlay[i]); err != nil {
			return Wall{}, fmt.Errorf("overlay range %s %w", r, err)
		}
	}
	slices.SortFunc(w.Hubs, netip.Addr.Compare)
	w.Hubs = slices.Compact(w.Hubs)
	slices.SortFunc(w.Overlay, netip.Prefix.Compare)
	w.Overlay = slices.Compact(w.Overlay)
	return w, nil
}

// Without6 is the wall for a host that has no IPv6.
func (w Wall) Without6() Wall {
	w.Hubs = slices.DeleteFunc(slices.Clone(w.Hubs), netip.Addr.Is6)
	w.Overlay = slices.DeleteFunc(slices.Clone(w.Overlay), func(r netip.Prefix) bool { return r.Addr().Is6() })
	return w
}

// nftWall are the chains of the wall, as Plan.nft has them. They come after others' address
// translation, so that they see where a packet really goes.
func (p Plan) nftWall() (out []string) {
	w := p.Wall
	if len(w.Hubs) == 0 {
		return nil
	}
	t := " inet " + NftTable + " "
	chain := func(name, hook string) {
		out = append(out, fmt.Sprintf("chain%s%s { type filter hook %s priority 10; policy accept; }", t, name, hook))
	}
	rule := func(chain, format string, args ...any) {
		out = append(out, "rule"+t+chain+" "+fmt.Sprintf(format, args...)+" counter drop")
	}
	ports := fmt.Sprintf("dport %d-%d", protocol.OverlayPortFirst, protocol.OverlayPortLast)
	either := func(chain, format string, args ...any) {
		for _, proto := range []string{"tcp", "udp"} {
			rule(chain, format+" %s %s", slices.Concat(args, []any{proto, ports})...)
		}
	}
	chain("wall-out", "output")
	out = append(out, fmt.Sprintf("rule%swall-out meta skuid %d accept", t, w.UID))
	for _, h := range w.Hubs {
		rule("wall-out", "%s meta skuid != %d", toHub(h), w.UID)
		// What has no socket, or none any more, is the end of what the agent began, or
		// was sent on inside the kernel for somebody else.
		rule("wall-out", "%s ct state new,untracked", toHub(h))
	}
	for _, r := range w.Overlay {
		either("wall-out", "%s daddr %s meta skuid != %d", kernel.NftFamily(r.Addr()), nftPrefix(r), w.UID)
	}
	chain("wall-forward", "forward")
	for _, h := range w.Hubs {
		rule("wall-forward", "%s", toHub(h))
	}
	for _, r := range w.Overlay {
		either("wall-forward", "%s daddr %s", kernel.NftFamily(r.Addr()), nftPrefix(r))
	}
	chain("wall-in", "input")
	for _, a := range p.Overlay {
		either("wall-in", "iifname != %q %s daddr %s", p.Interface, kernel.NftFamily(a), a)
		for _, r := range w.Overlay {
			if r.Contains(a) {
				either("wall-in", "iifname %q %s daddr %s %s saddr != %s", p.Interface, kernel.NftFamily(a), a, kernel.NftFamily(a), nftPrefix(r))
			}
		}
	}
	return out
}

// toHub matches all that goes to a hub but ICMP.
func toHub(h netip.Addr) string {
	icmp := 1
	if h.Is6() {
		icmp = 58
	}
	return fmt.Sprintf("%s daddr %s meta l4proto != %d", kernel.NftFamily(h), h, icmp)
}
