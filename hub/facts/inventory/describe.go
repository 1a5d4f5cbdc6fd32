package inventory

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"causeway/protocol"
)

// maxLines bounds what is told of one message.
const maxLines = 100

// describe tells for a person what changed. What moves all the time, such as load, is not
// told of.
func describe(was, now protocol.Inventory) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	text := func(what, a, b string) {
		if a != b && a != "" {
			say("%s %s, was %s", what, b, a)
		}
	}
	text("hostname", was.Hostname, now.Hostname)
	text("os", was.OS, now.OS)
	text("kernel", was.Kernel, now.Kernel)
	text("agent", was.AgentVersion, now.AgentVersion)
	text("engine", was.Engine, now.Engine)
	text("pod ranges", list(was.PodCIDRs), list(now.PodCIDRs))
	for _, k := range keys(was.Runtimes, now.Runtimes) {
		a, before := was.Runtimes[k]
		b, after := now.Runtimes[k]
		switch {
		case !before:
			say("runtime %s %s is there", k, b.Version)
		case !after:
			say("runtime %s is gone", k)
		case a.Error != b.Error && b.Error != "":
			say("runtime %s: %s", k, b.Error)
		case a.Error != b.Error:
			say("runtime %s answers again", k)
		}
	}
	for _, k := range keys(was.Containers, now.Containers) {
		a, before := was.Containers[k]
		b, after := now.Containers[k]
		switch {
		case !after:
			say("container %s removed (%s, %s)", a.Name, a.Image, short(k))
		case !before || a.State != b.State:
			say("container %s %s%s (%s, %s)", b.Name, b.State, at(b), b.Image, short(k))
		case !slices.Equal(a.Addresses, b.Addresses):
			say("container %s moved%s, was%s", b.Name, at(b), at(a))
		case a.Name != b.Name:
			say("container %s, was %s", b.Name, a.Name)
		}
	}
	a, b := byName(was.Interfaces), byName(now.Interfaces)
	for _, k := range keys(a, b) {
		x, before := a[k]
		y, after := b[k]
		switch {
		case !before:
			say("interface %s appeared, %s, %s", k, upDown(y.Up), list(y.Addresses))
		case !after:
			say("interface %s is gone", k)
		case x.Up != y.Up:
			say("interface %s %s", k, upDown(y.Up))
		case !slices.Equal(x.Addresses, y.Addresses):
			say("interface %s has %s, had %s", k, list(y.Addresses), list(x.Addresses))
		case x.MTU != y.MTU:
			say("interface %s MTU %d, was %d", k, y.MTU, x.MTU)
		case x.SpeedMbit != y.SpeedMbit:
			say("interface %s %d Mbit/s, was %d", k, y.SpeedMbit, x.SpeedMbit)
		}
	}
	for _, k := range keys(was.Paths, now.Paths) {
		if x, y := was.Paths[k], now.Paths[k]; x.Path != "" && y.Path != "" && x.Path != y.Path {
			say("path to %s %s, was %s", y.Peer, y.Path, x.Path)
		}
	}
	if n := len(out) - maxLines; n > 0 {
		out = append(out[:maxLines], fmt.Sprintf("and %d more", n))
	}
	return out
}

func keys[T any](a, b map[string]T) []string {
	return slices.Compact(slices.Sorted(func(yield func(string) bool) {
		for _, m := range []map[string]T{a, b} {
			for k := range maps.Keys(m) {
				if !yield(k) {
					return
				}
			}
		}
	}))
}

func byName(l []protocol.Interface) map[string]protocol.Interface {
	m := make(map[string]protocol.Interface, len(l))
	for _, x := range l {
		m[x.Name] = x
	}
	return m
}

// short is a container's key with as much of its id as people use.
func short(key string) string {
	runtime, id, _ := strings.Cut(key, "/")
	return runtime + "/" + id[:min(len(id), 12)]
}

func at(c protocol.Container) string {
	if len(c.Addresses) == 0 {
		return ""
	}
	return " at " + list(c.Addresses)
}

func upDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

func list[T fmt.Stringer](l []T) string {
	if len(l) == 0 {
		return "none"
	}
	s := make([]string, len(l))
	for i, x := range l {
		s[i] = x.String()
	}
	return strings.Join(s, ", ")
}
