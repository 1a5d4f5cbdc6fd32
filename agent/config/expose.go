package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"causeway/netns"
)

// MaxExpose bounds expose.
const MaxExpose = 64

// Exposure is where services may be met from elsewhere than the tunnel.
type Exposure struct {
	Addr  netip.Addr // of the host; unspecified: each of its family
	Ports netns.Port // of tcp and udp
}

// Allows reports whether a service may be exposed at an address of the host, or at all of them where that is unspecified.
func (e Exposure) Allows(at netip.AddrPort) bool {
	a := at.Addr()
	return (e.Addr == a || e.Addr.IsUnspecified() && e.Addr.Is4() == a.Is4()) && e.Ports.First <= at.Port() && at.Port() <= e.Ports.Last
}

// parseExpose reads the list; an error comes with the key that it is about.
func parseExpose(in []string) (out []Exposure, key string, err error) {
	if len(in) > MaxExpose {
		return nil, "$.expose", fmt.Errorf("%d places are more than %d; write ranges of ports, such as 0.0.0.0:8000-8010", len(in), MaxExpose)
	}
	for i, s := range in {
		key = fmt.Sprintf("$.expose[%d]", i)
		bad := fmt.Errorf("%.60q is no ADDRESS:PORTS; write for example 0.0.0.0:8080, 203.0.113.5:8000-8010 or [::]:443", s)
		colon := strings.LastIndexByte(s, ':')
		if colon < 0 {
			return nil, key, bad
		}
		text, six := strings.CutPrefix(s[:colon], "[")
		text, closed := strings.CutSuffix(text, "]")
		a, err := netip.ParseAddr(text)
		if err != nil || six != closed || six != a.Is6() || a.Is4In6() || a.Zone() != "" || !a.IsUnspecified() && !a.IsGlobalUnicast() {
			return nil, key, bad
		}
		p, err := ParsePort("tcp/" + s[colon+1:])
		if err != nil {
			return nil, key, bad
		}
		p.Proto = ""
		e := Exposure{a, p}
		if slices.Contains(out, e) {
			return nil, key, fmt.Errorf("%s is there twice; remove one", s)
		}
		out = append(out, e)
	}
	return out, "", nil
}
