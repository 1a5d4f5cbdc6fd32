package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"causeway/e2e"
	"causeway/hub/api"
	"causeway/netns/lab"
	"causeway/protocol"
)

// causeway is a column with a hub and an agent at each site.
type causeway struct {
	engine string
	path   protocol.PathKind
	buffer int // of the hub's sockets, in bytes; 0: its default
	idle   int // further nodes that joined and do not run
}

func (c causeway) connect(ctx context.Context, w *world) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	w.path = c.path
	// Each site drops what comes by a better path.
	better := ""
	switch c.path {
	case protocol.PathRelay:
		better = "ip saddr != " + e2e.HubAddr + " meta l4proto udp"
	case protocol.PathStream:
		better = "meta l4proto udp"
	}
	if better != "" {
		for _, s := range w.sites {
			s.host.Nft(fmt.Sprintf(`table ip bench {
	chain inp { type filter hook input priority 0; iifname "eth0" %s drop; }
}
`, better))
		}
	}
	var args []string
	if c.buffer > 0 {
		args = append(args, "--socket-buffer", fmt.Sprint(c.buffer))
	}
	sys, err := e2e.NewSystem(ctx, w.lab, w.bin, w.hub, e2e.HubAddr, args...)
	if err != nil {
		return err
	}
	w.sys = sys
	if c.path != protocol.PathDirect {
		w.relay = sys.Hub.Proc
	}
	// The idle ones first: their news would be part of the measurement.
	if err := c.joinIdle(ctx, w); err != nil {
		return err
	}
	var names []string
	for _, s := range w.sites {
		if err := sys.CreateSite(ctx, s.name); err != nil {
			return err
		}
		n, err := sys.Join(ctx, e2e.NodeSpec{Name: s.name, Site: s.name, Host: s.host, TokenRoutes: []string{s.pods}, Engine: c.engine})
		if err != nil {
			return err
		}
		s.proc = n.Proc
		names = append(names, s.name)
	}
	if err := sys.WaitReady(ctx, names...); err != nil {
		return err
	}
	return c.waitIdle(ctx, w)
}

const (
	connectTimeout = 5 * time.Minute
	idleSite       = "idle"
	idleHosts      = 8
	quiet          = 10 * time.Second
)

// idleRoute is the pod range of an idle node.
func idleRoute(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + i/250), byte(i % 250), 0}), 24)
}

// joinIdle makes nodes that joined, were connected once and run no more: peers
// with keys, prefixes and routes in everybody's tables, without a session. A
// few hosts are one after the other of them.
func (c causeway) joinIdle(ctx context.Context, w *world) error {
	if c.idle == 0 {
		return nil
	}
	if err := w.sys.CreateSite(ctx, idleSite); err != nil {
		return err
	}
	admin, err := api.NewClient(api.ClientConfig{Socket: w.sys.Hub.Socket})
	if err != nil {
		return err
	}
	defer admin.Close()
	g, ctx := errgroup.WithContext(ctx)
	for h := range idleHosts {
		host := w.lab.Host(fmt.Sprintf("%s-idle%d", w.name, h)).Link("eth0", w.inet, fmt.Sprintf("203.0.113.%d/24", 200+h))
		g.Go(func() error {
			for i := h; i < c.idle; i += idleHosts {
				if err := joinOnce(ctx, w, admin, host, fmt.Sprintf("idle-%d", i), idleRoute(i)); err != nil {
					return fmt.Errorf("join idle node %d: %w", i, err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// joinOnce joins a node and runs its agent until the hub has heard from it.
func joinOnce(ctx context.Context, w *world, admin *api.Client, host *lab.Host, name string, route netip.Prefix) error {
	token, err := admin.CreateToken(ctx, api.TokenSpec{Site: idleSite, Routes: []netip.Prefix{route}})
	if err != nil {
		return err
	}
	n, err := w.sys.Prepare(e2e.NodeSpec{Name: name, Site: idleSite, Host: host})
	if err != nil {
		return err
	}
	if _, err := n.Redeem(ctx, token.Text); err != nil {
		return err
	}
	if err := n.Start(); err != nil {
		return err
	}
	err = lab.Wait(ctx, name, func(ctx context.Context) error {
		if !n.Proc.Running() {
			return lab.Permanent(fmt.Errorf("the agent ended:\n%s", n.Proc.Output()))
		}
		got, err := admin.Node(ctx, name)
		if err == nil && got.State == api.NodeJoined {
			err = errors.New("the hub has not heard from it")
		}
		return err
	})
	if err != nil {
		return err
	}
	// Not killed: the hub would keep what it sends it until that times out.
	return n.Proc.Stop(ctx)
}

// waitIdle waits until the first site's engine and kernel hold what the idle
// nodes announce, and no more news of them comes: that the last one's agent
// ended takes the hub a while to find out.
func (c causeway) waitIdle(ctx context.Context, w *world) error {
	if c.idle == 0 {
		return nil
	}
	first := w.sys.Node(w.sites[0].name)
	var version protocol.NetmapVersion
	var since time.Time
	return lab.Wait(ctx, "the idle peers", func(ctx context.Context) error {
		out, err := first.Agent(ctx, "status", "-o", "json")
		if err != nil {
			return err
		}
		var st struct {
			Peers  int                    `json:"peers"`
			Netmap protocol.NetmapVersion `json:"netmap"`
		}
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			return fmt.Errorf("read status: %w", err)
		}
		if st.Peers < c.idle+active {
			return fmt.Errorf("%d peers", st.Peers)
		}
		out, err = first.Host.Run(ctx, "ip", "-4", "route", "show", "table", "51806")
		if err != nil {
			return err
		}
		if n := strings.Count(out, "dev cw0"); n < c.idle+active {
			return fmt.Errorf("%d routes", n)
		}
		if st.Netmap != version {
			version, since = st.Netmap, time.Now()
		}
		if time.Since(since) < quiet {
			return errors.New("the netmap changes")
		}
		return nil
	})
}
