package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

// outsideFacts say how the outside finds and reaches a service.
func outsideFacts(s api.Service) (out []string) {
	var l []string
	for _, x := range s.Expose {
		text := x.Listen + " at " + cmp.Or(x.Site, x.Node)
		if x.Port != "" {
			text += ", port " + x.Port
		}
		l = append(l, text)
	}
	if len(l) > 0 {
		out = append(out, "Exposed", strings.Join(l, "; "))
	}
	if s.PublicName == "" {
		return out
	}
	l = nil
	for _, a := range s.Answers {
		var addrs []string
		for _, x := range a.Addresses {
			addrs = append(addrs, x.String())
		}
		l = append(l, fmt.Sprintf("%s (%s %d %%)", strings.Join(addrs, ", "), a.Site, a.Percent))
	}
	return append(out, "Public name", fmt.Sprintf("%s, kept %s", s.PublicName, s.Public.TTL), "Answered", strings.Join(l, "; "))
}

// exposedFacts say where a node's host has the outside reach a service, whom its backends see then, or why it does not.
func exposedFacts(v protocol.ServiceView) []string {
	var l []string
	for _, x := range v.Exposed {
		text := fmt.Sprintf("%s/%d at %s", x.Proto, x.Port, x.Listen)
		if x.Why != "" {
			text += ", not: " + protocol.Printable(x.Why)
		}
		l = append(l, text)
	}
	if len(l) == 0 {
		return nil
	}
	return []string{"Exposed", strings.Join(l, "; "), "Seen as", "the client by containers of this host and the host itself; the node by others, unless the client is in a range that it announces"}
}

func (c *cli) serviceExpose() *cobra.Command {
	var site, node, listen, port string
	var remove bool
	cmd := &cobra.Command{
		Use:   "expose NAME --site SITE --listen ADDRESS:PORT",
		Short: "Have the outside reach a service at hosts of a site",
		Long: `Have who is not of the cluster reach a service at an address and port of a node's host, or of
all at a site; 0.0.0.0 or [::] are all addresses of the host. A host does so where its own
configuration has it (expose: ["0.0.0.0:8080"]); 'causeway service explain NAME NODE' says
where it does not. The port is open to whoever reaches it; policies judge what goes on by
the tunnel, as the node's own, and nothing that stays at the host.
A file of 'causeway apply' is to say the same, or the next apply undoes it.`,
		Example: `  causeway service expose web --site idc-sh --listen 0.0.0.0:8080
  causeway service expose web --site idc-sh --listen 0.0.0.0:8080 --remove`,
		Args: frame.Exactly("NAME"),
	}
	f := cmd.Flags()
	f.StringVar(&site, "site", "", "all nodes of `SITE`")
	f.StringVar(&node, "node", "", "`NODE` alone")
	f.StringVar(&listen, "listen", "", "`ADDRESS:PORT` of the host")
	f.StringVar(&port, "port", "", "`PORT` of the service, by name or number (default: its only one)")
	f.BoolVar(&remove, "remove", false, "no more")
	frame.Must(cmd.RegisterFlagCompletionFunc("site", c.Completer(1, siteNames)))
	return c.patched(cmd, func(context.Context, *api.Client, []string) (p api.ServicePatch, _ []api.Option, err error) {
		x := protocol.ServiceExpose{Site: site, Node: node, Listen: listen, Port: port}
		if (site == "") == (node == "") {
			return p, nil, frame.Usagef("say --site or --node")
		}
		if _, err := x.At(); err != nil {
			return p, nil, frame.Usagef("--listen: %v", err)
		}
		if remove {
			return api.ServicePatch{Unexpose: []protocol.ServiceExpose{x}}, nil, nil
		}
		return api.ServicePatch{Expose: []protocol.ServiceExpose{x}}, nil, nil
	})
}
