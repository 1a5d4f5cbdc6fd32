package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"causeway/hub/cmd/causeway/internal/frame"
)

// snippet is what a resolver, or an engine of containers, needs to find the names of the zone 'causeway'.
type snippet struct {
	Kind string `json:"kind"`
	How  string `json:"how"`
	Text string `json:"text,omitempty"`
}

// asked is where names are asked for, and what else a snippet is made of.
type asked struct {
	address   netip.Addr   // of the agent, on each node
	iface     string       // of the tunnel there
	resolvers []netip.Addr // the site's own, for whoever is told of all its resolvers at once
}

// maker makes the text of one kind.
type maker struct {
	kind, how string
	own       bool // it needs the site's own resolvers
	text      func(asked) string
}

var makers = []maker{
	{"dnsmasq", "on a node with dnsmasq: save as /etc/dnsmasq.d/causeway.conf, then 'systemctl restart dnsmasq'", false, func(a asked) string {
		return fmt.Sprintf("server=/causeway/%[1]s\nrebind-domain-ok=/causeway/\n", a.address)
	}},
	{"unbound", "on a node with Unbound: save as /etc/unbound/unbound.conf.d/causeway.conf, then 'systemctl reload unbound'", false, func(a asked) string {
		return fmt.Sprintf("server:\n    domain-insecure: \"causeway\"\n    private-domain: \"causeway\"\nstub-zone:\n    name: \"causeway\"\n    stub-addr: %s\n", a.address)
	}},
	{"bind", "on a node with BIND: save as /etc/bind/causeway.conf, include it in named.conf, put 'validate-except { \"causeway\"; };' into its options, then 'rndc reconfig'", false, func(a asked) string {
		return fmt.Sprintf("zone \"causeway\" {\n    type static-stub;\n    server-addresses { %s; };\n    forwarders { };\n};\n", a.address)
	}},
	{"coredns", "for a CoreDNS whose pods run on nodes, as that of Kubernetes: append to its Corefile, which reloads by itself", false, func(a asked) string {
		return fmt.Sprintf("causeway:53 {\n    errors\n    cache 5\n    forward . %s\n}\n", a.address)
	}},
	{"docker", "on a node with Docker: merge into /etc/docker/daemon.json, then 'systemctl restart docker'; other names are the second server's, for the agent refuses them", true, func(a asked) string {
		return fmt.Sprintf("{\"dns\": [%s]}\n", quoted(a))
	}},
	{"podman", "on a node with Podman: save as /etc/containers/containers.conf.d/causeway.conf; it is for containers made from then on, and other names are the second server's, for the agent refuses them", true, func(a asked) string {
		return fmt.Sprintf("[containers]\ndns_servers = [%s]\n", quoted(a))
	}},
	{"resolved", "on a node with systemd-resolved and without causeway-agent's package, which does this by itself: run as root after each start of the agent", false, func(a asked) string {
		var b strings.Builder
		for _, l := range []string{"dnssec %s no", "dnsovertls %s no", "default-route %s no", "domain %s ~causeway", "dns %s " + a.address.String()} {
			fmt.Fprintf(&b, "resolvectl "+l+"\n", a.iface)
		}
		return b.String()
	}},
}

func quoted(a asked) string {
	l := []string{fmt.Sprintf("%q", a.address)}
	for _, r := range a.resolvers {
		l = append(l, fmt.Sprintf("%q", r))
	}
	return strings.Join(l, ", ")
}

func (c *cli) dns() *cobra.Command {
	return c.Group("dns", "Help resolvers find the names of services and nodes", `Help resolvers find the names of services and nodes.

Each node's agent answers for the zone 'causeway' at a link-local address, to its own host and that host's
containers: NAME.SEGMENT.svc.causeway, NODE.SITE.node.causeway, CONTAINER.NODE.SITE.pod.causeway. Where
systemd-resolved runs the agent's package has it ask there; other resolvers are told by their administrator.`,
		c.dnsSnippet())
}

func (c *cli) dnsSnippet() *cobra.Command {
	address, iface, resolvers := "169.254.53.53", "cw0", []string(nil)
	kinds := make([]string, 0, len(makers))
	for _, m := range makers {
		kinds = append(kinds, m.kind)
	}
	cmd := &cobra.Command{
		Use:   "snippet [" + strings.Join(kinds, "|") + "]",
		Short: "Print what a resolver or a container engine needs, or what there is",
		Args:  frame.Between(0, "KIND"),
		Example: `  causeway dns snippet dnsmasq | ssh node tee /etc/dnsmasq.d/causeway.conf
  causeway dns snippet docker --resolver 192.0.2.53`,
		ValidArgs: kinds,
	}
	f := cmd.Flags()
	f.StringVar(&address, "address", address, "where the nodes' agents answer: dns.address of agent.yaml")
	f.StringVar(&iface, "interface", iface, "the nodes' tunnel device: tunnel.interface of agent.yaml")
	f.StringArrayVar(&resolvers, "resolver", nil, "`ADDRESS` of the site's own resolver, for docker and podman; may be repeated")
	return frame.Local(cmd, func(args []string) error {
		a := asked{iface: iface}
		var err error
		if a.address, err = netip.ParseAddr(address); err != nil {
			return frame.Usagef("--address: %q is no address", address)
		}
		for _, r := range resolvers {
			x, err := netip.ParseAddr(r)
			if err != nil {
				return frame.Usagef("--resolver: %q is no address", r)
			}
			a.resolvers = append(a.resolvers, x)
		}
		if len(args) == 0 {
			var all []snippet
			for _, m := range makers {
				all = append(all, snippet{Kind: m.kind, How: m.how})
			}
			return frame.List(c.CLI, all, func(s snippet) string { return s.Kind }, "", []string{"KIND", "HOW"}, func(_ *frame.Page, s snippet) []any { return []any{s.Kind, s.How} })
		}
		for _, m := range makers {
			if m.kind != args[0] {
				continue
			}
			if m.own && len(a.resolvers) == 0 {
				return frame.Usagef("%s is told of all resolvers at once: name the site's own by --resolver, for other names", m.kind)
			}
			s := snippet{m.kind, m.how, m.text(a)}
			return c.Show(s, []string{s.Kind}, func(p *frame.Page) {
				if m.kind == "docker" { // JSON has no comments
					fmt.Fprintf(c.Err, "# %s\n", s.How)
				} else {
					p.Line("# %s", s.How)
				}
				p.Line("%s", strings.TrimSuffix(s.Text, "\n"))
			})
		}
		return frame.Usagef("%q is none of %s", args[0], strings.Join(kinds, ", "))
	})
}
