package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

// endpointsShown is how many endpoints a page has: it fits a screen.
const endpointsShown = 15

func (c *cli) service() *cobra.Command {
	return c.Group("service", "One name and address for what runs at several sites", `A service has one name and address for what runs at several sites: each client's node
spreads and switches its traffic by itself. Services are declared: they are documents of
'causeway apply' (causeway explain service-file), and 'get', 'diff' and 'delete' have them too.`,
		c.serviceList(), c.serviceShow(), c.serviceCreate(), c.serviceDelete(), c.serviceWeights(), c.serviceExclude(), c.serviceInclude(), c.serviceDrain(), c.serviceSwitch(), c.serviceExpose(), c.serviceExplain(), c.serviceEvents(), c.serviceTop())
}

// serviceNames completes the name of a service, then those of sites.
func (c *cli) serviceNames(ctx context.Context, hub *api.Client, args []string) ([]string, error) {
	if len(args) > 0 {
		return siteNames(ctx, hub, nil)
	}
	return c.objectNames(ctx, hub, []string{protocol.ItemService})
}

func (c *cli) serviceList() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List services, and how many backends of them are usable", Args: frame.Exactly(),
		Long: `List services. BACKENDS says of each site how many endpoints may take new connections, of
how many: those that are ready, and those of which no node has told yet.`,
	}
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		l, err := hub.Services(ctx)
		if err != nil {
			return err
		}
		return frame.List(c.CLI, l, func(s api.Service) string { return s.Name }, "No service is declared: causeway service create NAME --port 80 --backend …",
			[]string{"SERVICE", "SEGMENT", "ADDRESS", "MODE", "BACKENDS", "FINDINGS", "+ADDRESS6", "+PORTS", "+AGE"},
			func(_ *frame.Page, s api.Service) []any {
				found := frame.Cell{Text: fmt.Sprint(len(s.Findings))}
				if len(s.Findings) > 0 {
					found.Meaning = frame.Warn
				}
				return []any{shortened(s.Name, nameShown), shortened(s.Segment, nameShown), vipText(s.VIP4, s.VIP6, s.Headless), s.Mode, shortened(cmp.Or(sitesText(s), "none"), 2*narrow), found, vipText(s.VIP6, netip.Addr{}, s.Headless), portsText(s.Ports), frame.Aged(s.Created)}
			})
	})
}

func vipText(a, or netip.Addr, headless bool) string {
	switch {
	case a.IsValid():
		return a.String()
	case or.IsValid():
		return or.String()
	case headless:
		return "headless"
	}
	return "-"
}

// sitesShown is how many sites a row has.
const sitesShown = 3

func sitesText(s api.Service) string {
	var l []string
	for i, x := range s.Sites {
		if i == sitesShown {
			l = append(l, fmt.Sprintf("%d more", len(s.Sites)-i))
			break
		}
		l = append(l, fmt.Sprintf("%s %d/%d", shortened(x.Site, nameShown), x.Usable, x.All))
	}
	return strings.Join(l, ", ")
}

func portsText(ports []protocol.ServicePort) string {
	var l []string
	for _, p := range ports {
		text := fmt.Sprintf("%s/%d", p.Protocol, p.Port)
		if p.Target != p.Port {
			text += fmt.Sprintf(" to %d", p.Target)
		}
		if p.Name != "" {
			text = p.Name + " " + text
		}
		l = append(l, text)
	}
	return strings.Join(l, ", ")
}

func (c *cli) serviceShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show NAME", Short: "Show a service: its addresses, who serves it now and what is wrong with it", Args: frame.Exactly("NAME"),
		Long: `Show a service: its addresses and ports, how it uses its sites, its endpoints with the nodes
that carry them and what these say of them, and what is wrong. -o json has all of it.`,
		ValidArgsFunction: c.Completer(1, c.serviceNames)}
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("service", args[0]); err != nil {
			return err
		}
		s, err := hub.Service(ctx, args[0])
		if err != nil {
			return err
		}
		return c.showService(s)
	})
}

func (c *cli) showService(s api.Service) error {
	return c.Show(s, []string{s.Name}, func(p *frame.Page) { servicePage(p, s) })
}

func servicePage(p *frame.Page, s api.Service) {
	addresses := vipText(s.VIP4, s.VIP6, s.Headless)
	if s.VIP4.IsValid() && s.VIP6.IsValid() {
		addresses += ", " + s.VIP6.String()
	}
	mode := string(s.Mode)
	if s.Mode == protocol.ServiceSingleWriter {
		mode = writerText(s)
	}
	facts := []string{"Service", s.Name, "Segment", s.Segment, "Address", addresses, "Ports", portsText(s.Ports), "Mode", mode, "Prefers", preferText(s)}
	if s.Sticky != protocol.StickyNone {
		facts = append(facts, "Sticky", "by "+string(s.Sticky))
	}
	facts = append(facts, "Stays at", strings.Join(s.Stay, ", "), "Excluded", strings.Join(s.Exclude, ", "), "Health", healthText(s.Health), "Backends", cmp.Or(sitesText(s), "none"))
	if s.Have+len(s.Lack) > 0 {
		facts = append(facts, "Clients", fmt.Sprintf("%d/%d have it", s.Have, s.Have+len(s.Lack)))
	}
	if len(s.Lack) > 0 {
		facts = append(facts, "Lacking", atMost(s.Lack, len(s.Lack)))
	}
	facts = append(facts, outsideFacts(s)...)
	facts = append(facts, switchFacts(s)...)
	p.Facts(append(facts, "Age", frame.Age(s.Created))...)
	var rows [][]any
	for i, e := range s.Endpoints {
		if i == endpointsShown {
			break
		}
		rows = append(rows, endpointRow(e))
	}
	if len(rows) > 0 {
		p.Gap()
		p.Table([]string{"ENDPOINT", "SITE", "NAME", "NODES", "READY", "SINCE", "WHY"}, rows)
	}
	if n := len(s.Endpoints) - len(rows); n > 0 {
		p.Line("%s more: causeway service show %s -o json", counts(n, "endpoint"), s.Name)
	}
	if rows = waitRows(s); len(rows) > 0 {
		p.Gap()
		p.Table([]string{"WAITS FOR", "WHY", "LEASE OVER"}, rows)
	}
	rows = nil
	for _, f := range s.Findings {
		rows = append(rows, []any{frame.Cell{Text: f.Check, Meaning: frame.Warn}, protocol.Printable(f.Text)})
	}
	if len(rows) > 0 {
		p.Gap()
		p.Table([]string{"FINDING", "WHAT"}, rows)
	}
}

func endpointRow(e api.ServiceEndpoint) []any {
	ready, since := frame.Cell{Text: e.Ready}, any("-")
	if e.Ready == api.EndpointNotReady {
		ready.Meaning = frame.Warn
	}
	if !e.Since.IsZero() {
		since = frame.Aged(e.Since)
	}
	return []any{e.Addr, shortened(e.Site, nameShown), shortened(e.Name, nameShown), atMost(e.Nodes, len(e.Nodes)), ready, since, dash(protocol.Printable(cmp.Or(e.Away, e.Cause)))}
}

func preferText(s api.Service) string {
	switch {
	case s.Mode == protocol.ServiceSingleWriter:
		return ""
	case s.Prefer == protocol.PreferWeights || len(s.Weights) > 0:
		var l []string
		for _, site := range slices.Sorted(maps.Keys(s.Weights)) {
			l = append(l, fmt.Sprintf("%s=%d", site, s.Weights[site]))
		}
		return fmt.Sprintf("%s: %s", s.Prefer, strings.Join(l, ", "))
	case len(s.Order) > 0:
		return fmt.Sprintf("%s: %s", s.Prefer, strings.Join(s.Order, ", "))
	}
	return string(s.Prefer)
}

func healthText(h protocol.ServiceHealth) string {
	if h.Type == protocol.HealthNone {
		return "none is asked"
	}
	return fmt.Sprintf("%s, port %d%s, every %s; %d bad ones in a row and it is not ready, %d good ones and it is", h.Type, h.Port, strings.TrimRight(" "+protocol.Printable(h.Path), " "), h.Interval, h.Fail, h.OK)
}

func (c *cli) serviceCreate() *cobra.Command {
	var ports, backends []string
	var order, stay []string
	var segment, mode, writer, sticky string
	var headless bool
	cmd := &cobra.Command{
		Use:   "create NAME --port PORT --backend BACKEND",
		Short: "Declare a service",
		Long: `Declare a service, as 'causeway apply' would; that one takes all fields (causeway explain
service-file). --port is PORT, PORT:TARGET, with /udp or /tcp behind it and NAME= before it.
--backend is who serves it:

  selector:KEY=VALUE,…  running containers with these labels, at any site
  node:NODE             programs of that node's host
  SITE:ADDRESS,…        addresses that nodes of the site carry`,
		Example: `  causeway service create web --port 80:8080 --backend selector:app=web
  causeway service create db --port pg=5432 --backend idc-sh:10.201.1.2 --backend cloud-eu:10.202.1.2 --mode single-writer --writer idc-sh`,
		Args: frame.Exactly("NAME"),
	}
	f := cmd.Flags()
	f.StringArrayVar(&ports, "port", nil, "[`NAME=]PORT[:TARGET][/udp]` that it is reached by (repeatable)")
	f.StringArrayVar(&backends, "backend", nil, "who serves it, such as `selector:app=web` (repeatable)")
	f.StringVar(&segment, "segment", "", "whose nodes are its clients (default: all, or those in no segment)")
	f.StringVar(&mode, "mode", "", "spread, failover or single-writer (default spread)")
	f.StringVar(&writer, "writer", "", "`SITE` that a single-writer service uses")
	f.StringSliceVar(&order, "order", nil, "`SITES` in the order in which they are preferred")
	f.StringSliceVar(&stay, "stay", nil, "`SITES` that it may not leave")
	f.StringVar(&sticky, "sticky", "", "none or client (default none)")
	f.BoolVar(&headless, "headless", false, "it has no address of its own: its name has those of its backends")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		name := args[0]
		if err := frame.CheckName("service", name); err != nil {
			return err
		}
		s := protocol.Service{Segment: segment, Headless: headless, Mode: protocol.ServiceMode(mode), Writer: writer, Order: order, Stay: stay, Sticky: protocol.ServiceSticky(sticky)}
		if len(order) > 0 {
			s.Prefer = protocol.PreferOrder
		}
		for _, text := range ports {
			p, err := parseServicePort(text)
			if err != nil {
				return frame.Usagef("--port: %v", err)
			}
			s.Ports = append(s.Ports, p)
		}
		for _, text := range backends {
			b, err := parseBackend(text)
			if err != nil {
				return frame.Usagef("--backend: %v", err)
			}
			s.Backends = append(s.Backends, b)
		}
		if _, err := s.Normal(); err != nil {
			return frame.Usagef("%v", err)
		}
		doc, err := json.Marshal(api.ServiceDocument{Kind: protocol.ItemService, Name: name, ServiceSpec: api.ServiceSpec{Service: s}})
		if err != nil {
			return err
		}
		a := api.Apply{Documents: []api.ApplyDocument{{At: "service " + name, Document: doc}}, DryRun: true}
		was, err := hub.Apply(ctx, a)
		if err != nil {
			return err
		}
		if was.Steps[0].Action != "create" {
			return fmt.Errorf("service %s exists already; change it by 'causeway apply', or see 'causeway service --help'", name)
		}
		a.DryRun, a.Sequence = false, was.Sequence
		if _, err := hub.Apply(ctx, a); err != nil {
			return err
		}
		made, err := hub.Service(ctx, name)
		if err != nil {
			return err
		}
		return c.showService(made)
	})
}

func parseServicePort(text string) (p protocol.ServicePort, err error) {
	rest := text
	if name, after, named := strings.Cut(rest, "="); named {
		p.Name, rest = name, after
	}
	if before, proto, said := strings.Cut(rest, "/"); said {
		p.Protocol, rest = proto, before
	}
	port, target, two := strings.Cut(rest, ":")
	for _, x := range []struct {
		text string
		to   *uint16
		said bool
	}{{port, &p.Port, true}, {target, &p.Target, two}} {
		if !x.said {
			continue
		}
		n, err := strconv.ParseUint(x.text, 10, 16)
		if err != nil || n == 0 {
			return p, fmt.Errorf("%.80q: ports are 1 to 65535; write such as 80, 80:8080, dns=53/udp", text)
		}
		*x.to = uint16(n)
	}
	return p, nil
}

func parseBackend(text string) (b protocol.ServiceBackend, err error) {
	kind, rest, ok := strings.Cut(text, ":")
	if !ok || rest == "" {
		return b, fmt.Errorf("%.80q: write selector:KEY=VALUE, node:NODE or SITE:ADDRESS", text)
	}
	switch kind {
	case "selector":
		b.Selector = map[string]string{}
		for l := range strings.SplitSeq(rest, ",") {
			k, v, ok := strings.Cut(l, "=")
			if !ok {
				return b, fmt.Errorf("%.80q: a label is KEY=VALUE", l)
			}
			b.Selector[k] = v
		}
	case "node":
		b.Node = rest
	default:
		b.Site = kind
		for a := range strings.SplitSeq(rest, ",") {
			addr, err := netip.ParseAddr(a)
			if err != nil {
				return b, fmt.Errorf("%.80q is no address", a)
			}
			b.Addresses = append(b.Addresses, addr)
		}
	}
	return b, nil
}

func (c *cli) serviceDelete() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{Use: "delete NAME", Short: "Take a service away", Args: frame.Exactly("NAME"), ValidArgsFunction: c.Completer(1, c.serviceNames)}
	frame.YesFlag(cmd, &yes)
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("service", args[0]); err != nil {
			return err
		}
		if err := c.Confirm(yes, "Delete service %s? Its name and address stop working at once.", args[0]); err != nil {
			return err
		}
		if err := hub.DeleteObject(ctx, protocol.ItemService, args[0]); err != nil {
			return err
		}
		return c.Done(args[0], "deleted")
	})
}

// patched is a command that changes how a service uses its sites.
func (c *cli) patched(cmd *cobra.Command, patch func(ctx context.Context, hub *api.Client, args []string) (api.ServicePatch, []api.Option, error)) *cobra.Command {
	cmd.ValidArgsFunction = c.Completer(2, c.serviceNames)
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("service", args[0]); err != nil {
			return err
		}
		p, options, err := patch(ctx, hub, args)
		if err != nil {
			return err
		}
		s, err := hub.PatchService(ctx, args[0], p, options...)
		if err != nil {
			return err
		}
		return c.showService(s)
	})
}

func (c *cli) serviceWeights() *cobra.Command {
	return c.patched(&cobra.Command{
		Use:   "weights NAME SITE=WEIGHT…",
		Short: "Change how new connections are spread over sites",
		Long: `Change how new connections to a service of mode spread are spread over sites: each takes
its weight of the sum, 0 to 1000. Sites that are not named keep theirs, and the service
prefers by weights from now on. A file of 'causeway apply' is to say the same, or the next
apply undoes it.`,
		Example: "  causeway service weights web idc-sh=90 cloud-eu=10",
		Args:    cobra.MinimumNArgs(2),
	}, func(_ context.Context, _ *api.Client, args []string) (p api.ServicePatch, _ []api.Option, err error) {
		p.Weights = map[string]int{}
		for _, a := range args[1:] {
			site, text, ok := strings.Cut(a, "=")
			n, err := strconv.Atoi(text)
			if !ok || err != nil || n < 0 || n > protocol.MaxServiceWeight {
				return p, nil, frame.Usagef("%.80q: write SITE=WEIGHT, with a weight of 0 to %d", a, protocol.MaxServiceWeight)
			}
			if err := frame.CheckName("site", site); err != nil {
				return p, nil, err
			}
			p.Weights[site] = n
		}
		return p, nil, nil
	})
}

func (c *cli) serviceExclude() *cobra.Command {
	return c.patched(&cobra.Command{
		Use:   "exclude NAME SITE",
		Short: "Send no new connections of a service to a site",
		Long: `Send no new connections of a service to a site, until 'causeway service include'. What is
open there ends by itself, or is reset after the service's drain; 'causeway service drain' waits
for that.`,
		Args: frame.Exactly("NAME", "SITE"),
	}, func(_ context.Context, _ *api.Client, args []string) (p api.ServicePatch, _ []api.Option, err error) {
		return api.ServicePatch{Exclude: args[1:]}, nil, frame.CheckName("site", args[1])
	})
}

func (c *cli) serviceInclude() *cobra.Command {
	return c.patched(&cobra.Command{Use: "include NAME SITE", Short: "Send connections of a service to a site again", Args: frame.Exactly("NAME", "SITE")},
		func(_ context.Context, _ *api.Client, args []string) (p api.ServicePatch, _ []api.Option, err error) {
			return api.ServicePatch{Include: args[1:]}, nil, frame.CheckName("site", args[1])
		})
}
