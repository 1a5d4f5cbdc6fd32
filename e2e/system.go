package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"causeway/hub/api"
	"causeway/netns/lab"
	"causeway/protocol"
)

// System is one hub with its sites and nodes.
type System struct {
	Lab *lab.Lab
	Bin Binaries
	Hub *Hub
	// HubBefore says that the hub is of the version before, which tells of no connections
	// but shows a node's state at once.
	HubBefore bool

	mu    sync.Mutex
	nodes map[string]*Node
}

// Hub is the hub's host and process. It runs as an ordinary user without
// capabilities.
type Hub struct {
	Host   *lab.Host
	Dir    string   // its data directory
	Socket string   // of the admin API
	Public string   // its public host
	Args   []string // of 'run', besides those that every hub gets
	Env    []string
	Limit  string   // of prlimit(1), such as nofile=1024; empty: the machine's
	Wrap   []string // a command before the hub's own
	Proc   *lab.Process
	bin    string
}

// Node is a host with an agent.
type Node struct {
	Name, Site string
	Host       *lab.Host
	StateDir   string
	Socket     string // of the debug endpoints
	Config     string
	Engine     string // of the tunnel; empty: the agent's default
	Queues     int    // of the TUN device; 0: the agent's default
	Run        string // the agent's own /run, with wg's socket; empty: the machine's, without
	Proxy      string // of the config
	Podman     string // socket that the agent asks for containers; empty: it looks for no runtime
	Debug      string // keys of the config's debug section
	Resolv     string // the agent's own /etc/resolv.conf; empty: the machine's
	Shields    string // keys of the config's shields section
	Env        []string
	Wrap       []string // a command before the agent's own
	Proc       *lab.Process
	bin        string
}

// NodeSpec says what Join makes.
type NodeSpec struct {
	Name, Site  string
	Host        *lab.Host
	TokenRoutes []string // announced and approved by the token
	Routes      []string // announced by the config, to be approved
	Accept      []string // of the config; nil: the default
	Engine      string   // of the tunnel; empty: the agent's default
	Queues      int      // of the TUN device; 0: the agent's default
	Run         string   // the agent's own /run, where wg shows its tunnel; empty: the machine's, and wg shows nothing
	Proxy       string   // of the config; empty: none
	Podman      string   // socket that the agent asks for containers; empty: it looks for no runtime
	Debug       string   // keys of the config's debug section, such as "allow: [logs]"
	Shields     string   // keys of the config's shields section, such as "state: down"
	Env         []string // of join and agent
}

// NewSystem prepares a hub on host, reachable at public, and starts it; args
// are further ones of 'causeway-hub run'.
func NewSystem(ctx context.Context, l *lab.Lab, bin Binaries, host *lab.Host, public string, args ...string) (*System, error) {
	s, err := PrepareSystem(l, bin, host, public, args...)
	if err != nil {
		return nil, err
	}
	return s, s.StartHub(ctx)
}

// PrepareSystem is NewSystem without the start. The hub's data directory is not
// there yet, its parent is.
func PrepareSystem(l *lab.Lab, bin Binaries, host *lab.Host, public string, args ...string) (*System, error) {
	// Ports below 1024 for the hub's user.
	host.Sysctl("net.ipv4.ip_unprivileged_port_start=0")
	dir := filepath.Join(host.Dir(), "hub")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make hub directory: %w", err)
	}
	if err := os.Chown(dir, int(lab.Nobody.UID), int(lab.Nobody.GID)); err != nil {
		return nil, fmt.Errorf("make hub directory: %w", err)
	}
	return &System{Lab: l, Bin: bin, nodes: map[string]*Node{}, Hub: &Hub{
		Host: host, Dir: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "admin.sock"), Public: public, Args: args, bin: bin.Hub,
	}}, nil
}

// StartHub starts the hub's process and waits until it answers.
func (s *System) StartHub(ctx context.Context) error {
	h := s.Hub
	args := append([]string{h.bin, "run", "--data-dir", h.Dir, "--public-host", h.Public, "--admin-socket", h.Socket}, h.Args...)
	if h.Limit != "" {
		args = append([]string{"prlimit", "--" + h.Limit}, args...)
	}
	args = append(slices.Clone(h.Wrap), args...)
	p, err := h.Host.Start(lab.Program{Name: "hub", User: lab.Nobody, Dir: "/", Env: h.Env, Args: args})
	if err != nil {
		return err
	}
	h.Proc = p
	return lab.Wait(ctx, "the hub", func(ctx context.Context) error {
		if !p.Running() {
			return lab.Permanent(fmt.Errorf("the hub ended:\n%s", p.Output()))
		}
		var st api.Status
		return s.Ask(ctx, &st, "status")
	})
}

// CLI runs the admin CLI on the hub's host.
func (s *System) CLI(ctx context.Context, args ...string) (string, error) {
	return s.Hub.Host.Run(ctx, append([]string{s.Bin.CLI, "--socket", s.Hub.Socket}, args...)...)
}

// Ask runs the admin CLI with JSON output and reads the answer into v.
func (s *System) Ask(ctx context.Context, v any, args ...string) error {
	out, err := s.CLI(ctx, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("read answer of causeway %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// CreateSite makes a site.
func (s *System) CreateSite(ctx context.Context, name string, ranges ...string) error {
	args := []string{"site", "create", name}
	for _, r := range ranges {
		args = append(args, "--range", r)
	}
	_, err := s.CLI(ctx, args...)
	return err
}

// Token makes a join token and returns its text.
func (s *System) Token(ctx context.Context, site string, args ...string) (string, error) {
	var t api.TokenCreated
	err := s.Ask(ctx, &t, append([]string{"token", "create", "--site", site}, args...)...)
	if err == nil && t.Text == "" {
		err = errors.New("token create printed no token")
	}
	return t.Text, err
}

// Prepare makes a node's directories and config; nothing has joined yet.
func (s *System) Prepare(spec NodeSpec) (*Node, error) {
	dir := filepath.Join(spec.Host.Dir(), "agent-"+spec.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make agent directory: %w", err)
	}
	n := &Node{
		Name: spec.Name, Site: spec.Site, Host: spec.Host, Engine: spec.Engine, Queues: spec.Queues, Run: spec.Run, Proxy: spec.Proxy, Podman: spec.Podman, Debug: spec.Debug, Shields: spec.Shields, Env: spec.Env, bin: s.Bin.Agent,
		StateDir: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "debug.sock"), Config: filepath.Join(dir, "agent.yaml"),
	}
	if err := n.Configure(spec.Routes, spec.Accept); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[spec.Name] = n
	return n, nil
}

// Configure writes the agent's config, read at its next start.
func (n *Node) Configure(routes, accept []string) error {
	var b strings.Builder
	list := func(key string, l []string) {
		if l == nil {
			return
		}
		fmt.Fprintf(&b, "%s:\n", key)
		for _, x := range l {
			fmt.Fprintf(&b, "  - %q\n", x)
		}
	}
	list("routes", routes)
	list("accept", accept)
	var tunnel []string
	if n.Engine != "" {
		tunnel = append(tunnel, "engine: "+n.Engine)
	}
	if n.Queues > 0 {
		tunnel = append(tunnel, fmt.Sprintf("queues: %d", n.Queues))
	}
	if n.Run != "" {
		tunnel = append(tunnel, "uapi: true")
	}
	if tunnel != nil {
		fmt.Fprintf(&b, "tunnel: {%s}\n", strings.Join(tunnel, ", "))
	}
	if n.Proxy != "" {
		fmt.Fprintf(&b, "proxy: %q\n", n.Proxy)
	}
	if n.Debug != "" {
		fmt.Fprintf(&b, "debug: {%s}\n", n.Debug)
	}
	if n.Shields != "" {
		fmt.Fprintf(&b, "shields: {%s}\n", n.Shields)
	}
	// The machine's own runtimes are no business of the lab's hosts.
	fmt.Fprintf(&b, "inventory: {docker: '', podman: %q, containerd: '', cni: ''}\n", n.Podman)
	if err := os.WriteFile(n.Config, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	return nil
}

// Join makes a token, redeems it on the node's host and starts the agent.
func (s *System) Join(ctx context.Context, spec NodeSpec) (*Node, error) {
	n, err := s.Enroll(ctx, spec)
	if err != nil {
		return nil, err
	}
	return n, n.Start()
}

// Enroll makes a token and redeems it on the node's host.
func (s *System) Enroll(ctx context.Context, spec NodeSpec) (*Node, error) {
	n, err := s.Prepare(spec)
	if err != nil {
		return nil, err
	}
	var args []string
	for _, r := range spec.TokenRoutes {
		args = append(args, "--route", r)
	}
	token, err := s.Token(ctx, spec.Site, args...)
	if err != nil {
		return nil, err
	}
	if _, err := n.Redeem(ctx, token); err != nil {
		return nil, err
	}
	return n, nil
}

// Redeem runs 'causeway-agent join'.
func (n *Node) Redeem(ctx context.Context, token string, args ...string) (string, error) {
	env := append([]string{"env"}, n.Env...)
	return n.Host.Run(ctx, append(append(env, n.bin, "join", token, "--config", n.Config, "--state-dir", n.StateDir, "--name", n.Name), args...)...)
}

// Start starts the agent.
func (n *Node) Start() error {
	args := []string{n.bin, "run", "--config", n.Config, "--state-dir", n.StateDir, "--debug-socket", n.Socket}
	if n.Run != "" {
		args = withRun(n.Run, args...)
	}
	args = append(slices.Clone(n.Wrap), args...)
	if n.Resolv != "" {
		args = append([]string{"unshare", "-m", "sh", "-ec", `mount --bind "$0" /etc/resolv.conf; exec "$@"`, n.Resolv}, args...)
	}
	p, err := n.Host.Start(lab.Program{Name: "agent-" + n.Name, Dir: "/", Env: n.Env, Args: args})
	n.Proc = p
	return err
}

// withRun is a command line with dir as /run, in a mount namespace of its own.
// wg(8) finds a device there by its name alone, in whatever namespace it is.
func withRun(dir string, args ...string) []string {
	return append([]string{"unshare", "-m", "sh", "-ec", `mount --bind "$0" /run; exec "$@"`, dir}, args...)
}

// Exchange ends the agent and starts another program in its place, as an upgrade does.
func (n *Node) Exchange(ctx context.Context, bin string) error {
	if err := n.Proc.Stop(ctx); err != nil {
		return err
	}
	n.bin = bin
	return n.Start()
}

// ExchangeHub is Exchange for the hub.
func (s *System) ExchangeHub(ctx context.Context, bin string) error {
	if err := s.Hub.Proc.Stop(ctx); err != nil {
		return err
	}
	s.Hub.bin = bin
	return s.StartHub(ctx)
}

// Leave runs 'causeway-agent leave' and waits for the agent, if it runs, to
// end by that.
func (n *Node) Leave(ctx context.Context) error {
	if _, err := n.Host.Run(ctx, n.bin, "leave", "--state-dir", n.StateDir, "--debug-socket", n.Socket); err != nil {
		return err
	}
	if n.Proc == nil {
		return nil
	}
	if err := n.Proc.Wait(ctx); err != nil && n.Proc.Running() {
		return err
	}
	return nil
}

// Agent runs one of the agent's commands that read its debug socket.
func (n *Node) Agent(ctx context.Context, args ...string) (string, error) {
	return n.Host.Run(ctx, append(append([]string{n.bin}, args...), "--debug-socket", n.Socket)...)
}

// Node is a node that was prepared.
func (s *System) Node(name string) *Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[name]
}

// Nodes asks the hub for its nodes.
func (s *System) Nodes(ctx context.Context) (map[string]api.Node, error) {
	var list []api.Node
	if err := s.Ask(ctx, &list, "node", "list"); err != nil {
		return nil, err
	}
	out := map[string]api.Node{}
	for _, n := range list {
		out[n.Name] = n
	}
	return out, nil
}

// WaitReady waits until the hub says that these nodes are ready and their
// netmaps are acknowledged.
func (s *System) WaitReady(ctx context.Context, names ...string) error {
	return lab.Wait(ctx, "nodes to be ready", func(ctx context.Context) error {
		for _, name := range names {
			if n := s.Node(name); n != nil && n.Proc != nil && !n.Proc.Running() {
				return lab.Permanent(fmt.Errorf("agent %s ended:\n%s", name, n.Proc.Output()))
			}
		}
		nodes, err := s.Nodes(ctx)
		if err != nil {
			return err
		}
		for _, name := range names {
			n, ok := nodes[name]
			if !ok {
				return fmt.Errorf("the hub knows no node %s", name)
			}
			if n.State != api.NodeReady {
				return fmt.Errorf("node %s is %s: %s", name, n.State, strings.Join(n.Reasons, "; "))
			}
			if n.Connected.IsZero() && !s.HubBefore { // a state is shown on for some seconds
				return fmt.Errorf("node %s is not connected", name)
			}
			if n.Netmap.Version == 0 {
				return fmt.Errorf("node %s has acknowledged no netmap", name)
			}
		}
		return nil
	})
}

// Approve approves a route of a node, waiting until the hub has heard of it.
func (s *System) Approve(ctx context.Context, node, cidr string) error {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return err
	}
	if err := s.WaitRoute(ctx, node, p); err != nil {
		return err
	}
	_, err = s.CLI(ctx, "route", "approve", node, cidr)
	return err
}

// WaitRoute waits until the hub lists a route of a node.
func (s *System) WaitRoute(ctx context.Context, node string, p netip.Prefix) error {
	return lab.Wait(ctx, fmt.Sprintf("route %s of %s at the hub", p, node), func(ctx context.Context) error {
		var rs []api.Route
		if err := s.Ask(ctx, &rs, "route", "list"); err != nil {
			return err
		}
		if !slices.ContainsFunc(rs, func(r api.Route) bool { return r.Node == node && r.Prefix == p }) {
			return errors.New("not listed")
		}
		return nil
	})
}

// WaitPath waits until a node reaches another by a kind of path; there must be
// traffic, for idle peers are not probed.
func (s *System) WaitPath(ctx context.Context, from, to string, kind protocol.PathKind) error {
	return lab.Wait(ctx, fmt.Sprintf("a %s path from %s to %s", kind, from, to), func(ctx context.Context) error {
		out, err := s.Node(from).Agent(ctx, "paths", "-o", "json")
		if err != nil {
			return err
		}
		var ps []protocol.PathStatus
		if err := json.Unmarshal([]byte(out), &ps); err != nil {
			return fmt.Errorf("read paths: %w\n%s", err, out)
		}
		for _, p := range ps {
			if p.Name == to {
				if p.Path == kind {
					return nil
				}
				return fmt.Errorf("it is %s", p.Path)
			}
		}
		return fmt.Errorf("%s knows no path to %s", from, to)
	})
}

// Installed waits until a node's kernel has a route into the tunnel.
func (n *Node) Installed(ctx context.Context, prefix string) error {
	return lab.Wait(ctx, fmt.Sprintf("route %s on %s", prefix, n.Name), func(ctx context.Context) error {
		f := "-4"
		if strings.Contains(prefix, ":") {
			f = "-6"
		}
		out, err := n.Host.Run(ctx, "ip", f, "route", "show", "table", "51806", prefix)
		if err == nil && !strings.Contains(out, "dev cw0") {
			err = errors.New("not installed")
		}
		return err
	})
}

// Timeouts of whole steps; each is far above what the step takes.
const (
	stepTimeout = 60 * time.Second
)

// Step gives a step of a test or demo its time.
func Step(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, stepTimeout)
}
