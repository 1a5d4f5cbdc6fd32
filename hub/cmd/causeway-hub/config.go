package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"causeway/hub"
	"causeway/hub/join"
	"causeway/hub/state"
	"causeway/internal/flagenv"
	"causeway/internal/service"
	"causeway/internal/strictyaml"
	"causeway/protocol"
	"causeway/tunnel"
)

const defaultConfig = "/etc/causeway/hub.yaml"

// flags are the flags of 'run', and with them the keys of the configuration file.
type flags struct {
	file     string
	settings settings
}

// settings is the configuration file.
type settings struct {
	DataDir         string   `yaml:"data_dir"`
	ListenUDP       string   `yaml:"listen_udp"`
	ListenHTTPS     string   `yaml:"listen_https"`
	PublicHost      string   `yaml:"public_host"`
	PublicUDPPort   uint16   `yaml:"public_udp_port"`
	PublicHTTPSPort uint16   `yaml:"public_https_port"`
	AdminSocket     string   `yaml:"admin_socket"`
	ListenAdmin     string   `yaml:"listen_admin"`
	Overlay         []string `yaml:"overlay"`
	NATSURL         string   `yaml:"nats_url"`
	NATSCreds       string   `yaml:"nats_creds"`
	NATSCA          string   `yaml:"nats_ca"`
	NATSReplicas    int      `yaml:"nats_replicas"`
	ListenNATS      string   `yaml:"listen_nats"`
	ListenMetrics   string   `yaml:"listen_metrics"`
	SocketBuffer    int      `yaml:"socket_buffer"`
	JoinRate        int      `yaml:"join_rate"`
	Packages        string   `yaml:"packages"`
	RequireProof    bool     `yaml:"require_proof"`
	SnapshotEvery   int      `yaml:"snapshot_every"`
	// Per second; zero: no limit.
	RelayNodePackets uint64 `yaml:"relay_node_packets"`
	RelayNodeBytes   uint64 `yaml:"relay_node_bytes"`
	RelayPairPackets uint64 `yaml:"relay_pair_packets"`
	RelayPairBytes   uint64 `yaml:"relay_pair_bytes"`
}

type limit struct {
	flag, usage string
	value       *uint64
}

// limits are those of what the switchboard forwards.
func (s *settings) limits() []limit {
	return []limit{
		{"relay-node-packets", "DATAGRAMS of data that the relay forwards for each node in a second (default: no limit)", &s.RelayNodePackets},
		{"relay-node-bytes", "BYTES of data that the relay forwards for each node in a second (default: no limit)", &s.RelayNodeBytes},
		{"relay-pair-packets", "DATAGRAMS of data that the relay forwards from each node to each other one in a second (default: no limit)", &s.RelayPairPackets},
		{"relay-pair-bytes", "BYTES of data that the relay forwards from each node to each other one in a second (default: no limit)", &s.RelayPairBytes},
	}
}

func (f *flags) register(fs *pflag.FlagSet) {
	s := &f.settings
	fs.StringVar(&f.file, "config", defaultConfig, "configuration file; the default one may be missing")
	fs.StringVar(&s.DataDir, "data-dir", hub.DefaultDataDir, "directory of keys and state")
	fs.StringVar(&s.ListenUDP, "listen-udp", hub.DefaultListenUDP, "ADDRESS:PORT for WireGuard and the relay")
	fs.StringVar(&s.ListenHTTPS, "listen-https", hub.DefaultListenHTTPS, "ADDRESS:PORT for joins, and for agents to whom UDP does not pass")
	fs.StringVar(&s.PublicHost, "public-host", "", "name or address at which agents reach the hub (default: the first global address)")
	fs.Uint16Var(&s.PublicUDPPort, "public-udp-port", 0, "UDP port at which agents reach the hub (default: the one listened on)")
	fs.Uint16Var(&s.PublicHTTPSPort, "public-https-port", 0, "HTTPS port at which agents reach the hub (default: the one listened on)")
	fs.StringVar(&s.AdminSocket, "admin-socket", hub.DefaultAdminSocket, "unix socket of the admin API")
	fs.StringVar(&s.ListenAdmin, "listen-admin", "", "ADDRESS:PORT of the admin API for admins with a certificate, such as :7443 (default: not served)")
	fs.StringSliceVar(&s.Overlay, "overlay", []string{protocol.DefaultOverlay4.String(), protocol.DefaultOverlay6.String()}, "range of node addresses, one for each address family; later it can only grow, from the same address on")
	fs.StringVar(&s.NATSURL, "nats-url", "", "external NATS servers for state log and inventory, tls://HOST:PORT, several separated by commas (default: the server inside the hub)")
	fs.StringVar(&s.NATSCreds, "nats-creds", "", "file of credentials for --nats-url")
	fs.StringVar(&s.NATSCA, "nats-ca", "", "PEM FILE of the authorities that sign the certificates of --nats-url (default: the system's)")
	fs.IntVar(&s.NATSReplicas, "nats-replicas", 0, "servers of --nats-url that keep each stream, 1 to 5 (default: 3 in a cluster, else 1)")
	fs.StringVar(&s.ListenNATS, "listen-nats", "", "ADDRESS:PORT of NATS over TLS for users of 'causeway nats user', such as :4222 (default: not served)")
	fs.StringVar(&s.ListenMetrics, "listen-metrics", "", "ADDRESS:PORT of metrics for Prometheus (/metrics) and of health for load balancers (/healthz, /readyz), over HTTP for whoever reaches it, such as 127.0.0.1:9465 (default: not served)")
	fs.IntVar(&s.SocketBuffer, "socket-buffer", 0, "BYTES that each UDP socket may buffer each way, as far as net.core.rmem_max and wmem_max allow (default: 7340032)")
	fs.IntVar(&s.JoinRate, "join-rate", join.DefaultSourceRate, "REQUESTS for joins that one source address may send in a second, of which a join takes two; those that show a token's ticket do not count, so raise it for agents of before alone")
	fs.StringVar(&s.Packages, "packages", "", "DIRECTORY of signed releases to which agents can be upgraded (default: packages in --data-dir)")
	fs.BoolVar(&s.RequireProof, "require-proof", false, "take no control session of an agent that does not prove its node's identity; without it an agent of the version before is taken until its node's agent has proven it for ten minutes ('causeway doctor' names those whose agent has not)")
	fs.IntVar(&s.SnapshotEvery, "snapshot-every", state.DefaultSnapshotEvery, "TRANSACTIONS after which the hub takes a snapshot of its state at the latest, and moves what is older than the one before from the log to the archive of the audit")
	for _, l := range s.limits() {
		fs.Uint64Var(l.value, l.flag, 0, l.usage)
	}
}

// envPrefix begins the environment variables that stand for flags.
const envPrefix = "CAUSEWAY_HUB"

// config merges the file, the environment and the flags; the later wins.
func (f *flags) config(set *pflag.FlagSet) (hub.Config, error) {
	if err := flagenv.Apply(set, envPrefix); err != nil {
		return hub.Config{}, err
	}
	file, err := readSettings(f.file, set.Changed("config"))
	if err != nil {
		return hub.Config{}, err
	}
	s := f.settings // flags or their defaults
	merge(set, "data-dir", &s.DataDir, file.DataDir)
	merge(set, "listen-udp", &s.ListenUDP, file.ListenUDP)
	merge(set, "listen-https", &s.ListenHTTPS, file.ListenHTTPS)
	merge(set, "public-host", &s.PublicHost, file.PublicHost)
	merge(set, "public-udp-port", &s.PublicUDPPort, file.PublicUDPPort)
	merge(set, "public-https-port", &s.PublicHTTPSPort, file.PublicHTTPSPort)
	merge(set, "admin-socket", &s.AdminSocket, file.AdminSocket)
	merge(set, "listen-admin", &s.ListenAdmin, file.ListenAdmin)
	merge(set, "nats-url", &s.NATSURL, file.NATSURL)
	merge(set, "nats-creds", &s.NATSCreds, file.NATSCreds)
	merge(set, "nats-ca", &s.NATSCA, file.NATSCA)
	merge(set, "nats-replicas", &s.NATSReplicas, file.NATSReplicas)
	merge(set, "listen-nats", &s.ListenNATS, file.ListenNATS)
	merge(set, "listen-metrics", &s.ListenMetrics, file.ListenMetrics)
	merge(set, "socket-buffer", &s.SocketBuffer, file.SocketBuffer)
	merge(set, "join-rate", &s.JoinRate, file.JoinRate)
	merge(set, "packages", &s.Packages, file.Packages)
	merge(set, "require-proof", &s.RequireProof, file.RequireProof)
	merge(set, "snapshot-every", &s.SnapshotEvery, file.SnapshotEvery)
	for i, l := range file.limits() {
		merge(set, l.flag, s.limits()[i].value, *l.value)
	}
	if len(file.Overlay) > 0 && !set.Changed("overlay") {
		s.Overlay = file.Overlay
	}
	if s.NATSCreds == "" && s.NATSURL != "" {
		s.NATSCreds = service.Credential(credNATS)
	}
	if err := hub.CheckPublicHost(s.PublicHost); err != nil {
		return hub.Config{}, err
	}
	c := hub.Config{DataDir: s.DataDir, ListenUDP: s.ListenUDP, ListenHTTPS: s.ListenHTTPS, PublicHost: s.PublicHost,
		PublicUDPPort: s.PublicUDPPort, PublicHTTPSPort: s.PublicHTTPSPort, AdminSocket: s.AdminSocket, ListenAdmin: s.ListenAdmin, ListenNATS: s.ListenNATS, ListenMetrics: s.ListenMetrics,
		NATSURL: s.NATSURL, NATSCreds: s.NATSCreds, NATSCA: s.NATSCA, NATSReplicas: s.NATSReplicas, SocketBuffer: s.SocketBuffer, JoinRate: s.JoinRate, Packages: s.Packages, RequireProof: s.RequireProof, SnapshotEvery: s.SnapshotEvery,
		RelayLimits: tunnel.RelayLimits{
			Node: tunnel.RelayRate{Packets: s.RelayNodePackets, Bytes: s.RelayNodeBytes},
			Pair: tunnel.RelayRate{Packets: s.RelayPairPackets, Bytes: s.RelayPairBytes},
		}}
	for _, o := range s.Overlay {
		p, err := netip.ParsePrefix(strings.TrimSpace(o))
		if err != nil {
			return hub.Config{}, fmt.Errorf("overlay %.80q is no CIDR such as 198.18.0.0/15", o)
		}
		c.Overlay = append(c.Overlay, p)
	}
	return c, nil
}

// merge takes the file's value where no flag was given.
func merge[T comparable](set *pflag.FlagSet, flag string, dst *T, file T) {
	var zero T
	if file != zero && !set.Changed(flag) {
		*dst = file
	}
}

// credNATS is the name of the credential that stands for nats_creds.
const credNATS = "nats.creds"

// readSettings reads the configuration file. Unknown keys are errors.
func readSettings(path string, asked bool) (s settings, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && !asked {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("config: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, strictyaml.MaxFile+1))
	if err != nil {
		return s, fmt.Errorf("config: %w", err)
	}
	_, err = strictyaml.Decode(path, b, &s, strictyaml.Keys(s))
	return s, err
}
