package debug

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"causeway/protocol"
)

// ErrNotRunning says that no agent answers on the socket.
var ErrNotRunning = errors.New("causeway-agent is not running")

// Client reads the endpoints over the unix socket.
type Client struct {
	path string
	http *http.Client
}

// NewClient opens nothing.
func NewClient(path string) *Client {
	return &Client{path: path, http: &http.Client{
		Timeout: 5 * time.Minute,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", path)
		}},
	}}
}

// Get reads an endpoint into v.
func (c *Client) Get(ctx context.Context, path string, v any) error {
	return c.do(ctx, http.MethodGet, path, v)
}

// Leave asks the agent to leave and end.
func (c *Client) Leave(ctx context.Context) (r LeaveResult, err error) {
	return r, c.do(ctx, http.MethodPost, protocol.DebugLeave, &r)
}

// Repair asks the agent to put back what is not as planned, also what it has given up.
func (c *Client) Repair(ctx context.Context) (r RepairResult, err error) {
	return r, c.do(ctx, http.MethodPost, protocol.DebugRepair, &r)
}

// Release asks the agent to let closed ranges go.
func (c *Client) Release(ctx context.Context, p netip.Prefix) (r ReleaseResult, err error) {
	return r, c.do(ctx, http.MethodPost, protocol.DebugRelease+"?prefix="+url.QueryEscape(p.String()), &r)
}

// SetHubs gives the agent a hub list.
func (c *Client) SetHubs(ctx context.Context, l protocol.SignedHubList) (r HubsResult, err error) {
	b, err := json.Marshal(l)
	if err != nil {
		return r, err
	}
	return r, c.send(ctx, http.MethodPost, protocol.DebugHubs, bytes.NewReader(b), &r)
}

// RotateKey asks the agent for a new WireGuard key.
func (c *Client) RotateKey(ctx context.Context, overlap time.Duration) (r RotateResult, err error) {
	return r, c.do(ctx, http.MethodPost, protocol.DebugRotateKey+"?overlap="+overlap.String(), &r)
}

func (c *Client) do(ctx context.Context, method, path string, v any) error {
	return c.send(ctx, method, path, nil, v)
}

func (c *Client) send(ctx context.Context, method, path string, body io.Reader, v any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nobody answers on %s; start it with 'causeway-agent run' or give its socket with --debug-socket", ErrNotRunning, c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("debug socket %s: permission denied; run as the agent's user or root", c.path)
	case err != nil:
		return fmt.Errorf("ask the agent on %s: %w", c.path, errnoOf(err))
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, protocol.MaxToAgent+2<<20))
	if err != nil {
		return fmt.Errorf("ask the agent on %s: %w", c.path, err)
	}
	if resp.StatusCode != http.StatusOK {
		var p protocol.DebugError
		if json.Unmarshal(b, &p) == nil && p.Error != "" {
			return errors.New(p.Error)
		}
		return fmt.Errorf("what answers on %s is no agent of this version: it answers %s %s with status %d and no reason", c.path, method, path, resp.StatusCode)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode the agent's answer to %s: %w", path, err)
	}
	return nil
}
