package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"causeway/agent/capture"
	"causeway/agent/debug"
	"causeway/netns"
)

// capture begins to record the tunnel's interface or a pod's. The hub's sessions are
// never in it, and the underlay cannot be captured.
func (a *answers) capture(q debug.CaptureQuery) (debug.Recording, error) {
	c := capture.Config{Interface: a.host.DeviceName(), Filter: q.Filter, Only: q.Pod, Time: q.Time, Bytes: q.Bytes, Payload: q.Payload, Flush: q.Flush,
		Comment: "node " + a.want.Name()}
	if q.Pod.IsValid() {
		var err error
		if c.Interface, err = a.podInterface(q.Pod); err != nil {
			return nil, err
		}
	}
	for _, h := range a.want.Now().Hubs.Hubs {
		c.Never = append(c.Never, a.want.Now().Hubs.Addrs(h.Number)...)
	}
	rec, err := capture.Open(c)
	if err != nil {
		return nil, err
	}
	return rec, nil
}

// podInterface is the host's interface behind which a pod of this node is: its own end of
// the pod's link where that can be told, else the bridge.
func (a *answers) podInterface(pod netip.Addr) (string, error) {
	if !slices.ContainsFunc(a.want.Announced(), func(p netip.Prefix) bool { return p.Contains(pod) }) {
		return "", fmt.Errorf("%s is in no range that this node announces", pod)
	}
	found, err := netlink.RouteGet(pod.AsSlice())
	if err != nil || len(found) == 0 || found[0].Type != unix.RTN_UNICAST {
		return "", fmt.Errorf("this host has no route to the pod %s", pod)
	}
	l, err := netlink.LinkByIndex(found[0].LinkIndex)
	if err != nil {
		return "", fmt.Errorf("the interface of %s: %w", pod, err)
	}
	name := l.Attrs().Name
	if a.carries(l.Attrs().Index) {
		return "", fmt.Errorf("%s is behind %s, which carries the tunnel itself and is not captured: capture the node with the filter 'host %s'", pod, name, pod)
	}
	if name == a.host.DeviceName() || name == "lo" {
		return "", fmt.Errorf("%s is behind %s, not on this node", pod, name)
	}
	if l.Type() != "bridge" {
		return name, nil
	}
	family := unix.AF_INET6
	if pod.Is4() {
		family = unix.AF_INET
	}
	near, err := netlink.NeighList(l.Attrs().Index, family)
	if err != nil {
		return name, nil //nolint:nilerr // the bridge sees it as well
	}
	ports, err := netlink.NeighList(0, unix.AF_BRIDGE)
	if err != nil {
		return name, nil //nolint:nilerr // likewise
	}
	for _, n := range near {
		if at, _ := netip.AddrFromSlice(n.IP); at.Unmap() != pod || len(n.HardwareAddr) == 0 {
			continue
		}
		for _, p := range ports {
			if p.MasterIndex == l.Attrs().Index && p.HardwareAddr.String() == n.HardwareAddr.String() && p.LinkIndex != l.Attrs().Index {
				if port, err := netlink.LinkByIndex(p.LinkIndex); err == nil {
					return port.Attrs().Name, nil
				}
			}
		}
	}
	return name, nil
}

// carries reports whether the tunnel's own packets leave over an interface now.
func (a *answers) carries(index int) bool {
	for _, p := range a.tunnel.Paths() {
		if !p.Addr.IsValid() {
			continue
		}
		found, err := netlink.RouteGetWithOptions(p.Addr.Addr().AsSlice(), &netlink.RouteGetOptions{Mark: netns.DefaultMark})
		if err == nil && slices.ContainsFunc(found, func(r netlink.Route) bool { return r.LinkIndex == index }) {
			return true
		}
	}
	return false
}
