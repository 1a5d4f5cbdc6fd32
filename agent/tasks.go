package agent

import "context"

// task is one thing that an agent does beside its control session, from when the tunnel is up
// until ctx ends.
type task struct {
	name string
	run  func(context.Context) error
}

// tasks are the same for every configuration.
func (a *Agent) tasks() []task {
	return []task{
		{"host", a.followHost},
		{"firewall", a.followFirewall},
		{"session", a.followSession},
		{"tunnel", a.followTunnel},
		{"facts", func(ctx context.Context) error { return a.facts.Run(ctx) }},
		{"inventory", func(ctx context.Context) error { return a.inv.Follow(ctx) }},
		{"path MTUs", a.followMTUs},
		{"keys", a.followKeys},
		{"hub list", a.followList},
		{"upgrade", a.followUpgrade},
	}
}
