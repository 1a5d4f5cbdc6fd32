// Package netns is the host's network: what an agent puts there (link
// addresses, routes, rules, nftables, sysctls) as a plan that is a plain value,
// and the code that applies a plan whole, finds what is there, and takes it
// all back.
package netns

import (
	"context"
	"errors"
	"net/netip"

	"github.com/rs/zerolog"
)

// Config is what an agent wants of its host.
type Config struct {
	Interface string         // the TUN device, made by the tunnel
	MTU       int            // of routes into the tunnel
	Mark      uint32         // SO_MARK of underlay sockets: these never take tunnel routes
	Table     int            // routing table of the tunnel's own
	Overlay   []netip.Addr   // the node's overlay addresses
	Routes    []netip.Prefix // what is routed into the tunnel
	Local     []netip.Prefix // what the node itself announces: pods and LANs behind it
}

// Defaults of Config.
const (
	DefaultInterface = "cw0"
	DefaultTable     = 0xca5e // 51806
	DefaultMark      = 0xca5e
)

// Plan is the desired state, a value that prints as the commands that would
// make it (ip, nft, sysctl), one a line.
type Plan struct{ Config }

// Lines returns the plan as commands, sorted by kind.
func (p Plan) Lines() []string { return nil }

// NewPlan computes the plan. It fails on a Config that makes no sense.
func NewPlan(c Config) (Plan, error) { return Plan{c}, nil }

// Host applies plans to the network namespace that the process is in. What it
// changed beyond its own objects (sysctls, foreign firewalls) it records in
// stateDir so that Remove can put it back, after a crash too.
type Host struct{}

// NewHost opens nothing.
func NewHost(stateDir string, log zerolog.Logger) *Host { return &Host{} }

// Apply makes the host match the plan, whole and idempotent.
func (h *Host) Apply(ctx context.Context, p Plan) error { return errors.New("netns: not built yet") }

// Found returns what is there of ours, in the form of Plan.Lines.
func (h *Host) Found(ctx context.Context, c Config) ([]string, error) { return nil, nil }

// Remove takes everything back, as it was before the first Apply. It is
// idempotent and needs no running agent.
func (h *Host) Remove(ctx context.Context, c Config) error { return errors.New("netns: not built yet") }

// ForeignRoutes lists the host's own non-default routes outside our table:
// prefixes that a netmap may not take over unless accept: names them exactly.
func (h *Host) ForeignRoutes(ctx context.Context, c Config) ([]netip.Prefix, error) { return nil, nil }
