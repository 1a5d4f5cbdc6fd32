// Package hubtest runs a whole hub for tests of what asks it: the real admin API over a real state log, a real
// fleet and real sessions, on a unix socket. Beneath is a tunnel in memory (hub/session/sessiontest), in which a
// test has hosts join and agents speak, and so puts facts of nodes in by the way that they come.
package hubtest

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"causeway/hub"
	"causeway/hub/api"
	"causeway/hub/session/sessiontest"
	"causeway/protocol"
	"causeway/tunnel"
)

// patience bounds how long a hub may take to start, and to stop.
const patience = 60 * time.Second

// Hub is a hub that runs.
type Hub struct {
	Socket string // of the admin API
	Tunnel *sessiontest.Tunnel
	Client *api.Client
	// Booted tells the hub of an agent's process, as the tunnel does from its handshakes.
	Booted func(protocol.NodeNumber, protocol.BootID)

	cancel context.CancelFunc
	done   chan error
}

// Start runs a hub whose data lie below dir, a short path, as that of a socket is bounded. edit, if not nil,
// changes its configuration: without, it listens on the loopback alone, for hosts that join, at a port of the system's choice.
func Start(dir string, edit func(*hub.Config)) (*Hub, error) {
	h := &Hub{Socket: filepath.Join(dir, "hub.sock"), Tunnel: sessiontest.New(), done: make(chan error, 1)}
	cfg := hub.Config{DataDir: filepath.Join(dir, "data"), AdminSocket: h.Socket, ListenHTTPS: "127.0.0.1:0", PublicHost: "127.0.0.1", Version: "v0.1.0", Log: zerolog.Nop()}
	if edit != nil {
		edit(&cfg)
	}
	cfg.Tunnel = func(c tunnel.HubConfig) (hub.Tunnel, error) {
		h.Booted = c.OnBoot
		return h.Tunnel, nil
	}
	run, err := hub.New(cfg)
	if err != nil {
		return nil, err
	}
	if h.Client, err = api.NewClient(api.ClientConfig{Socket: h.Socket}); err != nil {
		return nil, err
	}
	var ctx context.Context
	ctx, h.cancel = context.WithCancel(context.Background())
	go func() { h.done <- run.Run(ctx) }()
	select {
	case <-run.Ready():
		return h, nil
	case err = <-h.done:
	case <-time.After(patience):
		err = errors.New("the hub is not ready")
	}
	h.cancel()
	h.Client.Close()
	return nil, err
}

// Close stops the hub.
func (h *Hub) Close() error {
	h.Client.Close()
	h.cancel()
	select {
	case err := <-h.done:
		return err
	case <-time.After(patience):
		return errors.New("the hub does not stop")
	}
}

// Join makes a token and has a host redeem it.
func (h *Hub) Join(ctx context.Context, name string, spec api.TokenSpec) (*sessiontest.Host, error) {
	made, err := h.Client.CreateToken(ctx, spec)
	if err != nil {
		return nil, err
	}
	tok, err := protocol.ParseToken(made.Text)
	if err != nil {
		return nil, err
	}
	return sessiontest.Join(tok, name)
}
