package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/flagenv"
)

const (
	// serviceDrainPoll is how often nodes are asked what is open yet.
	serviceDrainPoll = time.Second
	// drainSlack is how long after the service's drain the last connection has ended.
	drainSlack = 15 * time.Second
)

func (c *cli) serviceDrain() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "drain NAME SITE",
		Short: "Exclude a site from a service, and wait until nothing is open there",
		Long: `Send no new connections of a service to a site, as 'causeway service exclude' does, and wait
until clients' nodes have none open there: each ends by itself, or is reset after the service's
drain. 'causeway service include' takes it back.`,
		Example: "  causeway service drain web idc-sh",
		Args:    frame.Exactly("NAME", "SITE"),
	}
	cmd.ValidArgsFunction = c.Completer(2, c.serviceNames)
	flagenv.DurationVar(cmd.Flags(), &wait, "wait", 0, "wait at most so long (default the service's drain and 15s)")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		name, site := args[0], args[1]
		if err := frame.CheckName("service", name); err != nil {
			return err
		}
		if err := frame.CheckName("site", site); err != nil {
			return err
		}
		if wait < 0 || wait > 25*time.Hour {
			return frame.Usagef("--wait %s is not between 0 and 25h", wait)
		}
		s, err := hub.PatchService(ctx, name, api.ServicePatch{Exclude: []string{site}})
		if err != nil {
			return err
		}
		if wait == 0 {
			wait = time.Duration(s.Drain) + drainSlack
		}
		for end := time.Now().Add(wait); ; {
			open, err := openAt(ctx, hub, name, site)
			if err != nil {
				return err
			}
			if open.connections == 0 && len(open.silent) == 0 {
				return c.DoneAs(name, "drained", fmt.Sprintf("%s drained from %s: no connection is open there", name, site))
			}
			if time.Now().After(end) {
				return fmt.Errorf("service %s is excluded from %s, and after %s %s; 'causeway service top %s' shows more, and 'causeway service include %s %s' takes it back", name, site, wait, open, name, name, site)
			}
			c.Progress.Now("%s", open)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(serviceDrainPoll):
			}
		}
	})
}

// opened is what clients have open to a service at a site.
type opened struct {
	connections int
	nodes       []string // whose they are
	silent      []string // nodes that did not answer
}

func (o opened) String() string {
	var l []string
	if o.connections > 0 {
		l = append(l, fmt.Sprintf("%d connections are open, by %s", o.connections, atMost(o.nodes, len(o.nodes))))
	}
	if len(o.silent) > 0 {
		l = append(l, "not known of "+atMost(o.silent, len(o.silent)))
	}
	return strings.Join(l, "; ")
}

// openAt asks all nodes that are up, some at a time.
func openAt(ctx context.Context, hub *api.Client, service, site string) (o opened, err error) {
	nodes, err := hub.Nodes(ctx)
	if err != nil {
		return o, err
	}
	var names []string
	for _, n := range nodes {
		if n.State == api.NodeReady || n.State == api.NodeDegraded {
			names = append(names, n.Name)
		}
	}
	for some := range slices.Chunk(names, explainNodes) {
		got, err := loadReader{hub: hub, nodes: some, service: service}.read(ctx)
		if err != nil {
			return o, err
		}
		for _, n := range some {
			v := got.views[n]
			if v == nil {
				o.silent = append(o.silent, n)
				continue
			}
			open := 0
			for _, s := range v.Services {
				for _, e := range s.Endpoints {
					if s.Name == service && e.Site == site {
						open += e.Open
					}
				}
			}
			if o.connections += open; open > 0 {
				o.nodes = append(o.nodes, n)
			}
		}
	}
	return o, nil
}
