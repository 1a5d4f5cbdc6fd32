package inventory

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"causeway/protocol"
)

// Docker and Podman serve the same HTTP API on a unix socket. It is spoken with net/http:
// a handful of fields of four answers, where the client libraries bring 17 to 27 MB.
// What answers runs as root as the agent does, yet a container chooses its names, labels
// and addresses: every answer is bounded and read as if it were hostile.

// Bounds of the API's answers.
const (
	maxAnswer     = 8 << 20
	maxEvent      = 256 << 10
	dockerTimeout = 10 * time.Second
)

// docker is one socket that speaks the Docker API.
type docker struct {
	kind   string // docker or podman, or what it says of itself
	socket string
	http   *http.Client
	// inspected are answers that hold for a container until its state is another one or
	// an event names it.
	inspected map[string]inspection
	version   string

	mu    sync.Mutex
	stale map[string]bool // named by events since; "" stands for all
}

type inspection struct {
	state string // as the list has it
	found found
}

func newDocker(kind, socket string) *docker {
	var d net.Dialer
	return &docker{kind: kind, socket: socket, inspected: map[string]inspection{}, http: &http.Client{Transport: &http.Transport{
		DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) },
		MaxIdleConns:          1,
		IdleConnTimeout:       30 * time.Second,
		ResponseHeaderTimeout: dockerTimeout,
	}}}
}

func (d *docker) name() string { return d.kind }

func (d *docker) there() bool {
	fi, err := os.Stat(d.socket)
	return err == nil && fi.Mode().Type() == os.ModeSocket
}

// get reads the JSON answer to a request into v.
func (d *docker) get(ctx context.Context, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, dockerTimeout)
	defer cancel()
	res, err := d.open(ctx, path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("ask %s: %w", d.kind, err)
	}
	if len(b) > maxAnswer {
		return fmt.Errorf("ask %s: its answer is longer than %d bytes", d.kind, maxAnswer)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("ask %s: its answer makes no sense", d.kind)
	}
	return nil
}

func (d *docker) open(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.kind+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := d.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("ask %s: %w", d.kind, err)
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		return nil, fmt.Errorf("ask %s: it answers with status %d", d.kind, res.StatusCode)
	}
	return res, nil
}

// dockerVersion is GET /version.
type dockerVersion struct{ Version string }

// dockerListed is an entry of GET /containers/json.
type dockerListed struct {
	ID     string `json:"Id"`
	Names  []string
	Image  string
	State  string
	Labels map[string]string
}

// dockerInspected is GET /containers/{id}/json.
type dockerInspected struct {
	State struct {
		Pid       int
		StartedAt time.Time
	}
	HostConfig struct {
		NanoCpus          int64 `json:"NanoCpus"`
		CPUQuota          int64 `json:"CpuQuota"`
		CPUPeriod         int64 `json:"CpuPeriod"`
		Memory            int64
		MemoryReservation int64
	}
	NetworkSettings struct {
		IPAddress string
		Networks  map[string]struct {
			IPAddress         string
			GlobalIPv6Address string
		}
	}
}

func (d *docker) list(ctx context.Context) (protocol.Runtime, []found, error) {
	info := protocol.Runtime{Kind: d.kind, Version: d.version, From: d.socket}
	d.mu.Lock()
	stale := d.stale
	d.stale = nil
	d.mu.Unlock()
	if stale[""] {
		clear(d.inspected)
	}
	for id := range stale {
		delete(d.inspected, id)
	}
	if d.version == "" {
		var v dockerVersion
		if err := d.get(ctx, "/version", &v); err != nil {
			return info, nil, err
		}
		d.version = protocol.OneLine(v.Version, 64)
		info.Version = d.version
	}
	var l []dockerListed
	if err := d.get(ctx, "/containers/json?all=true", &l); err != nil {
		d.version = "" // perhaps another one answers next
		return info, nil, err
	}
	out, kept := make([]found, 0, len(l)), make(map[string]inspection, len(l))
	for i, c := range l {
		if !plainID(c.ID) || i >= 2*protocol.MaxContainers {
			continue
		}
		in, ok := d.inspected[c.ID]
		if !ok || in.state != c.State {
			var x dockerInspected
			if err := d.get(ctx, "/containers/"+c.ID+"/json", &x); err != nil {
				if ctx.Err() != nil {
					return info, nil, err
				}
				continue // gone meanwhile
			}
			in = inspection{c.State, foundOf(d.kind, c, x)}
		}
		kept[c.ID] = in
		out = append(out, in.found)
	}
	d.inspected = kept
	return info, out, nil
}

// plainID reports whether s can be the id of a container: hex or a name, and nothing that
// means something in a path.
func plainID(s string) bool {
	return s != "" && len(s) <= 128 && strings.Trim(s, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-.") == "" && s[0] != '.'
}

func foundOf(kind string, c dockerListed, x dockerInspected) found {
	f := found{Container: protocol.Container{ID: c.ID, Runtime: kind, Image: c.Image, Labels: c.Labels, State: stateOf(c.State), Addresses: []netip.Addr{}}, sandbox: c.ID}
	if len(c.Names) > 0 {
		f.Name = strings.TrimPrefix(c.Names[0], "/")
	}
	if f.State == protocol.ContainerRunning && x.State.Pid > 0 {
		f.pid = x.State.Pid
	}
	if f.State == protocol.ContainerRunning && !x.State.StartedAt.IsZero() {
		t := x.State.StartedAt.UTC().Truncate(time.Second)
		f.Started = &t
	}
	h := x.HostConfig
	switch {
	case h.NanoCpus > 0:
		f.CPURequested = int(min(h.NanoCpus/1_000_000, 1<<30))
	case h.CPUQuota > 0 && h.CPUPeriod > 0:
		f.CPURequested = int(min(float64(h.CPUQuota)/float64(h.CPUPeriod)*1000, 1<<30))
	}
	if m := cmp.Or(h.MemoryReservation, h.Memory); m > 0 {
		f.MemoryRequested = uint64(m)
	}
	if f.State != protocol.ContainerRunning {
		return f
	}
	add := func(s string) {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			f.Addresses = append(f.Addresses, a.Unmap())
		}
	}
	add(x.NetworkSettings.IPAddress)
	for _, n := range x.NetworkSettings.Networks {
		add(n.IPAddress)
		add(n.GlobalIPv6Address)
	}
	f.Addresses = sortedAddrs(f.Addresses)
	return f
}

// stateOf is a runtime's word in the protocol's.
func stateOf(s string) protocol.ContainerState {
	switch s = strings.ToLower(s); s {
	case "stopped":
		return protocol.ContainerExited
	case "":
		return "unknown"
	}
	return protocol.ContainerState(s)
}

// dockerEvent is a line of GET /events.
type dockerEvent struct {
	Type   string
	Action string
	Status string // an older name of Action
	Actor  struct{ ID string }
}

// noted marks whose inspections hold no longer.
func (d *docker) noted(e dockerEvent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stale == nil {
		d.stale = map[string]bool{}
	}
	id := e.Actor.ID
	if e.Type == "network" || !plainID(id) || len(d.stale) > 2*protocol.MaxContainers {
		id = "" // a container joined or left it, which is told as the network's
	}
	d.stale[id] = true
}

func (e dockerEvent) matters() bool {
	a := cmp.Or(e.Action, e.Status)
	return !strings.HasPrefix(a, "exec_") && !strings.HasPrefix(a, "health_status") && a != "top" && a != "attach"
}

func (d *docker) watch(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	res, err := d.open(ctx, "/events?stream=true&filters="+url.QueryEscape(`{"type":["container","network"]}`))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	d.noted(dockerEvent{})
	changed() // from here on nothing is missed
	return readEvents(res.Body, func(e dockerEvent) {
		d.noted(e)
		changed()
	})
}

// readEvents hands over the events that matter, until r ends.
func readEvents(r io.Reader, event func(dockerEvent)) error {
	lim := &eventLimit{r: r}
	dec := json.NewDecoder(lim)
	for {
		lim.left = maxEvent
		var e dockerEvent
		if err := dec.Decode(&e); err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		if e.matters() {
			event(e)
		}
	}
}

// eventLimit bounds what is read for one event.
type eventLimit struct {
	r    io.Reader
	left int
}

func (l *eventLimit) Read(b []byte) (int, error) {
	if l.left <= 0 {
		return 0, errors.New("an event is too long")
	}
	n, err := l.r.Read(b[:min(len(b), l.left)])
	l.left -= n
	return n, err
}
