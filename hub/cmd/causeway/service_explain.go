package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

const (
	// explainNodes is how many nodes are asked where none is named, explainWait how long each has to answer.
	explainNodes = 12
	explainWait  = 10 * time.Second
	// maxServicesView bounds a node's answer, in bytes.
	maxServicesView = 4 << 20
)

// seenBy is a service as one node sees it.
type seenBy struct {
	Node  string                 `json:"node"`
	View  *protocol.ServicesView `json:"view,omitempty"`
	Error string                 `json:"error,omitempty"`
}

func (c *cli) serviceExplain() *cobra.Command {
	cmd := &cobra.Command{
		Use: "explain NAME|ADDRESS [FROM]", Short: "Say where a service's new connections go, as its clients' nodes see it, and why", Args: frame.Between(1, "NAME|ADDRESS", "FROM"),
		Long: fmt.Sprintf(`Ask the clients' nodes where new connections to a service go: each of them decides by itself.
With a node FROM: its view of each backend, with how its node is reached and when that answered
last, what it says of the backend, how many slots lead there, and connections from here. Without:
the shares of sites as the first %d nodes have them.`, explainNodes),
		Example:           "  causeway service explain web\n  causeway service explain 198.19.4.7 sh-1",
		ValidArgsFunction: c.Completer(2, c.serviceNames),
	}
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		s, err := findService(ctx, hub, args[0])
		if err != nil {
			return err
		}
		if len(args) == 2 {
			seen := askService(ctx, hub, args[1], s.Name)
			if seen.Error != "" {
				return fmt.Errorf("node %s: %s", args[1], seen.Error)
			}
			return c.Show(seen, []string{seen.Node}, func(p *frame.Page) { seenPage(p, s, seen) })
		}
		nodes, err := hub.Nodes(ctx)
		if err != nil {
			return err
		}
		names, left := askable(nodes)
		seen := make([]seenBy, len(names))
		var wg sync.WaitGroup
		for i, n := range names {
			wg.Go(func() { seen[i] = askService(ctx, hub, n, s.Name) })
		}
		wg.Wait()
		if err := frame.List(c.CLI, seen, func(x seenBy) string { return x.Node }, "No node is there that could be asked: causeway node list",
			[]string{"NODE", "NEW CONNECTIONS GO TO", "NOT USED", "WHY"}, func(_ *frame.Page, x seenBy) []any { return seenRow(x) }); err != nil {
			return err
		}
		if left > 0 && c.Format == frame.FormatTable {
			_, err = fmt.Fprintf(c.Out, "\n%s were not asked: causeway service explain %s NODE\n", counts(left, "node"), s.Name)
			return err
		}
		return nil
	})
}

// findService finds a service by its name or one of its addresses.
func findService(ctx context.Context, hub *api.Client, text string) (api.Service, error) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		if err := frame.CheckName("service", text); err != nil {
			return api.Service{}, err
		}
		return hub.Service(ctx, text)
	}
	l, err := hub.Services(ctx)
	if err != nil {
		return api.Service{}, err
	}
	for _, s := range l {
		if s.VIP4 == a || s.VIP6 == a {
			return s, nil
		}
	}
	return api.Service{}, fmt.Errorf("%s is no service's address; see 'causeway service list'", a)
}

func askService(ctx context.Context, hub *api.Client, node, service string) seenBy {
	out := askServices(ctx, hub, node, service)
	if out.Error == "" && len(out.View.Services) != 1 {
		out.View, out.Error = nil, "its answer has no service "+service
	}
	return out
}

// seenRow is the shares of sites that one node has.
func seenRow(x seenBy) []any {
	if x.Error != "" {
		return []any{x.Node, "-", "-", frame.Cell{Text: x.Error, Meaning: frame.Warn}}
	}
	v := x.View.Services[0]
	slots, all := map[string]int{}, 0
	unused, why := 0, ""
	for _, e := range v.Endpoints {
		slots[e.Site] += e.Slots
		all += e.Slots
		if !e.Use {
			if unused++; why == "" {
				why = fmt.Sprintf("%s: %s", e.Addr, protocol.Printable(e.Why))
			}
		}
	}
	var go2 []string
	for _, site := range slices.Sorted(maps.Keys(slots)) {
		if n := slots[site]; n > 0 {
			go2 = append(go2, fmt.Sprintf("%s %d %%", shortened(site, nameShown), (100*n+all/2)/all))
		}
	}
	to := frame.Cell{Text: strings.Join(go2, ", ")}
	if len(go2) == 0 {
		to = frame.Cell{Text: "nobody: refused", Meaning: frame.Bad}
	}
	return []any{x.Node, to, fmt.Sprintf("%d of %d", unused, len(v.Endpoints)), dash(why)}
}

func seenPage(p *frame.Page, s api.Service, x seenBy) {
	v := x.View.Services[0]
	facts := []string{"Service", s.Name, "Seen by", x.Node, "Mode", string(v.Mode) + ", prefers " + string(v.Prefer)}
	if x.View.Doubts {
		facts = append(facts, "Doubts", "it sees less than half of the sites of its services, and resets nothing")
	}
	p.Facts(append(facts, exposedFacts(v)...)...)
	var rows [][]any
	for i, e := range v.Endpoints {
		if i == endpointsShown {
			break
		}
		use := frame.Cell{Text: "-"}
		if e.Of > 0 {
			use.Text = fmt.Sprintf("%d of %d", e.Slots, e.Of)
		}
		if !e.Use {
			use.Meaning = frame.Warn
		}
		reach, node := e.Reach, e.Node
		if reach == protocol.ReachLocal {
			node = x.Node
		}
		if e.Answered > 0 {
			reach += ", " + e.Answered.Round(time.Millisecond).String() + " ago"
		}
		rows = append(rows, []any{e.Addr, shortened(e.Site, narrow), dash(shortened(node, narrow)), reach, e.Ready, use, e.Open + e.Half, dash(protocol.Printable(e.Why))})
	}
	if len(rows) == 0 {
		return
	}
	p.Gap()
	p.Table([]string{"ENDPOINT", "SITE", "NODE", "REACHED", "SAYS", "SLOTS", "OPEN", "WHY NOT"}, rows)
	if n := len(v.Endpoints) - len(rows); n > 0 {
		p.Line("%s more: -o json", counts(n, "endpoint"))
	}
}
