package hublink

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"causeway/agent/identity"
)

const (
	// dnsGrace is how long DNS has before the addresses of before are taken without it.
	dnsGrace = time.Second
	// addrsPerName bounds what is kept of one name.
	addrsPerName = 4
)

// Names remembers at which addresses hubs answered, by the names that led there, so that they
// are found while DNS is down or wrong. An address gets in by an answer that proved the hub's key,
// never by DNS alone. Its methods may be called concurrently.
type Names struct {
	ask   func(context.Context, string) ([]netip.Addr, error) // DNS
	store *identity.Store
	log   zerolog.Logger

	mu    sync.Mutex
	known map[string][]netip.Addr // the latest first
}

// NewNames reads what was remembered. What does not read is forgotten.
func NewNames(store *identity.Store, ask func(context.Context, string) ([]netip.Addr, error), log zerolog.Logger) *Names {
	known, err := store.Addrs()
	if err != nil {
		log.Warn().Err(err).Msg("cannot read the hubs' addresses of the last run")
	}
	if known == nil {
		known = map[string][]netip.Addr{}
	}
	return &Names{ask: ask, store: store, log: log, known: known}
}

// of are the remembered addresses of a name.
func (n *Names) of(host string) []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.known[host])
}

// answered remembers that a hub answered at addr, to which host led.
func (n *Names) answered(host string, addr netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	was := n.known[host]
	if slices.Contains(was, addr) {
		return
	}
	now := slices.Insert(slices.Clone(was), 0, addr)
	n.known[host] = now[:min(len(now), addrsPerName)]
	if err := n.store.SaveAddrs(n.known); err != nil {
		n.log.Warn().Err(err).Msg("cannot keep a hub's address for the next run")
	}
}

// Lookup is what DNS says of a name, and behind it what is remembered. If DNS fails, or takes
// long, that is all. It is a sock.Lookup.
func (n *Names) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	before := n.of(host)
	if len(before) == 0 {
		return n.ask(ctx, host)
	}
	ctx, cancel := context.WithTimeout(ctx, dnsGrace)
	defer cancel()
	now, err := n.ask(ctx, host)
	if err != nil {
		return before, nil
	}
	for i, a := range now {
		now[i] = a.Unmap()
	}
	for _, a := range before {
		if !slices.Contains(now, a) {
			now = append(now, a)
		}
	}
	return now, nil
}
