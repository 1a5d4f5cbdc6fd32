package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"causeway/netns/internal/kernel"
)

// Reflector is a Part that leads some of what addresses behind this host send back to themselves.
//
// Where bridges hand frames to netfilter (br_netfilter), what is translated back to the bridge that it came by is bridged, and a bridge
// sends nothing out of the port that it came in by, unless the port is in hairpin mode. Elsewhere the host forwards it, and nothing is needed.
type Reflector interface {
	Part
	Reflects() []netip.Addr
}

// maxHairpin bounds the addresses whose ports are put into hairpin mode.
const maxHairpin = 1024

// savedPort is a bridge's port that was not in hairpin mode.
type savedPort struct {
	Name  string `json:"name"`
	Index int    `json:"index"`
}

// hairpins are the bridges' ports that have to be in hairpin mode and are not by others' doing; ours are those that we put there. Only
// links to containers and virtual machines are: a network card would send back to a LAN what came from there.
func hairpins(c Config, links []netlink.Link, ours []savedPort) (out []string, err error) {
	ports, asked := map[int]bool{}, 0
	unknown := false // where somebody is; then what is ours stays: a bridge that gets another address forgets its neighbors
	for _, p := range c.Parts {
		r, ok := p.(Reflector)
		if !ok {
			continue
		}
		for _, a := range r.Reflects() {
			if asked++; asked > maxHairpin || !handsOver(a.Is6()) {
				continue
			}
			port := 0
			if routes, err := netlink.RouteGet(a.AsSlice()); err == nil && len(routes) > 0 {
				if mac := kernel.Station(routes[0].LinkIndex, a); mac != nil {
					port = kernel.PortOf(routes[0].LinkIndex, mac)
				}
			}
			ports[port] = true
			unknown = unknown || port == 0
		}
	}
	if len(ports) == 0 {
		return nil, nil
	}
	modes, err := kernel.HairpinPorts()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		a := l.Attrs()
		mine := slices.Contains(ours, savedPort{a.Name, a.Index})
		on, port := modes[a.Index]
		if port && (ports[a.Index] || mine && unknown) && (mine || !on) && (l.Type() == "veth" || isTUN(l)) && plainName(a.Name) {
			out = append(out, a.Name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// handsOver reports whether bridges hand frames of a family to netfilter.
func handsOver(v6 bool) bool {
	key := "net.bridge.bridge-nf-call-iptables"
	if v6 {
		key = "net.bridge.bridge-nf-call-ip6tables"
	}
	v, err := kernel.ReadSysctl(key)
	return err == nil && v == "1"
}

func hairpinLine(dev string) string { return "bridge link set dev " + dev + " hairpin on" }

// foundHairpins are the lines of those ports that are in hairpin mode.
func foundHairpins(devs []string) (out []string) {
	if len(devs) == 0 {
		return nil
	}
	modes, _ := kernel.HairpinPorts()
	for _, dev := range devs {
		if l, err := netlink.LinkByName(dev); err == nil && modes[l.Attrs().Index] {
			out = append(out, hairpinLine(dev))
		}
	}
	return out
}

// applyHairpins puts the plan's ports into hairpin mode, having recorded them, and takes back those that it has not any more. What went
// with its container is forgotten.
func (h *Host) applyHairpins(rec *record, p Plan) error {
	var errs []error
	was := len(rec.Hairpin)
	rec.Hairpin = slices.DeleteFunc(rec.Hairpin, func(s savedPort) bool {
		if slices.Contains(p.Hairpin, s.Name) {
			if l, err := netlink.LinkByName(s.Name); err == nil && l.Attrs().Index == s.Index {
				return false
			}
			return true // there is another one of its name
		}
		l, err := netlink.LinkByIndex(s.Index)
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) || err == nil && (l.Attrs().Name != s.Name || l.Attrs().MasterIndex == 0) {
			return true
		}
		if err == nil {
			err = netlink.LinkSetHairpin(l, false)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("take port %s out of hairpin mode: %w", s.Name, err))
		}
		return err == nil
	})
	changed := len(rec.Hairpin) != was
	var set []netlink.Link
	for _, dev := range p.Hairpin {
		l, err := netlink.LinkByName(dev)
		if err != nil || l.Attrs().MasterIndex == 0 {
			continue // it went since
		}
		set = append(set, l)
		if s := (savedPort{dev, l.Attrs().Index}); !slices.Contains(rec.Hairpin, s) {
			rec.Hairpin = append(rec.Hairpin, s)
			changed = true
		}
	}
	if changed {
		if err := h.writeRecord(rec); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	for _, l := range set {
		if err := netlink.LinkSetHairpin(l, true); err != nil {
			errs = append(errs, fmt.Errorf("put port %s into hairpin mode, without which what is behind it does not reach itself by a service: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}
