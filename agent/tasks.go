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
		{"host", a.host.Run},
		{"firewall", a.host.FollowFirewall},
		{"netmap", a.followNetmap},
		{"acknowledgements", a.followApplied},
		{"session", a.followSession},
		{"tunnel", a.followTunnel},
		{"facts", func(ctx context.Context) error { return a.facts.Run(ctx) }},
		{"inventory", func(ctx context.Context) error { return a.inv.Follow(ctx) }},
		{"path MTUs", a.host.FollowMTUs},
		{"keys", a.followKeys},
		{"hub list", a.followList},
		{"upgrade", a.followUpgrade},
	}
}
