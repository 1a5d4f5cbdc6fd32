// Package config reads the agent's configuration file. Everything works
// without one; what the file does hold is checked whole before anything is
// opened.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"

	"causeway/agent/inventory"
	"causeway/internal/sshsig"
	"causeway/internal/strictyaml"
	"causeway/protocol"
)

// Defaults.
const (
	DefaultPath        = "/etc/causeway/agent.yaml"
	DefaultDebugSocket = "/run/causeway/agent.sock"
	DefaultInterface   = "cw0"
)

// MaxQueues of a tunnel device.
const MaxQueues = 16

// MTU limits: IPv6 needs 1280; the upper one is a jumbo frame less WireGuard's
// own bytes.
const (
	MinMTU = 1280
	MaxMTU = 8920
)

// Config is the checked configuration.
type Config struct {
	Routes []netip.Prefix // what the node announces
	Accept []netip.Prefix // what it lets the hub route into the tunnel
	Named  []netip.Prefix // Accept as the file names it; nil where it is the default
	// Release are ranges that are not held closed where no peer has them any more.
	Release []netip.Prefix
	Labels  map[string]string // for inventory and policies
	Tunnel  Tunnel
	Proxy   *url.URL // HTTP proxy to the hub's HTTPS port; nil: none
	Debug   Debug
	// Inventory says where container runtimes are.
	Inventory inventory.Config
	Upgrade   Upgrade
	Shields   Shields
	DNS       DNS
	Expose    []Exposure // where services may be met from elsewhere than the tunnel
}

// DNS says where this host and its containers ask the agent for names.
type DNS struct {
	Address netip.Addr // link-local, IPv4
	Off     bool
}

// DefaultDNS is where names are asked for.
var DefaultDNS = netip.MustParseAddr("169.254.53.53")

// Upgrade says what the hub may install on this host.
type Upgrade struct {
	Allow     bool
	Keys      []sshsig.PublicKey // a release is signed by one of them
	Downgrade bool               // below the minimum that an installed release named
}

// Tunnel configures the tunnel device.
type Tunnel struct {
	Interface  string
	ListenPort uint16 // UDP; 0: any free port
	MTU        int    // the most that device and routes have; 0: what each path carries
	Engine     string // inline or wireguard-go; empty: inline
	Queues     int    // of the device, for engine inline; 0: by the number of processors
	UAPI       bool   // 'wg show' works: peers, traffic, handshakes; no private keys, nothing can be set
	// PrivateCandidates says how peers' addresses in private ranges are tried: auto, on or off; empty: auto.
	PrivateCandidates string
}

// Debug configures the debug endpoints.
type Debug struct {
	Socket  string
	Metrics string   // TCP address of /metrics, /healthz and /readyz, such as 127.0.0.1:9464; empty: none
	Allow   []string // what the hub may ask for besides looking: logs, payload, pprof
	Deny    []string // what it may not: bench, capture, prove
}

// The words of debug: {allow: …} and {deny: …}.
var (
	allowable = []string{"logs", "payload", "pprof"}
	deniable  = []string{"bench", "capture", "prove"}
)

// Default is the configuration of a host without a file.
func Default() Config {
	return Config{
		Accept: DefaultAccept(),
		Tunnel: Tunnel{Interface: DefaultInterface},
		Debug:  Debug{Socket: DefaultDebugSocket}, Inventory: inventory.DefaultConfig(), DNS: DNS{Address: DefaultDNS},
	}
}

// DefaultAccept are the private ranges: RFC 1918 and RFC 4193.
func DefaultAccept() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"),
		netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.168.0.0/16"),
		netip.MustParsePrefix("fc00::/7"),
	}
}

// file is the configuration as it is written. Pointers and nil tell absent
// from empty: `accept: []` accepts nothing beyond the overlay.
type file struct {
	Routes  []string          `yaml:"routes" reload:"taken" doc:"CIDRs that this node announces, 256 at most; each waits for approval unless its token covers it, or its site's range does and no other node claims it, or a part of it"`
	Accept  *[]string         `yaml:"accept" reload:"taken" doc:"CIDRs that the hub may route into the tunnel; a prefix that is, or lies in, one of the host's own routes has to be named exactly, which takes it from this host; a link's network that has the gateway or a hub in it stays whatever is named (default: the private ranges)"`
	Expose  []string          `yaml:"expose" reload:"taken" doc:"addresses and ports of this host at which the hub may have services met from elsewhere than the tunnel, such as 0.0.0.0:8000-8010 or [2001:db8::5]:443; a program that listens there hears nothing while the service has backends (default: none)"`
	Release []string          `yaml:"release" reload:"taken" doc:"ranges that are let go when no peer has them any more: packets take the host's own routes then, in clear (default: none, what was once routed into the tunnel stays closed)"`
	Labels  map[string]string `yaml:"labels" reload:"taken" doc:"for inventory and policies"`
	Shields struct {
		State string   `yaml:"state" reload:"taken" doc:"up: of this host itself other nodes reach echo, Causeway's own ports and what allow names, and nothing else; down: all that listens (default: up on hosts that joined since there are shields, down on others). Pods and approved LANs are not meant"`
		Allow []string `yaml:"allow" reload:"taken" doc:"ports of this host that other nodes reach with shields up: tcp/22, udp/53, tcp/8000-8010; a port that a container publishes is the host's (default: none)"`
	} `yaml:"shields"`
	Tunnel struct {
		Interface         *string `yaml:"interface" doc:"name of the tunnel device (default: cw0)"`
		ListenPort        *int    `yaml:"listen_port" doc:"UDP port (default: 0, any free one, kept over restarts)"`
		MTU               *int    `yaml:"mtu" doc:"most that device and routes have, 1280 to 8920 (default: what each path carries)"`
		Engine            *string `yaml:"engine" doc:"inline or wireguard-go (default: inline)"`
		PrivateCandidates *string `yaml:"private_candidates" doc:"addresses of peers in private ranges, which some providers do not want to see on an uplink: auto tries them a few times, then every 10 minutes, and not while a good direct path is there; off never; on as any other address (default: auto)"`
		Queues            *int    `yaml:"queues" doc:"queues of the tunnel device, for engine inline (default: by the number of processors)"`
		UAPI              bool    `yaml:"uapi" doc:"let 'wg show' see peers and traffic; needs a drop-in under systemd (default: false)"`
	} `yaml:"tunnel"`
	Proxy string `yaml:"proxy" doc:"HTTP proxy to the hub's HTTPS port, http://HOST:PORT (default: $HTTPS_PROXY, else that of the join beside the direct way)"`
	Debug struct {
		Socket  *string  `yaml:"socket" doc:"unix socket of the debug endpoints (default: /run/causeway/agent.sock)"`
		Metrics string   `yaml:"metrics" doc:"address and port of /metrics, /healthz and /readyz over TCP, such as 127.0.0.1:9464 (default: none)"`
		Allow   []string `yaml:"allow" doc:"what the hub may ask for besides looking: logs, payload (of captures), pprof (default: nothing)"`
		Deny    []string `yaml:"deny" doc:"what the hub may not ask for: bench, capture, prove (default: nothing)"`
	} `yaml:"debug"`
	Inventory struct {
		Docker     *string `yaml:"docker" doc:"socket of Docker, looked for now and then; empty: not at all (default: /run/docker.sock)"`
		Podman     *string `yaml:"podman" doc:"socket of Podman (default: /run/podman/podman.sock)"`
		Containerd *string `yaml:"containerd" doc:"containerd's state directory (default: /run/containerd)"`
		CNI        *string `yaml:"cni" doc:"directory of CNI's records (default: /var/lib/cni)"`
	} `yaml:"inventory"`
	Upgrade struct {
		Allow     bool     `yaml:"allow" reload:"taken" doc:"let the hub upgrade the agent to releases that one of keys signed (default: false)"`
		Keys      []string `yaml:"keys" reload:"taken" doc:"public keys of releases, ssh-ed25519 AAAA…; the hub cannot change them"`
		Downgrade bool     `yaml:"downgrade" reload:"taken" doc:"also to versions below the minimum that a release installed here has named (default: false)"`
	} `yaml:"upgrade"`
	DNS struct {
		Address *string `yaml:"address" reload:"taken" doc:"link-local IPv4 address at which this host and its containers ask the agent for names of the zone causeway (default: 169.254.53.53)"`
		Off     bool    `yaml:"off" reload:"taken" doc:"answer no names; else they are answered while the cluster has a service (default: false)"`
	} `yaml:"dns"`
}

// settings calls f with the path of each key of a file, whether a running agent takes it on
// SIGHUP (tag reload), and where Config has it: fields have the same names there.
func settings(f func(path string, live bool, at []string)) {
	var walk func(t reflect.Type, path string, at []string)
	walk = func(t reflect.Type, path string, at []string) {
		for i := range t.NumField() {
			x := t.Field(i)
			path, at := path+x.Tag.Get("yaml"), append(slices.Clone(at), x.Name)
			if x.Type.Kind() == reflect.Struct {
				walk(x.Type, path+".", at)
				continue
			}
			f(path, x.Tag.Get("reload") == "taken", at)
		}
	}
	walk(reflect.TypeFor[file](), "", nil)
}

// NeedsRestart names the keys that differ between c and n and that only a new
// start takes.
func (c Config) NeedsRestart(n Config) (out []string) {
	settings(func(path string, live bool, at []string) {
		if live {
			return
		}
		x, y := reflect.ValueOf(c), reflect.ValueOf(n)
		for _, name := range at {
			x, y = x.FieldByName(name), y.FieldByName(name)
		}
		none := x.Kind() == reflect.Slice && x.Len()+y.Len() == 0
		if !none && !reflect.DeepEqual(x.Interface(), y.Interface()) {
			out = append(out, path)
		}
	})
	return out
}

// Load reads path. An empty path means DefaultPath, which may be missing.
// Every error is one line that names file, line and what to do.
func Load(path string) (Config, error) {
	optional := path == ""
	if optional {
		path = DefaultPath
	}
	st, err := os.Stat(path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err == nil && st.Size() > strictyaml.MaxFile {
		return Config{}, fmt.Errorf("config %s: larger than 1 MiB", path)
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(path)
	}
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return Config{}, fmt.Errorf("config %s: %w; check --config", path, err)
	}
	return Parse(path, b)
}

// Parse checks the contents of a file; name is for errors.
func Parse(name string, b []byte) (Config, error) {
	var f file
	tree, err := strictyaml.Decode(name, b, &f, strictyaml.Keys(f))
	if err != nil {
		return Config{}, err
	}
	at := func(path, format string, args ...any) (Config, error) {
		return Config{}, fmt.Errorf("config %s: %s: %s", tree.At(path), strings.TrimPrefix(path, "$."), fmt.Sprintf(format, args...))
	}
	c := Default()
	for _, l := range []struct {
		name string
		in   []string
		out  *[]netip.Prefix
	}{{"routes", f.Routes, &c.Routes}, {"accept", deref(f.Accept), &c.Accept}, {"release", f.Release, &c.Release}} {
		if l.name == "accept" && f.Accept == nil || l.name == "release" && f.Release == nil {
			continue
		}
		*l.out = []netip.Prefix{}
		for i, s := range l.in {
			where := fmt.Sprintf("$.%s[%d]", l.name, i)
			p, err := parsePrefix(s)
			if err != nil {
				return at(where, "%v", err)
			}
			if l.name == "routes" && p.Bits() == 0 {
				return at(where, "a default route cannot be announced")
			}
			if slices.Contains(*l.out, p) {
				return at(where, "%s is there twice; remove one", p)
			}
			*l.out = append(*l.out, p)
		}
	}
	if len(c.Routes) > protocol.MaxNodeRoutes {
		return at("$.routes", "%d routes are more than a node may announce, %d; announce ranges that cover several", len(c.Routes), protocol.MaxNodeRoutes)
	}
	if err := protocol.CheckLabels(f.Labels); err != nil {
		return at("$.labels", "%v", err)
	}
	if f.Accept != nil {
		c.Named = c.Accept
	}
	c.Labels = f.Labels
	if s, where, err := parseShields(f.Shields.State, f.Shields.Allow); err != nil {
		return at(where, "%v", err)
	} else {
		c.Shields = s
	}
	if v := f.Tunnel.Interface; v != nil {
		if *v == "" || len(*v) > 15 || strings.ContainsAny(*v, "/ %:\t") || *v == "." || *v == ".." {
			return at("$.tunnel.interface", "%q is no interface name; use 1 to 15 characters such as %s", *v, DefaultInterface)
		}
		c.Tunnel.Interface = *v
	}
	if v := f.Tunnel.ListenPort; v != nil {
		if *v < 0 || *v > 65535 {
			return at("$.tunnel.listen_port", "%d is no UDP port; use 1 to 65535, or 0 for any free one", *v)
		}
		c.Tunnel.ListenPort = uint16(*v)
	}
	if v := f.Tunnel.MTU; v != nil {
		if *v < MinMTU || *v > MaxMTU {
			return at("$.tunnel.mtu", "%d is not between %d and %d", *v, MinMTU, MaxMTU)
		}
		c.Tunnel.MTU = *v
	}
	if v := f.Tunnel.Engine; v != nil {
		if *v != "inline" && *v != "wireguard-go" {
			return at("$.tunnel.engine", "%q is no engine; use inline or wireguard-go", *v)
		}
		c.Tunnel.Engine = *v
	}
	if v := f.Tunnel.Queues; v != nil {
		if *v < 0 || *v > MaxQueues {
			return at("$.tunnel.queues", "%d is not between 1 and %d, or 0 for as many as fit the processors", *v, MaxQueues)
		}
		c.Tunnel.Queues = *v
	}
	if v := f.Tunnel.PrivateCandidates; v != nil {
		if *v != "auto" && *v != "on" && *v != "off" {
			return at("$.tunnel.private_candidates", "%q is none of auto, on and off", *v)
		}
		c.Tunnel.PrivateCandidates = *v
	}
	c.Tunnel.UAPI = f.Tunnel.UAPI
	if f.Proxy != "" {
		u, err := url.Parse(f.Proxy)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			// The text may hold a password: it is not repeated.
			return at("$.proxy", "not a proxy's URL; write http://HOST:PORT")
		}
		c.Proxy = u
	}
	if v := f.Debug.Socket; v != nil {
		if !strings.HasPrefix(*v, "/") || len(*v) > 107 {
			return at("$.debug.socket", "%q is no absolute path of at most 107 characters", *v)
		}
		c.Debug.Socket = *v
	}
	if v := f.Debug.Metrics; v != "" {
		if _, err := netip.ParseAddrPort(v); err != nil {
			return at("$.debug.metrics", "%q is no address with a port; write for example 127.0.0.1:9464", v)
		}
		c.Debug.Metrics = v
	}
	for i, v := range f.Debug.Allow {
		if !slices.Contains(allowable, v) {
			return at(fmt.Sprintf("$.debug.allow[%d]", i), "%q cannot be allowed; there are %s", v, strings.Join(allowable, ", "))
		}
	}
	for i, v := range f.Upgrade.Keys {
		k, err := sshsig.ParseKey(v)
		if err != nil {
			return at(fmt.Sprintf("$.upgrade.keys[%d]", i), "%v; it is what 'ssh-keygen -t ed25519' writes into a file .pub", err)
		}
		c.Upgrade.Keys = append(c.Upgrade.Keys, k)
	}
	c.Upgrade.Allow, c.Upgrade.Downgrade = f.Upgrade.Allow, f.Upgrade.Downgrade
	if c.Upgrade.Allow && len(c.Upgrade.Keys) == 0 {
		return at("$.upgrade.allow", "without upgrade.keys no release can be trusted; name the key that signs them")
	}
	for i, v := range f.Debug.Deny {
		if !slices.Contains(deniable, v) {
			return at(fmt.Sprintf("$.debug.deny[%d]", i), "%q cannot be denied; there are %s", v, strings.Join(deniable, ", "))
		}
	}
	c.Debug.Allow, c.Debug.Deny = f.Debug.Allow, f.Debug.Deny
	if l, where, err := parseExpose(f.Expose); err != nil {
		return at(where, "%v", err)
	} else {
		c.Expose = l
	}
	c.DNS.Off = f.DNS.Off
	if v := f.DNS.Address; v != nil {
		a, err := netip.ParseAddr(*v)
		if err != nil || !linkLocal.Contains(a) {
			return at("$.dns.address", "%q is no link-local IPv4 address; write one of 169.254.1.0 to 169.254.254.255", *v)
		}
		if ofClouds.Contains(a) {
			return at("$.dns.address", "%s lies where clouds have their own services; take one outside %s", a, ofClouds)
		}
		c.DNS.Address = a
	}
	for _, l := range []struct {
		name string
		in   *string
		out  *string
	}{{"docker", f.Inventory.Docker, &c.Inventory.Docker}, {"podman", f.Inventory.Podman, &c.Inventory.Podman},
		{"containerd", f.Inventory.Containerd, &c.Inventory.Containerd}, {"cni", f.Inventory.CNI, &c.Inventory.CNI}} {
		if l.in == nil {
			continue
		}
		if *l.in != "" && (!strings.HasPrefix(*l.in, "/") || len(*l.in) > 107) {
			return at("$.inventory."+l.name, "%q is no absolute path of at most 107 characters; empty, the runtime is not looked for", *l.in)
		}
		*l.out = *l.in
	}
	return c, nil
}

var (
	linkLocal = netip.MustParsePrefix("169.254.0.0/16")
	ofClouds  = netip.MustParsePrefix("169.254.169.0/24") // metadata, DNS, time
)

func deref(p *[]string) []string {
	if p == nil {
		return nil
	}
	return *p
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no CIDR; write for example 10.1.0.0/24", s)
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is an IPv4 range in IPv6 form; write it as IPv4", s)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q has host bits set; did you mean %s?", s, p.Masked())
	}
	return p, nil
}
