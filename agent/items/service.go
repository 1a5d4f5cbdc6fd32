package items

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"go4.org/netipx"

	"causeway/netns"
	svc "causeway/netns/service"
	"causeway/protocol"
)

// services are addresses of services: agent/service leads their traffic, and what is on the host for it is a table.
type services struct{}

// Service is a service as this node has taken it.
type Service struct {
	Name string
	protocol.ServiceItem
}

func (services) Kind() string { return protocol.ItemService }

func (services) Check(i protocol.Item) error {
	_, err := serviceOf(i)
	return err
}

func serviceOf(i protocol.Item) (Service, error) {
	b, err := bodyOf[protocol.ServiceItem](i)
	if err == nil {
		err = b.Check()
	}
	return Service{i.Name, b}, err
}

func (services) Apply(context.Context, []protocol.Item) error { return nil }

func (services) Text(i protocol.Item) string {
	s, err := serviceOf(i)
	if err != nil {
		return err.Error()
	}
	at := "no address of its own"
	switch {
	case s.VIP4.IsValid():
		at = s.VIP4.String()
	case s.VIP6.IsValid():
		at = s.VIP6.String()
	}
	return fmt.Sprintf("%s, served at %d addresses", at, len(s.Endpoints))
}

// Part is there while there is a service that has an address; what it leads where changes without it.
func (services) Part(v View, l []protocol.Item) (netns.Part, error) {
	taken := TakeServices(v, l)
	var b netipx.IPSetBuilder
	for _, s := range taken {
		for _, a := range []netip.Addr{s.VIP4, s.VIP6} {
			if a.IsValid() {
				b.Add(a)
			}
		}
	}
	vips, err := b.IPSet()
	if err != nil || len(vips.Prefixes()) == 0 || v.Services == nil {
		return nil, err
	}
	return svc.NewPart(svc.Config{Interface: v.Interface, Range: servicesRange(v, vips), Own: v.Own, Local: v.Local, Self: ownBackends(v, taken)}, v.Services)
}

// ownBackends are the endpoints of services that are pods at this node, or on its LANs, and may be clients of theirs.
func ownBackends(v View, taken []Service) (out []netip.Addr) {
	for _, s := range taken {
		for _, e := range s.Endpoints {
			if vip := s.VIP4.IsValid() && e.Addr.Is4() || s.VIP6.IsValid() && e.Addr.Is6(); vip && slices.ContainsFunc(v.Local, func(p netip.Prefix) bool { return p.Contains(e.Addr) }) {
				out = append(out, e.Addr)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	out = slices.Compact(out)
	return out[:min(len(out), svc.MaxPrefixes)]
}

// servicesRange is the upper half of the overlay, so that an address that is no service's any more is refused at once. Where nodes or
// hubs have addresses there it is the services' addresses alone.
func servicesRange(v View, vips *netipx.IPSet) (out []netip.Prefix) {
	for _, o := range v.Overlay {
		r := netipx.RangeOfPrefix(o)
		upper := netip.PrefixFrom(r.To(), o.Bits()+1).Masked()
		used := func(a netip.Addr) bool { return upper.Contains(a) }
		mixed := slices.ContainsFunc(slices.Concat(v.Own, v.Hubs), used) ||
			slices.ContainsFunc(v.Peers, func(p protocol.Peer) bool { return slices.ContainsFunc(p.Overlay, used) })
		for _, p := range vips.Prefixes() {
			mixed = mixed || o.Contains(p.Addr()) && !upper.Contains(p.Addr())
		}
		if !mixed {
			out = append(out, upper)
			continue
		}
		for _, p := range vips.Prefixes() {
			if o.Contains(p.Addr()) {
				out = append(out, p)
			}
		}
	}
	return out
}

// TakeServices are the services among items as this node takes them. One whose address is not in the overlay, or is a node's or hub's,
// is none: a hub could lead their traffic elsewhere by it.
func TakeServices(v View, l []protocol.Item) (out []Service) {
	nodes := map[netip.Addr]bool{}
	for _, a := range slices.Concat(v.Own, v.Hubs) {
		nodes[a] = true
	}
	for _, p := range v.Peers {
		for _, a := range p.Overlay {
			nodes[a] = true
		}
	}
	taken := func(a netip.Addr) bool {
		in := slices.ContainsFunc(v.Overlay, func(o netip.Prefix) bool { return o.Contains(a) && o.Masked().Addr() != a })
		if !in || nodes[a] {
			return false
		}
		nodes[a] = true
		return true
	}
	for _, i := range l {
		if i.Kind != protocol.ItemService {
			continue
		}
		s, err := serviceOf(i)
		if err != nil || s.VIP4.IsValid() && !taken(s.VIP4) || s.VIP6.IsValid() && !taken(s.VIP6) {
			continue
		}
		out = append(out, s)
	}
	return out
}
