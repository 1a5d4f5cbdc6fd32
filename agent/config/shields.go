package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"causeway/netns"
	"causeway/protocol"
)

// MaxShieldPorts bounds shields: {allow: …}.
const MaxShieldPorts = 64

// Shields say what of the host itself other nodes reach.
type Shields struct {
	State string       // up or down; empty: as the identity has it
	Allow []netns.Port // reached all the same
}

// On is what they are on a host whose identity says joined.
func (s Shields) On(joined bool) netns.Shields {
	return netns.Shields{Up: s.State == "up" || s.State == "" && joined, Allow: s.Allow}
}

// ParsePort reads tcp/22 or udp/5000-5010.
func ParsePort(s string) (netns.Port, error) {
	bad := fmt.Errorf("%.40q is no port; write for example tcp/22, udp/53 or tcp/8000-8010", s)
	proto, rest, ok := strings.Cut(s, "/")
	if !ok || proto != protocol.FlowTCP && proto != protocol.FlowUDP {
		return netns.Port{}, bad
	}
	first, last, is := strings.Cut(rest, "-")
	if !is {
		last = first
	}
	number := func(s string) uint16 {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || strconv.FormatUint(n, 10) != s {
			return 0
		}
		return uint16(n)
	}
	p := netns.Port{Proto: proto, First: number(first), Last: number(last)}
	if p.First == 0 || p.Last == 0 || is && p.First >= p.Last {
		return netns.Port{}, bad
	}
	return p, nil
}

// parseShields reads the section; an error comes with the key that it is about.
func parseShields(state string, allow []string) (s Shields, key string, err error) {
	if state != "" && state != "up" && state != "down" {
		return s, "$.shields.state", fmt.Errorf("%.40q is neither up nor down", state)
	}
	if len(allow) > MaxShieldPorts {
		return s, "$.shields.allow", fmt.Errorf("%d ports are more than %d; write ranges, such as tcp/8000-8010", len(allow), MaxShieldPorts)
	}
	s.State = state
	for i, a := range allow {
		p, err := ParsePort(a)
		key = fmt.Sprintf("$.shields.allow[%d]", i)
		if err != nil {
			return s, key, err
		}
		if slices.Contains(s.Allow, p) {
			return s, key, fmt.Errorf("%s is there twice; remove one", p)
		}
		s.Allow = append(s.Allow, p)
	}
	return s, "", nil
}
