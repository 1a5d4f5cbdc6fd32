// Package hub puts the cloud side together: join authority, state log, control
// sessions, netmaps, inventory, admin API, and the tunnel's switchboard. New
// checks a Config; Run works until its context ends.
package hub

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/rs/zerolog"

	"causeway/hub/dns"
	"causeway/hub/join"
	"causeway/hub/state"
	"causeway/protocol"
	"causeway/tunnel"
)

// Defaults of Config.
const (
	DefaultDataDir     = "/var/lib/causeway-hub"
	DefaultAdminSocket = "/run/causeway/hub.sock"
	DefaultListenUDP   = ":51820"
	DefaultListenHTTPS = ":443"
)

// Bounds of Config.SocketBuffer: a group of datagrams has to fit.
const (
	minSocketBuffer = 128 << 10
	maxSocketBuffer = 256 << 20
)

// Config is what an operator can set (see Settings). The zero value of a field means its
// default.
type Config struct {
	DataDir         string
	ListenUDP       string // host:port; an empty host means every address
	ListenHTTPS     string
	PublicHost      string         // name or address at which agents reach the hub; default: the host's first global address
	PublicUDPPort   uint16         // default: the port listened on
	PublicHTTPSPort uint16         // likewise
	AdminSocket     string         // unix socket
	ListenAdmin     string         // host:port of the admin API for certificates; empty: none
	ListenNATS      string         // host:port of NATS over TLS for users of the state; empty: none
	ListenDNS       string         // host:port of an authoritative DNS server for public names of services; empty: none
	DNSZone         string         // that it answers
	DNSServers      string         // name servers of the zone, NAME or NAME=ADDRESS, separated by commas
	ListenMetrics   string         // host:port of metrics and health over HTTP, for whoever reaches it; empty: none
	Overlay         []netip.Prefix // for a new cluster; an existing one has to be started with the same
	SocketBuffer    int            // of the UDP sockets, each way, in bytes; default: large
	RelayLimits     tunnel.RelayLimits
	NATSURL         string // external NATS servers for state log and inventory, separated by commas; empty: the embedded one
	NATSCreds       string // credentials file for NATSURL; empty: none
	NATSCA          string // PEM file of authorities that sign the certificates of NATSURL; empty: the system's
	NATSReplicas    int    // of each stream there, 1 to 5; 0: 3 in a cluster, else 1
	Packages        string // directory of releases for agents; default: packagesDir in DataDir
	RequireProof    bool   // no session without proof of the node's identity, of nodes that never proved it, too
	JoinRate        int    // requests for joins that one source may send in a second; default: join.DefaultSourceRate
	SnapshotEvery   int    // transactions between two snapshots of the state, at most; default: state.DefaultSnapshotEvery
	// Tunnel makes what carries the nodes' traffic; nil: WireGuard over UDP. Tests and
	// benchmarks have nodes that need none.
	Tunnel  func(tunnel.HubConfig) (Tunnel, error)
	Sockets Sockets
	Version string // of this build
	Log     zerolog.Logger
}

// Sockets are those that a service manager holds for the hub. They win over
// the addresses of Config; the zero value of a field means that the hub opens its own.
type Sockets struct {
	HTTPS, Admin net.Listener
	UDP          []*os.File            // that HoldUDP was given by an earlier run
	HoldUDP      func([]*os.File) bool // see relay.Config.Hold
}

// Hub is the cloud side.
type Hub struct {
	cfg     Config
	udp     netip.AddrPort
	https   string
	admin   string // empty: none
	nats    string // likewise
	metrics string // likewise
	dns     netip.AddrPort
	dnsZone dns.Zone // without a name: none
	ready   chan struct{}
	parts   atomic.Pointer[parts] // once they run

	packages string
}

// New checks cfg and fills in defaults. It opens nothing.
func New(cfg Config) (*Hub, error) {
	def := func(s *string, d string) {
		if *s == "" {
			*s = d
		}
	}
	def(&cfg.DataDir, DefaultDataDir)
	def(&cfg.ListenUDP, DefaultListenUDP)
	def(&cfg.ListenHTTPS, DefaultListenHTTPS)
	def(&cfg.AdminSocket, DefaultAdminSocket)
	def(&cfg.Version, "unknown")
	if len(cfg.Overlay) == 0 {
		cfg.Overlay = []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6}
	}
	if err := state.ValidOverlay(cfg.Overlay); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	if b := cfg.SocketBuffer; b != 0 && (b < minSocketBuffer || b > maxSocketBuffer) {
		return nil, fmt.Errorf("socket-buffer %d: give %d to %d bytes", b, minSocketBuffer, maxSocketBuffer)
	}
	if cfg.NATSCreds != "" && cfg.NATSURL == "" {
		return nil, errors.New("nats-creds: they are for --nats-url, which is missing")
	}
	if err := checkNATSURL(cfg.NATSURL); err != nil {
		return nil, err
	}
	if (cfg.NATSCA != "" || cfg.NATSReplicas != 0) && cfg.NATSURL == "" {
		return nil, errors.New("nats-ca, nats-replicas: they are for --nats-url, which is missing")
	}
	if cfg.NATSReplicas < 0 || cfg.NATSReplicas > 5 {
		return nil, fmt.Errorf("nats-replicas %d: give 1 to 5, as many servers as the cluster has at most", cfg.NATSReplicas)
	}
	if cfg.SnapshotEvery == 0 {
		cfg.SnapshotEvery = state.DefaultSnapshotEvery
	}
	if cfg.SnapshotEvery < state.MinSnapshotEvery || cfg.SnapshotEvery > state.MaxSnapshotEvery {
		return nil, fmt.Errorf("snapshot-every %d: give %d to %d transactions", cfg.SnapshotEvery, state.MinSnapshotEvery, state.MaxSnapshotEvery)
	}
	if cfg.JoinRate == 0 {
		cfg.JoinRate = join.DefaultSourceRate
	}
	if cfg.JoinRate < 1 || cfg.JoinRate > join.MaxSourceRate {
		return nil, fmt.Errorf("join-rate %d: give 1 to %d requests a second", cfg.JoinRate, join.MaxSourceRate)
	}
	if cfg.Tunnel == nil {
		cfg.Tunnel = func(c tunnel.HubConfig) (Tunnel, error) { return tunnel.NewHub(c) }
	}
	h := &Hub{cfg: cfg, ready: make(chan struct{})}
	var err error
	if h.udp, err = listenAddr(cfg.ListenUDP); err != nil {
		return nil, fmt.Errorf("listen-udp %q: %w", cfg.ListenUDP, err)
	}
	https, err := listenAddr(cfg.ListenHTTPS)
	if err != nil {
		return nil, fmt.Errorf("listen-https %q: %w", cfg.ListenHTTPS, err)
	}
	h.https = https.String()
	if !https.Addr().IsValid() {
		h.https = fmt.Sprintf(":%d", https.Port())
	}
	if cfg.ListenNATS != "" && cfg.NATSURL != "" {
		return nil, errors.New("listen-nats: with --nats-url the inventory lies in that cluster, and readers connect there (docs/NATS.md: readers of an external NATS); leave one of the two out")
	}
	for _, l := range []struct {
		flag, addr string
		to         *string
	}{{"listen-admin", cfg.ListenAdmin, &h.admin}, {"listen-nats", cfg.ListenNATS, &h.nats}, {"listen-metrics", cfg.ListenMetrics, &h.metrics}} {
		if l.addr == "" {
			continue
		}
		a, err := listenAddr(l.addr)
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", l.flag, l.addr, err)
		}
		*l.to = a.String()
		if !a.Addr().IsValid() {
			*l.to = fmt.Sprintf(":%d", a.Port())
		}
	}
	if h.dnsZone, h.dns, err = cfg.publicZone(); err != nil {
		return nil, err
	}
	if h.packages = cfg.Packages; h.packages == "" {
		h.packages = filepath.Join(cfg.DataDir, packagesDir)
	}
	if cfg.PublicUDPPort == 0 {
		h.cfg.PublicUDPPort = h.udp.Port()
	}
	if h.cfg.PublicUDPPort == 0 {
		return nil, fmt.Errorf("listen-udp %q: agents have to know the port; choose one", cfg.ListenUDP)
	}
	if p := cfg.PublicHost; p != "" {
		if strings.ContainsAny(p, " /@?#\\[]") || strings.Contains(p, ":") && !isAddr(p) || len(p) > 253 {
			return nil, fmt.Errorf("public-host %.80q: give a host name or an address, without a port (the ports are --public-udp-port and --public-https-port)", p)
		}
	}
	return h, nil
}

// CheckPublicHost says in one line why no agent on another host reaches a hub at p.
func CheckPublicHost(p string) error {
	name := strings.ToLower(strings.TrimSuffix(p, "."))
	what := ""
	switch a, err := netip.ParseAddr(p); {
	case err == nil && a.Unmap().IsLoopback(), name == "localhost", strings.HasSuffix(name, ".localhost"),
		name == "localhost.localdomain", name == "ip6-localhost", name == "ip6-loopback":
		what = "is every host's own loopback"
	case err == nil && a.Unmap().IsUnspecified():
		what = "is no host's address"
	case err == nil && (a.Unmap().IsMulticast() || a.Unmap() == netip.AddrFrom4([4]byte{255, 255, 255, 255})):
		what = "is the address of many hosts"
	case err == nil && a.Unmap().IsLinkLocalUnicast():
		what = "is good on one link alone"
	default:
		return nil
	}
	return fmt.Errorf("public-host %.80s %s; give the name or address at which agents on other hosts reach this hub", p, what)
}

func isAddr(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// listenAddr reads host:port, where host is empty or an address. Without a host the
// address is not valid, which means every address.
func listenAddr(s string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, errors.New("give ADDRESS:PORT or :PORT")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, errors.New("the port is no number from 0 to 65535")
	}
	var a netip.Addr
	if host != "" {
		if a, err = netip.ParseAddr(host); err != nil {
			return netip.AddrPort{}, errors.New("the host is no IP address; leave it out to listen on every address")
		}
	}
	return netip.AddrPortFrom(a, uint16(n)), nil
}

// PublicHost returns where agents reach the hub if the operator did not say:
// the first global address of the host, IPv4 first, public before private.
func PublicHost() (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("find the host's addresses: %w", err)
	}
	best, rank := "", 0
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		ip = ip.Unmap()
		if !ok || !ip.IsGlobalUnicast() {
			continue
		}
		r := 1
		if ip.Is4() {
			r++
		}
		if !ip.IsPrivate() {
			r += 2
		}
		if r > rank {
			best, rank = ip.String(), r
		}
	}
	if best == "" {
		return "", errors.New("this host has no global address; say with --public-host where agents reach the hub")
	}
	return best, nil
}
