package inventory

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"causeway/protocol"
)

// maxText bounds what agents write of themselves, and maxKey the keys of their maps.
const (
	maxText = protocol.MaxFactText
	maxKey  = 512
)

// decodeSnapshot reads facts.
func decodeSnapshot(data []byte) (inv protocol.Inventory, err error) {
	if len(data) > protocol.MaxInventory {
		return inv, errors.New("too long")
	}
	if json.Unmarshal(data, &inv) != nil {
		return inv, errors.New("not the JSON of an inventory")
	}
	if inv.Version < 1 || inv.Version > protocol.Version+1 || inv.Hostname == "" {
		return inv, errors.New("no version or hostname in it")
	}
	return inv, clean(&inv)
}

// decodeDelta reads a delta. What its changes make of facts, clean judges.
func decodeDelta(data []byte) (d protocol.InventoryDelta, err error) {
	if len(data) > protocol.MaxInventory {
		return d, errors.New("too long")
	}
	if json.Unmarshal(data, &d) != nil || len(d.Changes) == 0 {
		return d, errors.New("not the JSON of a delta")
	}
	if d.Version < 1 || d.Version > protocol.Version+1 || d.Sequence == 0 {
		return d, errors.New("no version or sequence in it")
	}
	return d, nil
}

// clean checks the bounds of facts and makes their text fit for a terminal.
func clean(f *protocol.Inventory) error {
	switch {
	case len(f.Interfaces) > protocol.MaxInterfaces, len(f.PodCIDRs) > protocol.MaxNodeRoutes, len(f.Labels) > protocol.MaxNodeLabels:
		return errors.New("more interfaces, ranges or labels than a node has")
	case len(f.Containers) > protocol.MaxContainers, len(f.Disks) > protocol.MaxDisks, len(f.Paths) > protocol.MaxPaths, len(f.Runtimes) > protocol.MaxRuntimes, len(f.LeftOut) > 16:
		return errors.New("more containers, disks, paths or runtimes than a node may tell of")
	}
	if len(f.Refused) > protocol.MaxRefused || slices.ContainsFunc(f.Refused, func(r protocol.RefusedFlow) bool { return !r.Valid() }) {
		return errors.New("more refused flows than a node may tell of, or none that is one")
	}
	line := func(l ...*string) {
		for _, t := range l {
			*t = protocol.OneLine(*t, maxText)
		}
	}
	line(&f.Hostname, &f.OS, &f.Kernel, &f.Arch, &f.Virtual, &f.CPUModel, &f.AgentVersion, &f.Engine)
	for i := range f.LeftOut {
		line(&f.LeftOut[i])
	}
	f.Labels = protocol.OneLineLabels(f.Labels)
	f.Interfaces, f.PodCIDRs = notNil(f.Interfaces), notNil(f.PodCIDRs)
	for i := range f.Interfaces {
		x := &f.Interfaces[i]
		if len(x.Addresses) > protocol.MaxAddresses {
			return errors.New("more addresses than an interface has")
		}
		x.Addresses = notNil(x.Addresses)
		line(&x.Name, &x.Kind, &x.MAC)
	}
	err := errors.Join(
		each(f.Disks, func(d *protocol.Disk) error { line(&d.Device, &d.Type); return nil }),
		each(f.Paths, func(p *protocol.Path) error {
			p.Path = protocol.PathKind(protocol.OneLine(string(p.Path), 16))
			line(&p.Peer)
			return nil
		}),
		each(f.Runtimes, func(r *protocol.Runtime) error { line(&r.Kind, &r.Version, &r.From, &r.Error); return nil }),
		each(f.Containers, func(c *protocol.Container) error {
			if len(c.Addresses) > protocol.MaxAddresses || len(c.Labels) > protocol.MaxNodeLabels {
				return errors.New("more addresses or labels than a container has")
			}
			c.State = protocol.ContainerState(protocol.OneLine(string(c.State), 32))
			line(&c.ID, &c.Runtime, &c.Name, &c.Image)
			c.Labels, c.Addresses = protocol.OneLineLabels(c.Labels), notNil(c.Addresses)
			for i, a := range c.Addresses { // a zone may be any text
				c.Addresses[i] = a.WithZone("")
			}
			return nil
		}))
	if err != nil {
		return errors.New(firstLine(err))
	}
	return nil
}

// each changes all values of m. Keys stay, as deltas name them: one that does
// not print makes the message a bad one.
func each[T any](m map[string]T, f func(*T) error) error {
	for k, v := range m {
		if len(k) > maxKey || protocol.OneLine(k, maxKey) != k {
			return errors.New("a key that does not print")
		}
		if err := f(&v); err != nil {
			return err
		}
		m[k] = v
	}
	return nil
}

func firstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}

// notNil keeps a list from being null in JSON.
func notNil[T netip.Addr | netip.Prefix | protocol.Interface](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}
