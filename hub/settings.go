package hub

import (
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"strings"

	"causeway/hub/api"
	"causeway/hub/join"
	"causeway/hub/state"
	"causeway/protocol"
)

// Setting is something that an operator can set of a hub. Its flag is --Name, its environment
// variable CAUSEWAY_HUB_NAME, its key in the file Name with underscores: all that is known of
// a setting stands here, and flags, file, docs/CONFIG.md, GET /v1/settings and reload come of it.
type Setting struct {
	Name, Doc string
	Live      bool // taken by Reload; the others need a restart
	// Field points into a Config: *string, *bool, *int, *uint16, *uint64 or *[]netip.Prefix.
	Field func(*Config) any
	// Show is the value without what is secret in it; nil: nothing is.
	Show func(value any) string
}

// Settings are all of them, in the order of docs/CONFIG.md.
var Settings = []Setting{
	{Name: "data-dir", Doc: "directory of keys and state", Field: func(c *Config) any { return &c.DataDir }},
	{Name: "listen-udp", Doc: "ADDRESS:PORT for WireGuard and the relay", Field: func(c *Config) any { return &c.ListenUDP }},
	{Name: "listen-https", Doc: "ADDRESS:PORT for joins, and for agents to whom UDP does not pass", Field: func(c *Config) any { return &c.ListenHTTPS }},
	{Name: "public-host", Live: true, Doc: "name or address at which agents reach the hub (default: the first global address)", Field: func(c *Config) any { return &c.PublicHost }},
	{Name: "public-udp-port", Live: true, Doc: "UDP port at which agents reach the hub (default: the one listened on)", Field: func(c *Config) any { return &c.PublicUDPPort }},
	{Name: "public-https-port", Live: true, Doc: "HTTPS port at which agents reach the hub (default: the one listened on)", Field: func(c *Config) any { return &c.PublicHTTPSPort }},
	{Name: "admin-socket", Doc: "unix socket of the admin API", Field: func(c *Config) any { return &c.AdminSocket }},
	{Name: "listen-admin", Doc: "ADDRESS:PORT of the admin API for admins with a certificate, such as :7443 (default: not served)", Field: func(c *Config) any { return &c.ListenAdmin }},
	{Name: "overlay", Doc: "range of node addresses, one for each address family; later it can only grow, from the same address on", Field: func(c *Config) any { return &c.Overlay }},
	{Name: "nats-url", Doc: "external NATS servers for state log and inventory, tls://HOST:PORT, several separated by commas (default: the server inside the hub)", Field: func(c *Config) any { return &c.NATSURL }, Show: withoutPasswords},
	{Name: "nats-creds", Doc: "file of credentials for --nats-url", Field: func(c *Config) any { return &c.NATSCreds }},
	{Name: "nats-ca", Doc: "PEM FILE of the authorities that sign the certificates of --nats-url (default: the system's)", Field: func(c *Config) any { return &c.NATSCA }},
	{Name: "nats-replicas", Doc: "servers of --nats-url that keep each stream, 1 to 5 (default: 3 in a cluster, else 1)", Field: func(c *Config) any { return &c.NATSReplicas }},
	{Name: "listen-nats", Doc: "ADDRESS:PORT of NATS over TLS for users of 'causeway nats user', such as :4222 (default: not served)", Field: func(c *Config) any { return &c.ListenNATS }},
	{Name: "listen-dns", Doc: "ADDRESS:PORT of an authoritative DNS server for public names of services, UDP and TCP, for whoever reaches it, such as :53; it needs --dns-zone and --dns-ns (default: not served)", Field: func(c *Config) any { return &c.ListenDNS }},
	{Name: "dns-zone", Doc: "ZONE of yours that --listen-dns answers, such as lb.example.com; the zone above leads to it by NS records", Field: func(c *Config) any { return &c.DNSZone }},
	{Name: "dns-ns", Doc: "NAME of the zone's name server, or NAME=ADDRESS for one within the zone, several separated by commas; the first is the primary one", Field: func(c *Config) any { return &c.DNSServers }},
	{Name: "listen-metrics", Doc: "ADDRESS:PORT of metrics for Prometheus (/metrics) and of health for load balancers (/healthz, /readyz), over HTTP for whoever reaches it, such as 127.0.0.1:9465 (default: not served)", Field: func(c *Config) any { return &c.ListenMetrics }},
	{Name: "socket-buffer", Doc: "BYTES that each UDP socket may buffer each way, as far as net.core.rmem_max and wmem_max allow (default: 7340032)", Field: func(c *Config) any { return &c.SocketBuffer }},
	{Name: "join-rate", Doc: "REQUESTS for joins that one source address may send in a second, of which a join takes two; those that show a token's ticket do not count, so raise it for agents of before alone", Field: func(c *Config) any { return &c.JoinRate }},
	{Name: "packages", Doc: "DIRECTORY of signed releases to which agents can be upgraded (default: packages in --data-dir)", Field: func(c *Config) any { return &c.Packages }},
	{Name: "require-proof", Doc: "take no control session of an agent that does not prove its node's identity; without it an agent of the version before is taken until its node's agent has proven it for ten minutes ('causeway doctor' names those whose agent has not)", Field: func(c *Config) any { return &c.RequireProof }},
	{Name: "snapshot-every", Doc: "TRANSACTIONS after which the hub takes a snapshot of its state at the latest, and moves what is older than the one before from the log to the archive of the audit", Field: func(c *Config) any { return &c.SnapshotEvery }},
	{Name: "relay-node-packets", Doc: "DATAGRAMS of data that the relay forwards for each node in a second (default: no limit)", Field: func(c *Config) any { return &c.RelayLimits.Node.Packets }},
	{Name: "relay-node-bytes", Doc: "BYTES of data that the relay forwards for each node in a second (default: no limit)", Field: func(c *Config) any { return &c.RelayLimits.Node.Bytes }},
	{Name: "relay-pair-packets", Doc: "DATAGRAMS of data that the relay forwards from each node to each other one in a second (default: no limit)", Field: func(c *Config) any { return &c.RelayLimits.Pair.Packets }},
	{Name: "relay-pair-bytes", Doc: "BYTES of data that the relay forwards from each node to each other one in a second (default: no limit)", Field: func(c *Config) any { return &c.RelayLimits.Pair.Bytes }},
}

// Defaults is a Config with what is set where nobody sets anything.
func Defaults() Config {
	return Config{
		DataDir: DefaultDataDir, ListenUDP: DefaultListenUDP, ListenHTTPS: DefaultListenHTTPS, AdminSocket: DefaultAdminSocket,
		Overlay:  []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6},
		JoinRate: join.DefaultSourceRate, SnapshotEvery: state.DefaultSnapshotEvery,
	}
}

// value is what a Config has.
func (s Setting) value(c Config) any { return reflect.ValueOf(s.Field(&c)).Elem().Interface() }

// shown are the settings for whoever looks, without secrets.
func (c Config) shown() (out []api.Setting) {
	for _, s := range Settings {
		text := fmt.Sprint(s.value(c))
		if s.Show != nil {
			text = s.Show(s.value(c))
		}
		out = append(out, api.Setting{Name: s.Name, Value: text})
	}
	return out
}

// needsRestart names the settings that differ and that Reload does not take.
func (c Config) needsRestart(n Config) (out []string) {
	for _, s := range Settings {
		if !s.Live && !reflect.DeepEqual(s.value(c), s.value(n)) {
			out = append(out, s.Name)
		}
	}
	return out
}

func withoutPasswords(urls any) string {
	var servers []string
	for _, s := range strings.Split(urls.(string), ",") {
		u, err := url.Parse(s)
		if err != nil { // may hold a password all the same
			servers = append(servers, "(not a URL)")
			continue
		}
		u.User, u.RawQuery = nil, ""
		servers = append(servers, u.String())
	}
	return strings.Join(servers, ",")
}
