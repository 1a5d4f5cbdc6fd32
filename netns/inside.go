package netns

import (
	"regexp"
	"slices"

	"github.com/vishvananda/netlink"
)

// perContainer is how engines call the host's end of one container's own link, where there is no bridge.
var perContainer = regexp.MustCompile(`^(veth|cali|lxc|lxd|tap|vnet)`)

// MaxInside bounds the interfaces that are told to lead to this host's containers alone.
const MaxInside = 256

// inside are those of links behind which there is nobody but this host's own containers and virtual machines, at most
// MaxInside: bridges of which each port is a virtual link, and such links on their own. What a default route leads by is none,
// nor is a bridge with a network card, a VLAN or a tunnel among its ports. own is the tunnel's.
func inside(links []netlink.Link, own int) ([]string, error) {
	out, err := leadOut()
	if err != nil {
		return nil, err
	}
	virtual := func(l netlink.Link) bool { return l.Type() == "veth" || isTUN(l) }
	for _, l := range links {
		if m := l.Attrs().MasterIndex; m != 0 && !virtual(l) {
			out[m] = true
		}
	}
	var names []string
	for _, l := range links {
		a := l.Attrs()
		if a.Index == own || a.MasterIndex != 0 || out[a.Index] || !plainName(a.Name) {
			continue
		}
		if l.Type() == "bridge" || virtual(l) && perContainer.MatchString(a.Name) {
			names = append(names, a.Name)
		}
	}
	slices.Sort(names)
	return names[:min(len(names), MaxInside)], nil
}
