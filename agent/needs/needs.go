// Package needs finds the addresses that a host relies on outside the tunnel: its
// resolvers, gateways, time servers, proxies and registries, as files and settings
// name them by address. Names are not looked up: a resolver that answers decides
// later where they lead. It reads and changes nothing.
package needs

import (
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"causeway/agent/held"
	"causeway/protocol"
)

// Bounds of what is read.
const (
	maxFile  = 64 << 10
	maxFiles = 64
	maxAddrs = 128
)

// source is a kind of file and which of its lines count.
type source struct {
	what string
	glob string   // of files
	keys []string // first words of lines; none: every line
}

// sources are where hosts keep such addresses.
var sources = []source{
	{"resolver", "/etc/resolv.conf", []string{"nameserver"}},
	{"resolver", "/run/systemd/resolve/resolv.conf", []string{"nameserver"}},
	{"resolver", "/run/NetworkManager/resolv.conf", []string{"nameserver"}},
	{"resolver", "/etc/systemd/resolved.conf", []string{"DNS", "FallbackDNS"}},
	{"resolver", "/etc/systemd/resolved.conf.d/*.conf", []string{"DNS", "FallbackDNS"}},
	{"time server", "/etc/systemd/timesyncd.conf", []string{"NTP", "FallbackNTP"}},
	{"time server", "/etc/systemd/timesyncd.conf.d/*.conf", []string{"NTP", "FallbackNTP"}},
	{"time server", "/etc/chrony.conf", []string{"server", "peer", "pool"}},
	{"time server", "/etc/chrony/chrony.conf", []string{"server", "peer", "pool"}},
	{"time server", "/etc/chrony/sources.d/*.sources", []string{"server", "peer", "pool"}},
	{"time server", "/etc/chrony/conf.d/*.conf", []string{"server", "peer", "pool"}},
	{"time server", "/etc/ntp.conf", []string{"server", "peer", "pool"}},
	{"time server", "/etc/ntpsec/ntp.conf", []string{"server", "peer", "pool"}},
	{"proxy", "/etc/environment", []string{"http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"}},
	{"proxy", "/etc/apt/apt.conf.d/*", []string{"Acquire"}},
	{"registry", "/etc/docker/daemon.json", nil},
	{"registry", "/etc/containers/registries.conf", nil},
	{"registry", "/etc/containers/registries.conf.d/*.conf", nil},
	{"registry", "/etc/containerd/certs.d/*/hosts.toml", nil},
}

// Config is what no file tells.
type Config struct {
	Root     string       // of the files; empty: /
	Gateways []netip.Addr // of default routes
	Hubs     []netip.Addr // that hubs are reached at
	Proxy    *url.URL     // of the agent's settings; nil: that of its environment
	Getenv   func(string) string
}

// HubAddrs are the addresses of a hub list; names are left out.
func HubAddrs(l protocol.HubList) (out []netip.Addr) {
	for _, h := range l.Hubs {
		for _, s := range slices.Concat(h.UDP, h.HTTPS) {
			if ap, err := netip.ParseAddrPort(s); err == nil {
				out = append(out, ap.Addr())
			}
		}
	}
	return out
}

// Find returns what the host relies on, each address once, sorted.
func Find(c Config) []held.Exception {
	found := map[netip.Addr]string{}
	add := func(a netip.Addr, what string) {
		if a = a.Unmap().WithZone(""); !a.IsValid() || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || len(found) >= maxAddrs {
			return
		}
		if _, ok := found[a]; !ok {
			found[a] = what
		}
	}
	for _, a := range c.Gateways {
		add(a, "default gateway")
	}
	for _, a := range c.Hubs {
		add(a, "address of a hub")
	}
	if c.Proxy != nil {
		for _, a := range addresses(c.Proxy.Host) {
			add(a, "proxy of the agent")
		}
	}
	if c.Getenv != nil {
		for _, k := range []string{"HTTPS_PROXY", "https_proxy"} {
			if u, err := url.Parse(c.Getenv(k)); err == nil {
				for _, a := range addresses(u.Host) {
					add(a, "proxy of "+k)
				}
			}
		}
	}
	for _, s := range sources {
		paths, _ := filepath.Glob(filepath.Join(c.Root, "/", s.glob))
		for _, path := range paths[:min(len(paths), maxFiles)] {
			for _, a := range s.read(path) {
				add(a, s.what+" of "+strings.TrimPrefix(path, c.Root))
			}
		}
	}
	out := make([]held.Exception, 0, len(found))
	for a, what := range found {
		out = append(out, held.Exception{Addr: a, What: what})
	}
	slices.SortFunc(out, func(a, b held.Exception) int { return a.Addr.Compare(b.Addr) })
	return out
}

// read takes the addresses of a file's lines that count. What is no plain file, or
// cannot be read, has none.
func (s source) read(path string) []netip.Addr {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() { // a pipe would hang the reader
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil
	}
	return s.parse(string(b))
}

func (s source) parse(text string) (out []netip.Addr) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		if s.keys != nil && !slices.ContainsFunc(s.keys, func(k string) bool {
			rest, ok := strings.CutPrefix(line, k)
			return ok && rest != "" && strings.ContainsAny(rest[:1], " \t=:\"")
		}) {
			continue
		}
		out = append(out, addresses(line)...)
	}
	return out
}

// addresses are the IP addresses in a text, with or without a port, brackets, a name
// behind # (systemd-resolved) or a URL around them.
func addresses(text string) (out []netip.Addr) {
	for _, w := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \t\r\n\"',;=()<>{}/@#", r) }) {
		if a, err := netip.ParseAddr(strings.Trim(w, "[]")); err == nil {
			out = append(out, a)
		} else if ap, err := netip.ParseAddrPort(w); err == nil {
			out = append(out, ap.Addr())
		}
	}
	return out
}
