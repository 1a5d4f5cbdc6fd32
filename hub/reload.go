package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"causeway/hub/join"
	"causeway/hub/state"
	"causeway/protocol"
)

// parts is what a running hub is asked about from outside.
type parts struct {
	store   *state.Store
	keys    join.Keys
	https   net.Addr
	tunnel  Tunnel
	number  protocol.NodeNumber
	nats    func(context.Context) error // asks the server inside
	metrics net.Addr                    // nil: none
	list    chan protocol.Hub           // what the hub list shall say
	space   func() error                // why the disk takes no change
	away    func() bool                 // NATS, which one ever, stores nothing
}

var errNotReady = errors.New("the hub is not ready yet")

// Alive returns an error if the hub is stuck: its state, the switchboard, or
// the NATS server inside. An external one that is away is no reason.
func (h *Hub) Alive(ctx context.Context) error {
	p := h.parts.Load()
	if p == nil {
		return errNotReady
	}
	p.store.State()
	p.tunnel.Bound(p.number) // takes the switchboard's lock
	p.tunnel.RelayStats()
	if err := p.nats(ctx); err != nil {
		return fmt.Errorf("ask the nats server inside: %w", err)
	}
	return nil
}

// unready says in a word what keeps the hub from taking joins and changes; empty:
// nothing does.
func (h *Hub) unready() string {
	p := h.parts.Load()
	switch {
	case p == nil:
		return "starting"
	case p.away():
		return "nats"
	case p.space() != nil:
		return "disk"
	case p.store.Err() != nil:
		return "state"
	}
	return ""
}

// Reload takes what a running hub can take of cfg, which New would have to
// accept, and says of the rest that it needs a restart.
func (h *Hub) Reload(ctx context.Context, cfg Config) error {
	n, err := New(cfg)
	if err != nil {
		return err
	}
	p := h.parts.Load()
	if p == nil {
		return errNotReady
	}
	public, err := h.publicHub(n.cfg, p.keys.Hub.Public(), p.https)
	if err != nil {
		return err
	}
	select {
	case p.list <- public:
	case <-ctx.Done():
		return nil
	}
	if later := h.cfg.needsRestart(n.cfg); len(later) > 0 {
		h.cfg.Log.Warn().Str("settings", strings.Join(later, ", ")).Msg("configuration reloaded, but these need a restart: systemctl restart causeway-hub")
	} else {
		h.cfg.Log.Info().Str("public_udp", public.UDP[0]).Str("public_https", public.HTTPS[0]).Msg("configuration reloaded")
	}
	return nil
}
