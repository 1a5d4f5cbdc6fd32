//go:build docker29

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// Networks of Docker on the host of TestDocker29Engine, beside its pods' own.
const (
	dockerBridge = "10.1.2.0/24" // the default one
	dockerUser4  = "10.1.3.0/24" // a user's network
	dockerUser6  = "fd10:1:3::/64"
)

// Bounds of what is watched after each step.
const (
	dockerNotice = 15 * time.Second // the agent may be content that long while containers are not reached
	dockerStands = 9 * time.Second  // a verdict counts when it stood for longer than the agent takes from trial to trial
)

// A real Docker Engine comes to a host with an agent: 29, and Debian's (20.10 in Debian 12), whose programs lie where
// CAUSEWAY_DOCKER29 and CAUSEWAY_DOCKER_DEBIAN say ('make docker29'). Its containers, on the default bridge and on a network of a user's, reach a pod
// of another site and are reached from there, with their own addresses, by IPv4 and IPv6; or the condition
// firewall says what mends it, and that does. So it is after each restart of containers, Docker and agent, and never
// is an agent content whose containers are not reached. What is published stays so, what is not stays closed
// to the LAN, and leaving takes all of it back.
func TestDocker29Engine(t *testing.T) {
	for _, c := range []dockerCase{
		{name: "29, iptables", tools: "CAUSEWAY_DOCKER29", backend: "iptables"},
		{name: "29, iptables-legacy", tools: "CAUSEWAY_DOCKER29", backend: "iptables", iptables: "/usr/sbin/iptables-legacy"},
		{name: "29, nftables", tools: "CAUSEWAY_DOCKER29", backend: "nftables"},
		{name: "Debian's", tools: "CAUSEWAY_DOCKER_DEBIAN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			lab.Counts(t)
			x := newDocker29(t, c)
			x.step("Docker started after the agent", x.begin)
			if c.backend == "nftables" {
				x.told()
				x.restarts(x.told)
				x.step("Docker restarted with what the condition says", func() { x.mend(x.cause) })
			}
			x.works()
			x.idle()
			x.restarts(x.works)
			x.bulk()
			x.leaves()
			t.Logf("Docker %s (%s): seconds until it was as it stayed\n%s", c.name, x.version(), x.table)
		})
	}
}

// dockerCase is a Docker.
type dockerCase struct {
	name     string
	tools    string // environment variable that names the directory of its programs
	backend  string // of its firewall, as daemon.json has it; empty: it knows none
	iptables string // the program that it takes for that; empty: the machine's
}

// docker29 is a host with an agent and a Docker, and a pod of another site.
type docker29 struct {
	*engine
	s     *System
	node  *smallNode
	other *Pod
	hub   *lab.Host // stands for the LAN

	what  string // the step under way
	cause string // of the condition firewall, when it was settled; empty: it holds
	table string
}

func newDocker29(t *testing.T, c dockerCase) *docker29 {
	t.Helper()
	s, nodes := newSmall(t, 2)
	n := nodes[0]
	settings := map[string]any{"bip": "10.1.2.1/24"}
	if c.backend != "" {
		settings["firewall-backend"] = c.backend
	}
	forward := 0 // as after a boot: who turns it on has the policy of FORWARD be drop
	if c.backend == "nftables" {
		forward = 1 // with it Docker leaves that to the host's owner
	}
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv6.conf.default.forwarding"} {
		n.Host.Sysctl(fmt.Sprintf("%s=%d", key, forward))
	}
	var err error
	n.Node, err = s.Join(step(t), NodeSpec{Name: "n1", Site: "s1", Host: n.Host, TokenRoutes: append(PodRoutes(1, 1), dockerBridge, dockerUser4, dockerUser6)})
	require.NoError(t, err)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	_, err = s.Serve(step(t), nodes[1].Pod.Host)
	require.NoError(t, err)
	s.Hub.Host.Route(dockerUser4, n.LAN)
	return &docker29{engine: newEngine(t, n.Host, c, settings), s: s, node: n, other: nodes[1].Pod, hub: s.Hub.Host}
}

// step does something; works or told then says what has to come of it.
func (x *docker29) step(what string, do func()) {
	x.t.Helper()
	x.what = what
	do()
}

// begin starts Docker and the containers.
func (x *docker29) begin() {
	x.start()
	x.load("tool", x.s.Bin.Labtool)
	x.api("POST", "/networks/create", map[string]any{"Name": "user", "EnableIPv6": true,
		"IPAM": map[string]any{"Config": []map[string]string{{"Subnet": dockerUser4}, {"Subnet": dockerUser6}}}}, nil)
	x.run("web", "bridge", "8081")
	x.run("first", "user", "")
	x.run("app", "user", "")
}

// restarts has all that may begin anew do so; after each it is as settled says.
func (x *docker29) restarts(settled func()) {
	x.t.Helper()
	agentBack := func() {
		require.NoError(x.t, x.node.Start())
		require.NoError(x.t, Wait(x.t, func() error { _, err := x.firewall(); return err }))
	}
	for _, c := range []struct {
		what string
		do   func()
	}{
		{"containers restarted", func() {
			for _, name := range x.names {
				x.api("POST", "/containers/"+name+"/restart?t=0", nil, nil)
			}
		}},
		{"containers made anew, in the other order", func() {
			anew := slices.Clone(x.names[1:])
			x.names = x.names[:1]
			for _, name := range anew {
				x.api("DELETE", "/containers/"+name+"?force=1", nil, nil)
			}
			x.run(anew[1], "user", "")
			x.run(anew[0], "user", "")
		}},
		{"Docker restarted", func() {
			require.NoError(x.t, x.daemon.Stop(step(x.t)))
			x.start()
		}},
		{"Docker killed and started", func() {
			x.daemon.Kill()
			x.start()
		}},
		{"agent restarted", func() {
			require.NoError(x.t, x.node.Proc.Stop(step(x.t)))
			agentBack()
		}},
		{"agent killed, Docker restarted, agent started", func() {
			x.node.Proc.Kill()
			require.NoError(x.t, x.daemon.Stop(step(x.t)))
			x.start()
			agentBack()
		}},
	} {
		x.step(c.what, c.do)
		settled()
	}
}

// idle has no container run for a time: that is nothing to complain of.
func (x *docker29) idle() {
	x.t.Helper()
	for _, name := range x.names {
		x.api("POST", "/containers/"+name+"/stop?t=0", nil, nil)
	}
	begin := time.Now()
	since := begin // when the condition was false last
	require.NoError(x.t, lab.Wait(step(x.t), "the agent to be content", func(context.Context) error {
		cause, err := x.firewall()
		if cause != "" {
			since, err = time.Now(), errors.New(cause)
		} else if err == nil && time.Since(since) < dockerStands {
			err = errors.New("not long enough")
		}
		return err
	}), "no container runs")
	x.table += fmt.Sprintf("| no container runs | %.1f | the condition holds |\n", since.Sub(begin).Seconds())
	x.step("containers started", func() {
		for _, name := range x.names {
			x.api("POST", "/containers/"+name+"/start", nil, nil)
		}
	})
	x.works()
}

// works waits until all ways between containers and the pod of the other site work, and the agent and the hub say so.
func (x *docker29) works() {
	x.t.Helper()
	x.settle()
	require.Empty(x.t, x.cause, "%s: all ways shall work", x.what)
	require.NoError(x.t, x.s.WaitReady(step(x.t), "n1"))
	x.protected()
}

// told waits until the condition firewall, and the hub, say how Docker is to be mended.
func (x *docker29) told() {
	x.t.Helper()
	x.settle()
	require.Contains(x.t, x.cause, protocol.DockerMend(), x.what)
	require.NoError(x.t, Wait(x.t, func() error {
		list, err := x.s.Nodes(step(x.t))
		if err == nil && !strings.Contains(strings.Join(list["n1"].Reasons, " "), protocol.DockerMend()) {
			err = fmt.Errorf("the hub says of n1: %v", list["n1"].Reasons)
		}
		return err
	}))
	x.protected()
}

// settle watches ways and condition together until either all ways work and the condition holds, or
// some do not and it does not hold, and that has stood. An agent that is content longer than
// dockerNotice while a way is dead fails the test.
func (x *docker29) settle() {
	x.t.Helper()
	begin := time.Now()
	since, last := begin, "?"
	for tick := time.NewTicker(time.Second); ; <-tick.C {
		dead := x.dead()
		cause, err := x.firewall()
		require.NoError(x.t, err)
		state, settled := "works", true
		switch {
		case dead != nil && cause == "":
			state, settled = "green and dead", false
		case dead == nil && cause != "":
			state, settled = "works, but the condition says "+cause, false
		case dead != nil:
			state = "dead, and said: " + cause
		}
		now := time.Now()
		if state != last {
			x.t.Logf("%s: after %.1f s: %s (%d ways dead)", x.what, now.Sub(begin).Seconds(), state, len(dead))
			since, last = now, state
		}
		switch stood := now.Sub(since); {
		case settled && stood > dockerStands:
			verdict := "both ways"
			if x.cause = cause; cause != "" {
				verdict = "condition false, with the mend"
			}
			x.table += fmt.Sprintf("| %s | %.1f | %s |\n", x.what, since.Sub(begin).Seconds(), verdict)
			return
		case state == "green and dead" && stood > dockerNotice:
			x.t.Fatalf("%s: green and dead for %.1f s: %v\n%s", x.what, stood.Seconds(), errors.Join(dead...), x.host.Sh("nft list ruleset"))
		case now.Sub(begin) > stepTimeout:
			x.t.Fatalf("%s: not settled: %s\n%v", x.what, state, errors.Join(dead...))
		}
	}
}

// firewall is the agent's condition of that name: its cause, empty if it holds.
func (x *docker29) firewall() (string, error) {
	var h struct{ Conditions []protocol.Condition }
	if err := x.node.ask(step(x.t), "/v1/health", &h); err != nil {
		return "", err
	}
	for _, c := range h.Conditions {
		if c.Name == "firewall" && c.OK {
			return "", nil
		} else if c.Name == "firewall" {
			return c.Cause, nil
		}
	}
	return "", errors.New("no condition firewall")
}

// dead are the ways that do not work: TCP from and to each container, by each of its addresses,
// and whoever answers sees the other's own.
func (x *docker29) dead() []error {
	var ways []func() error
	for _, name := range x.names {
		c := x.inspect(name)
		for _, n := range c.NetworkSettings.Networks {
			for _, a := range [][2]string{{n.IPAddress, x.other.V4}, {n.GlobalIPv6Address, x.other.V6}} {
				if a[0] == "" {
					continue
				}
				ways = append(ways, func() error { return x.hello(x.other.Host, nil, a[0], "7080", a[1]) },
					func() error { return x.hello(x.host, c.inside(), a[1], "7080", a[0]) })
			}
		}
	}
	if want := 2 + 4*len(x.names[1:]); len(ways) != want { // the first container is on the default bridge, without IPv6
		return []error{fmt.Errorf("%d ways, not %d: a container has no address", len(ways), want)}
	}
	errs := make([]error, len(ways))
	var fs []func() error
	for i, way := range ways {
		fs = append(fs, func() error { errs[i] = way(); return nil })
	}
	lab.All(fs...)
	var out []error
	for _, err := range errs {
		if err != nil {
			out = append(out, err)
		}
	}
	return out
}

// hello asks a traffic server, which has to see this source; empty: any.
func (x *docker29) hello(from *lab.Host, wrap []string, addr, port, source string) error {
	args := append(wrap, "timeout", "2", x.s.Bin.Labtool, "http", "http://"+net.JoinHostPort(addr, port)+"/")
	out, err := from.Run(step(x.t), args...)
	if err == nil && !strings.Contains(out, "hello "+source) {
		err = errors.New(out)
	}
	if err != nil {
		return fmt.Errorf("%s to %s: %w", source, addr, err)
	}
	return nil
}

// protected checks that the LAN reaches what is published, and nothing that is not.
func (x *docker29) protected() {
	x.t.Helper()
	require.NoError(x.t, x.hello(x.hub, nil, x.node.LAN, "8081", ""), "%s: published", x.what)
	for _, n := range x.inspect("app").NetworkSettings.Networks {
		require.Error(x.t, x.hello(x.hub, nil, n.IPAddress, "7080", ""), "%s: not published", x.what)
	}
}

// bulk sends as much as shows that large packets pass, both ways.
func (x *docker29) bulk() {
	x.t.Helper()
	for _, name := range x.names {
		c := x.inspect(name)
		for _, n := range c.NetworkSettings.Networks {
			_, err := x.s.Send(step(x.t), "tcp", x.other.Host, n.IPAddress, 20e6)
			require.NoError(x.t, err)
			_, err = x.host.Run(step(x.t), append(c.inside(), x.s.Bin.Labtool, "tcp", x.other.V4, "-bytes", "20000000")...)
			require.NoError(x.t, err)
		}
	}
}

// mend does with Docker's configuration what the condition says.
func (x *docker29) mend(cause string) {
	x.t.Helper()
	_, rest, _ := strings.Cut(cause, ": add ")
	settings, rest, ok := strings.Cut(rest, " to /etc/docker/daemon.json and run 'systemctl restart docker'")
	require.True(x.t, ok, cause)
	require.Empty(x.t, rest)
	require.NoError(x.t, json.Unmarshal([]byte("{"+settings+"}"), &x.config), cause)
	require.NoError(x.t, x.daemon.Stop(step(x.t)))
	x.start()
}

// leaves has the agent leave: nothing of it is in Docker's tables, nor in tables of its own.
func (x *docker29) leaves() {
	x.t.Helper()
	rules := func() string {
		return x.host.Sh("nft list ruleset; for p in iptables ip6tables; do $p-legacy-save 2>/dev/null || :; done")
	}
	require.Contains(x.t, rules(), "cw0")
	require.NoError(x.t, x.node.Leave(step(x.t)))
	for l := range strings.Lines(rules()) {
		require.NotContains(x.t, l, "cw0")
		require.NotContains(x.t, l, ruleComment)
	}
	x.what = "left"
	x.protected()
	require.NotEmpty(x.t, x.dead())
}

// ruleComment is in each rule, and in the name of each table, of an agent's.
const ruleComment = "causeway"

// engine is a real Docker Engine on a lab's host, with mounts of its own. It is asked by its API.
type engine struct {
	t      *testing.T
	host   *lab.Host
	dir    string         // socket, configuration and state
	path   string         // where it looks for programs
	mounts *lab.Process   // holds the mounts
	daemon *lab.Process   // dockerd
	config map[string]any // daemon.json
	names  []string       // of containers
	tool   string         // what runs in containers
}

// newEngine makes a Docker that is not started.
func newEngine(t *testing.T, h *lab.Host, c dockerCase, settings map[string]any) *engine {
	t.Helper()
	tools := os.Getenv(c.tools)
	require.FileExists(t, filepath.Join(tools, "dockerd"), "%s names the directory of Docker's programs: make docker29", c.tools)
	e := &engine{t: t, host: h, dir: filepath.Join(h.Dir(), "docker"), path: tools + ":" + os.Getenv("PATH"), config: settings}
	bin := filepath.Join(e.dir, "bin")
	require.NoError(t, os.MkdirAll(bin, 0o755))
	if c.iptables != "" {
		require.NoError(t, os.Symlink(c.iptables, filepath.Join(bin, "iptables")))
		require.NoError(t, os.Symlink(strings.Replace(c.iptables, "iptables", "ip6tables", 1), filepath.Join(bin, "ip6tables")))
		e.path = bin + ":" + e.path
	}
	var err error
	// Sockets of containers' shims lie in /run, wherever Docker's own state is.
	e.mounts, err = h.Start(lab.Program{Name: "docker-mounts", Args: []string{"unshare", "-m", "--propagation", "private",
		"sh", "-ec", "mount -t tmpfs tmpfs /run; mkdir /run/lock; echo ready; exec sleep infinity"}})
	require.NoError(t, err)
	require.NoError(t, e.mounts.WaitOutput(step(t), "\nready\n"))
	// containerd is a service of its own, as Docker's and Debian's packages have it: dockerd finds its socket.
	file := filepath.Join(e.dir, "containerd.toml")
	require.NoError(t, os.WriteFile(file, []byte("version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"), 0o644))
	containerd, err := h.Start(lab.Program{Name: "containerd", Env: []string{"PATH=" + e.path}, Args: e.in("containerd", "--config", file,
		"--root", filepath.Join(e.dir, "containerd"), "--state", "/run/containerd", "--address", containerdSocket)})
	require.NoError(t, err)
	require.NoError(t, lab.Wait(step(t), "containerd", func(context.Context) error {
		if !containerd.Running() {
			return lab.Permanent(errors.New(containerd.Output()))
		}
		_, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", e.mounts.PID(), containerdSocket))
		return err
	}))
	t.Cleanup(func() { // before the lab's own: containers are no processes of it
		if e.daemon == nil || !e.daemon.Running() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
		defer cancel()
		for _, name := range e.names {
			if err := e.ask(ctx, "DELETE", "/containers/"+name+"?force=1", nil, nil); err != nil {
				t.Log(err)
			}
		}
		if err := e.daemon.Stop(ctx); err != nil {
			t.Log(err)
		}
	})
	return e
}

// containerdSocket is where dockerd looks for a containerd that runs.
const containerdSocket = "/run/containerd/containerd.sock"

// in is a command that sees the engine's mounts.
func (e *engine) in(args ...string) []string {
	return append([]string{"nsenter", "-m", "-t", strconv.Itoa(e.mounts.PID())}, args...)
}

// start starts dockerd and waits until it answers and its containers run.
func (e *engine) start() {
	e.t.Helper()
	b, err := json.Marshal(e.config)
	require.NoError(e.t, err)
	file := filepath.Join(e.dir, "daemon.json")
	require.NoError(e.t, os.WriteFile(file, b, 0o644))
	at := func(name string) string { return filepath.Join(e.dir, name) }
	e.daemon, err = e.host.Start(lab.Program{Name: "dockerd", Env: []string{"PATH=" + e.path}, Args: e.in("dockerd",
		"--config-file", file, "-H", "unix://"+at("docker.sock"), "--data-root", at("data"), "--exec-root", at("exec"), "--pidfile", at("dockerd.pid"),
		// What a machine without systemd and CAP_SYS_RESOURCE needs.
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", e.host.Namespace(),
		"--default-ulimit", "nofile=1024:1024", "--default-ulimit", "nproc=4096:4096", "--shutdown-timeout", "1")})
	require.NoError(e.t, err)
	require.NoError(e.t, lab.Wait(step(e.t), "Docker", func(ctx context.Context) error {
		if !e.daemon.Running() {
			return lab.Permanent(errors.New(e.daemon.Output()))
		}
		if err := e.ask(ctx, "GET", "/info", nil, nil); err != nil {
			return err
		}
		for _, name := range e.names {
			if c := e.inspect(name); !c.State.Running {
				return fmt.Errorf("container %s is %s", name, c.State.Status)
			}
		}
		return nil
	}))
}

// load makes an image of one program. Its path in there is that below the lab's directory, so
// that a container's processes are known as the lab's.
func (e *engine) load(image, program string) {
	e.t.Helper()
	e.tool = filepath.Join(e.dir, "bin", filepath.Base(program))
	out, err := exec.Command("cp", program, e.tool).CombinedOutput()
	require.NoError(e.t, err, string(out))
	tar, err := exec.Command("tar", "-C", "/", "-c", strings.TrimPrefix(e.tool, "/")).Output()
	require.NoError(e.t, err)
	e.api("POST", "/images/create?fromSrc=-&repo="+image, bytes.NewReader(tar), nil)
}

// run starts a container of image tool that serves traffic, in a network; port is the host's that is published, if any.
func (e *engine) run(name, network, port string) {
	e.t.Helper()
	host := map[string]any{"NetworkMode": network, "RestartPolicy": map[string]any{"Name": "always"},
		"SecurityOpt": []string{"seccomp=unconfined"}} // the runc of the tools has no seccomp
	if port != "" {
		host["PortBindings"] = map[string]any{"7080/tcp": []map[string]string{{"HostPort": port}}}
	}
	e.api("POST", "/containers/create?name="+name, map[string]any{"Image": "tool", "Cmd": []string{e.tool, "serve"},
		"ExposedPorts": map[string]any{"7080/tcp": struct{}{}}, "HostConfig": host}, nil)
	e.names = append(e.names, name)
	e.api("POST", "/containers/"+name+"/start", nil, nil)
}

// container is what Docker says of one.
type container struct {
	State struct {
		Status  string
		Running bool
		Pid     int
	}
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress, GlobalIPv6Address string }
	}
}

func (e *engine) inspect(name string) (c container) {
	e.t.Helper()
	e.api("GET", "/containers/"+name+"/json", nil, &c)
	return c
}

// inside begins a command that runs in the container's network.
func (c container) inside() []string {
	return []string{"nsenter", "-n", "-t", strconv.Itoa(c.State.Pid)}
}

// version is that of the Engine.
func (e *engine) version() string {
	var v struct{ Version, ApiVersion string }
	e.api("GET", "/version", nil, &v)
	return v.Version + ", API " + v.ApiVersion
}

// api is ask where no error is expected.
func (e *engine) api(method, path string, in, out any) {
	e.t.Helper()
	require.NoError(e.t, e.ask(step(e.t), method, path, in, out))
}

// ask asks Docker's API: in is sent as JSON, or as it is if it is a reader; out, if there is one, is read as JSON.
func (e *engine) ask(ctx context.Context, method, path string, in, out any) error {
	body, isRaw := in.(io.Reader)
	kind := "application/x-tar"
	if !isRaw && in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body, kind = bytes.NewReader(b), "application/json"
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", kind)
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(e.dir, "docker.sock"))
	}}}
	r, err := c.Do(req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && (r.StatusCode >= 400 || isRaw && bytes.Contains(b, []byte(`"error"`))) {
		err = errors.New(r.Status)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", method, path, err, b)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}
