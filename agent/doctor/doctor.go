// Package doctor looks at a host before and after it joins: what the kernel and the rights
// of the process allow, how hubs are reached, and what on the host gets in the tunnel's way.
// It changes nothing, needs no agent, and asks nobody but hubs. The main call is Run.
package doctor

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"causeway/agent/config"
	"causeway/agent/held"
	"causeway/agent/identity"
	"causeway/protocol"
)

// Status is how a check ended.
type Status string

// Statuses, the worst first.
const (
	Fail Status = "fail" // the agent cannot work
	Warn Status = "warn" // it works, slower or not for everything, or it cannot be told
	OK   Status = "ok"
)

// Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	What   string `json:"what"`          // was found
	Why    string `json:"why,omitempty"` // it matters
	Do     string `json:"do,omitempty"`  // to mend it
}

// Config says what to look at.
type Config struct {
	Interface string             // of the tunnel
	Hubs      []string           // host:port of hubs' HTTPS ports, beside those of the identity
	Identity  *identity.Identity // nil: the host has not joined
	Routes    []netip.Prefix     // that the node's config announces
	Peers     []netip.Prefix     // routes of other nodes in the stored netmap
	Named     []netip.Prefix     // that the node's config names in accept:
	Held      held.Book          // what was routed into the tunnel, of the state directory
	Overlay   []netip.Prefix     // overlay ranges; nil: the defaults
	Version   string             // of this program where it is the package's; empty: it is not
	Shields   config.Shields     // as the node's config has them
	Proxy     func(*http.Request) (*url.URL, error)
}

// Run makes all checks and returns them, the worst first.
func Run(ctx context.Context, c Config) []Check {
	if c.Overlay == nil {
		c.Overlay = []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6}
	}
	var out []Check
	out = append(out, host(ctx, c)...)
	out = append(out, shields(c)...)
	own := owned(ctx, c)
	out = append(out, network(c, own)...)
	out = append(out, closed(c, own)...)
	reached := hubs(ctx, c)
	if len(c.Hubs) > 0 || c.Identity != nil {
		onLink(out, reached)
	}
	out = append(out, reached...)
	for i := range out { // what others sent, or called their interfaces
		for _, s := range []*string{&out[i].What, &out[i].Why, &out[i].Do} {
			*s = protocol.OneLine(*s, 400)
		}
	}
	slices.SortStableFunc(out, func(a, b Check) int { return rank(a.Status) - rank(b.Status) })
	return out
}

// onLink takes back that a host needs a default route where each hub answers without one.
func onLink(l, hubs []Check) {
	for i := range l {
		if l[i].Name == "mtu" && l[i].Status == Fail && !slices.ContainsFunc(hubs, func(k Check) bool { return k.Status == Fail }) {
			l[i] = Check{Name: "mtu", Status: OK, What: "the host has no default route, and reaches its hubs without one"}
		}
	}
}

func rank(s Status) int { return slices.Index([]Status{Fail, Warn, OK}, s) }

// few lists names, at most five.
func few(l []string) string {
	if len(l) > 5 {
		return strings.Join(l[:5], ", ") + ", …"
	}
	return strings.Join(l, ", ")
}
