package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"causeway/hub/api"
)

func (c *cli) status() *cobra.Command {
	return c.leaf(&cobra.Command{
		Use:   "status",
		Short: "Show the hub, its sites and what is wrong",
		Args:  exactly(),
	}, func(ctx context.Context, hub *api.Client, _ []string) error {
		s, err := hub.Status(ctx)
		if err != nil {
			return err
		}
		names := make([]string, len(s.Sites))
		for i, site := range s.Sites {
			names[i] = site.Name
		}
		return c.show(s, names, func(p *page) { statusPage(p, s) })
	})
}

func statusPage(p *page, s api.Status) {
	p.facts(
		"Hub", fmt.Sprintf("number %d, version %s, up %s, log sequence %d", s.Hub.Number, s.Hub.Version, age(s.Hub.Started), s.Hub.LogLength),
		"Public", fmt.Sprintf("%s (udp), %s (https)", s.Hub.PublicUDP, s.Hub.PublicHTTP),
		"Overlay", join(s.Hub.Overlay),
		"Relay", relayText(s.Relay),
	)
	p.gap()
	if len(s.Sites) == 0 {
		p.line("No sites yet: causeway site create NAME")
	} else {
		rows := make([][]any, len(s.Sites))
		for i, t := range s.Sites {
			rows[i] = []any{t.Name, t.Nodes, counted(t.Ready, good), counted(t.Degraded, warn), counted(t.Unreachable, bad)}
		}
		p.table([]string{"SITE", "NODES", "READY", "DEGRADED", "UNREACHABLE"}, rows)
	}
	if len(s.Unknown) > 0 {
		rows := make([][]any, len(s.Unknown))
		for i, u := range s.Unknown {
			rows[i] = []any{u.Name, u.Site, u.Number, u.ReportedBy}
		}
		p.gap()
		p.line("Joined after the backup that this hub was restored from; they have to join again:")
		p.table([]string{"NODE", "SITE", "NUMBER", "REPORTED BY"}, rows)
	}
	p.conditions(s.Conditions)
}

// counted gives a number a meaning when it is not zero.
func counted(n int, m meaning) cell {
	if n == 0 {
		m = plain
	}
	return cell{text: fmt.Sprint(n), meaning: m}
}

func relayText(r api.RelayStatus) string {
	s := fmt.Sprintf("%d nodes bound, %s in %d datagrams forwarded, ", r.Bound, size(r.ForwardedBytes), r.Forwarded)
	var total uint64
	var by []string
	for reason, n := range r.Dropped {
		if n > 0 {
			total += n
			by = append(by, fmt.Sprintf("%s %d", reason, n))
		}
	}
	slices.Sort(by)
	s += fmt.Sprintf("%d dropped", total)
	if len(by) > 0 {
		s += " (" + strings.Join(by, ", ") + ")"
	}
	return s
}
