package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"causeway/agent/config"
	"causeway/agent/doctor"
	"causeway/agent/held"
	"causeway/agent/identity"
	"causeway/protocol"
)

func doctorCommand(o *options) *cobra.Command {
	var hubs []string
	cmd := &cobra.Command{
		Use: "doctor", Short: "Look at this host, before it joins or after: what keeps the tunnel from working",
		Long: "Look at this host and say what keeps the tunnel from working, or makes it slower: kernel, capabilities, TUN,\n" +
			"nftables, clock, firewalls, other VPNs, overlapping ranges, MTU, and how hubs are reached over TCP and UDP, through\n" +
			"which proxy and NAT. It needs no agent and changes nothing. Before the host has joined, name a hub with --hub.\n\n" +
			"Exit status is 1 when a check fails; a warning is none.",
		Args: exactArgs(0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.output != "table" && o.output != "json" {
				return o.print(nil, nil, nil)
			}
			c, err := config.Load(o.config)
			if err != nil {
				return err
			}
			dc := doctor.Config{Interface: c.Tunnel.Interface, Routes: c.Routes, Named: c.Named, Shields: c.Shields, Proxy: http.ProxyFromEnvironment}
			if c.Proxy != nil {
				dc.Proxy = func(*http.Request) (*url.URL, error) { return c.Proxy, nil }
			}
			for _, h := range hubs {
				if _, err := netip.ParseAddr(h); err == nil {
					h = net.JoinHostPort(h, "443")
				} else if _, _, err := net.SplitHostPort(h); err != nil {
					h = net.JoinHostPort(h, "443")
				}
				dc.Hubs = append(dc.Hubs, h)
			}
			id, err := identity.Peek(o.stateDir)
			switch {
			case err == nil:
				dc.Identity = &id
				dc.Held, _, _ = held.Load(identity.HeldFile(o.stateDir)) // damaged, it says nothing
				if n, err := identity.PeekNetmap(o.stateDir); err == nil && n != nil {
					for _, r := range n.Netmap.Self.Routes { // a token's too
						if r.State == protocol.RouteApproved {
							dc.Routes = append(dc.Routes, r.Prefix)
						}
					}
					for _, p := range n.Netmap.Peers {
						dc.Peers = append(dc.Peers, p.Routes...)
					}
				}
			case !errors.Is(err, identity.ErrNotJoined):
				fmt.Fprintf(cmd.ErrOrStderr(), "causeway-agent: %s\n", protocol.Folded(err.Error()))
			}
			if exe, err := os.Executable(); err == nil && filepath.Dir(exe) == "/usr/bin" {
				dc.Version = version
			}
			checks := doctor.Run(cmd.Context(), dc)
			if err := o.print(cmd.OutOrStdout(), checks, func(w io.Writer) { writeChecks(w, checks) }); err != nil {
				return err
			}
			n := 0
			for _, k := range checks {
				if k.Status == doctor.Fail {
					n++
				}
			}
			if n > 0 {
				return fmt.Errorf("%d of %d checks failed", n, len(checks))
			}
			return nil
		},
	}
	o.stateFlag(cmd)
	o.configFlag(cmd)
	o.outputFlag(cmd)
	cmd.Flags().StringArrayVar(&hubs, "hub", nil, "`HOST[:PORT]` of a hub's HTTPS port (443); may be repeated")
	return cmd
}

func writeChecks(w io.Writer, checks []doctor.Check) {
	wide := 0
	for _, k := range checks {
		wide = max(wide, len(k.Name))
	}
	for _, k := range checks {
		fmt.Fprintf(w, "%-4s  %-*s  %s\n", k.Status, wide, k.Name, k.What)
		if k.Status != doctor.OK && k.Why != "" {
			fmt.Fprintf(w, "      %-*s  why: %s\n", wide, "", k.Why)
		}
		if k.Status != doctor.OK && k.Do != "" {
			fmt.Fprintf(w, "      %-*s  do:  %s\n", wide, "", k.Do)
		}
	}
}
