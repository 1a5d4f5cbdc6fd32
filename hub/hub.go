package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"causeway/hub/join"
	"causeway/hub/reconcile"
	"causeway/hub/state"
	"causeway/protocol"
	"causeway/tunnel"
)

// Tunnel is the hub's side of the tunnel: tunnel.Hub.
type Tunnel interface {
	reconcile.Tunnel
	relayCounts
	Run(context.Context) error
	SetKeys([]tunnel.OwnKey) error
	Ready() <-chan struct{}
	Listen(netip.AddrPort) (net.Listener, error)
	RelayStats() tunnel.RelayStats
	StreamHandler() http.Handler
}

// startTimeout bounds opening the state log and the inventory.
const startTimeout = 2 * time.Minute

// Ready is closed when the hub answers joins, agents and admins.
func (h *Hub) Ready() <-chan struct{} { return h.ready }

// nodeName names a node, and says whether it is one of the cluster.
func nodeName(store *state.Store) func(protocol.NodeNumber) (string, bool) {
	return func(n protocol.NodeNumber) (string, bool) {
		node, ok := store.State().Nodes.Find(n)
		return node.Name, ok && node.Live()
	}
}

// renewList signs the hub list anew before it expires and when it is to say
// something else, until ctx ends.
func (h *Hub) renewList(ctx context.Context, p *parts, public protocol.Hub) error {
	t := time.NewTicker(24 * time.Hour)
	defer t.Stop()
	var over <-chan time.Time
	if !p.keys.Old.IsZero() {
		over = time.After(time.Until(p.keys.OldUntil))
	}
	keys := p.keys
	for {
		select {
		case <-ctx.Done():
			return nil
		case public = <-p.list:
		case <-t.C:
		case <-over:
			if err := keys.DropOld(h.cfg.DataDir); err != nil {
				h.cfg.Log.Error().Err(err).Msg("old hub key not removed")
			}
			if err := p.tunnel.SetKeys(hubKeys(keys)); err != nil {
				h.cfg.Log.Error().Err(err).Msg("keys cannot be set")
			}
			h.cfg.Log.Info().Msg("the old hub key is good no more")
			continue
		}
		if _, err := join.EnsureHub(ctx, p.store, keys, public, h.cfg.Overlay, h.cfg.NATSURL != ""); err != nil && ctx.Err() == nil {
			h.cfg.Log.Error().Err(err).Msg("hub list not renewed")
		}
	}
}

// hubKeys are the keys that are good at this hub, the present one first.
func hubKeys(k join.Keys) []tunnel.OwnKey {
	out := []tunnel.OwnKey{{Key: k.Hub}}
	if !k.Old.IsZero() {
		out = append(out, tunnel.OwnKey{Key: k.Old})
	}
	return out
}

// publicHub is how the hub list names this hub.
func (h *Hub) publicHub(cfg Config, key protocol.WireGuardPublicKey, https net.Addr) (protocol.Hub, error) {
	host := cfg.PublicHost
	if host == "" {
		var err error
		if host, err = PublicHost(); err != nil {
			return protocol.Hub{}, err
		}
		h.cfg.Log.Warn().Str("public_host", host).Msg("no public host given, agents are told this address; set --public-host if they reach the hub at another")
	}
	httpsPort := cfg.PublicHTTPSPort
	if a, ok := https.(*net.TCPAddr); ok && httpsPort == 0 {
		httpsPort = uint16(a.Port)
	}
	at := func(port uint16) []string { return []string{net.JoinHostPort(host, strconv.Itoa(int(port)))} }
	return protocol.Hub{WireGuardKey: key, UDP: at(cfg.PublicUDPPort), HTTPS: at(httpsPort)}, nil
}

// anyAddress makes 'every address' explicit: the IPv6 one, which takes IPv4 too,
// where the host has IPv6.
func anyAddress(a netip.AddrPort) netip.AddrPort {
	if a.Addr().IsValid() {
		return a
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port())
	}
	unix.Close(fd)
	return netip.AddrPortFrom(netip.IPv6Unspecified(), a.Port())
}

func listenTCP(ctx context.Context, flag, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, explainPort(flag, "tcp", addr, err)
	}
	return l, nil
}

func explainUDP(addr netip.AddrPort, err error) error {
	if err == nil {
		return nil
	}
	at := fmt.Sprintf(":%d", addr.Port())
	if addr.Addr().IsValid() {
		at = addr.String()
	}
	var no syscall.Errno
	if !errors.As(err, &no) {
		return fmt.Errorf("tunnel: %w", err)
	}
	return explainPort("listen-udp", "udp", at, err)
}

// explainPort says what to do about a port that cannot be had.
func explainPort(flag, network, addr string, err error) error {
	_, port, _ := net.SplitHostPort(addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s: port %s/%s is taken by another program; stop that, or choose another with --%s", flag, port, network, flag)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%s: an ordinary user may not listen on port %s/%s; set the sysctl net.ipv4.ip_unprivileged_port_start=%s, or choose a port above 1023 with --%s", flag, port, network, port, flag)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s: this host has no address %s", flag, addr)
	}
	return fmt.Errorf("%s %s: %w", flag, addr, err)
}
