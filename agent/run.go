package agent

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sync/errgroup"

	"causeway/agent/debug"
	"causeway/agent/health"
)

// Run works until ctx ends, or until a leave was asked for over the debug
// socket; both return nil.
//
// It opens what others may hold and works on tasks until one fails; on more once the tunnel is there.
func (a *Agent) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(a.answers.life, stop)() // a leave
	r := &run{Agent: a}
	defer r.close()
	if err := r.open(ctx); err != nil {
		return err
	}
	id := a.own.Now()
	a.log.Info().Uint32("number", uint32(id.Number)).Str("version", a.cfg.Version).Str("iface", a.cfg.Settings.Tunnel.Interface).
		Str("engine", a.tunnel.EngineName()).Msg("agent starts")
	g, ctx := errgroup.WithContext(ctx)
	work := func(tasks []task) {
		for _, t := range tasks {
			g.Go(func() error { return t.run(ctx) })
		}
	}
	work(r.tasks())
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-a.tunnel.Ready():
			r.up(ctx)
		}
		if ctx.Err() != nil {
			r.stopTunnel() // no session will
			return nil
		}
		close(a.ready)
		a.log.Info().Str("iface", a.cfg.Settings.Tunnel.Interface).Msg("tunnel is up")
		work(r.upTasks())
		return nil
	})
	err := g.Wait()
	if errors.Is(context.Cause(a.answers.life), errLeft) {
		a.log.Info().Msg("this node has left")
		return nil
	}
	if err == nil {
		a.log.Info().Msg("agent stops; interface, routes and rules stay")
	}
	return err
}

// run is one Run: what it has opened.
type run struct {
	*Agent
	undo []cleanup

	socket, public net.Listener    // of debug endpoints and of metrics; public may be nil
	tunnelCtx      context.Context // of the tunnel, which ends after the control session that it carries
	stopTunnel     context.CancelFunc
}

// cleanup is undone when Run ends, last in first out.
type cleanup struct {
	name string
	do   func()
}

func (r *run) after(name string, do func()) { r.undo = append(r.undo, cleanup{name, do}) }

func (r *run) close() {
	for i := len(r.undo) - 1; i >= 0; i-- {
		r.undo[i].do()
	}
}

// open opens what another process may hold. What it has opened when it fails is closed by close.
func (r *run) open(ctx context.Context) (err error) {
	if r.socket, err = debug.Listen(ctx, r.cfg.Socket); err != nil {
		return err
	}
	r.after("debug socket", func() { r.socket.Close() })
	if r.public, err = debug.ListenPublic(ctx, r.cfg.Settings.Debug.Metrics); err != nil {
		return err
	}
	if r.public != nil {
		r.after("metrics", func() { r.public.Close() })
	}
	r.after("age of the netmap", func() { r.want.Confirm(true) })
	r.after("split DNS", r.names.untell) // an agent that was killed may have left it
	r.after("answers under way", func() { r.answers.stop(nil) })
	r.tunnelCtx, r.stopTunnel = context.WithCancel(context.WithoutCancel(ctx))
	r.after("tunnel", r.stopTunnel)
	return nil
}

// up takes over what an earlier run left and applies what is known of the netmap, now that there is a
// tunnel.
func (r *run) up(ctx context.Context) {
	r.board.Set(health.Tunnel, "")
	if port := r.tunnel.Port(); port != 0 {
		// A full disk is told of elsewhere, and this is no reason to end.
		if err := r.cfg.Store.SavePort(port); err != nil {
			r.log.Warn().Err(err).Msg("cannot keep the tunnel's port for the next run")
		}
	}
	r.host.Start(ctx)
}

// task is one thing that an agent does all the time, until ctx ends.
type task struct {
	name string
	run  func(context.Context) error
}

// tasks are what the agent does from the start, the same for every configuration.
func (r *run) tasks() []task {
	return []task{
		{"debug", func(ctx context.Context) error { return r.debug.Run(ctx, r.socket, r.public) }},
		{"tunnel", r.runTunnel},
		{"hubs", r.link.Resolve},
	}
}

// upTasks are what it does beside, from when the tunnel is up.
func (r *run) upTasks() []task {
	return []task{
		{"host", r.host.Run},
		{"firewall", r.host.FollowFirewall},
		{"path MTUs", r.host.FollowMTUs},
		{"netmap", r.followNetmap},
		{"acknowledgements", r.link.FollowApplied},
		{"lost sessions", r.link.FollowSession},
		{"paths", r.link.FollowPaths},
		{"keys", r.link.FollowKeys},
		{"hub list", r.link.FollowList},
		{"services", r.services.Run},
		{"flows", func(ctx context.Context) error { return r.flows.Run(ctx) }},
		{"facts", func(ctx context.Context) error { return r.facts.Run(ctx) }},
		{"inventory", func(ctx context.Context) error { return r.inv.Follow(ctx) }},
		{"names", r.names.run},
		{"upgrade", r.upgrades.run},
		{"session", r.runSession},
	}
}

// runTunnel runs the tunnel until the session upon it has ended.
func (r *run) runTunnel(ctx context.Context) error {
	err := r.tunnel.Run(r.tunnelCtx)
	if ctx.Err() != nil || r.tunnelCtx.Err() != nil {
		return nil
	}
	if err == nil {
		err = errors.New("it ended by itself")
	}
	return fmt.Errorf("run tunnel: %w", err)
}

// runSession keeps a session with a hub; with its end the tunnel ends.
func (r *run) runSession(ctx context.Context) error {
	defer r.stopTunnel()
	return r.link.Run(ctx, r.debug.ServeConn)
}
