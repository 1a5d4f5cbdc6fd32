package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// shared is what all tests of this process share: the binaries, and one world
// whose tests do not harm each other.
var shared struct {
	mu      sync.Mutex
	dir     string
	bin     Binaries
	binErr  error
	binDone bool
	atExit  []func()

	lab       *lab.Lab
	world     *World
	worldErr  error
	worldDone bool
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.lab != nil {
		prefix := shared.lab.Prefix()
		if err := shared.lab.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "close lab:", err)
			code = 1
		}
		if left := lab.Leftovers(prefix); len(left) > 0 {
			fmt.Fprintln(os.Stderr, "left behind:", left)
			code = 1
		}
	}
	if shared.dir != "" {
		os.RemoveAll(shared.dir)
	}
	for _, f := range shared.atExit {
		f()
	}
	os.Exit(code)
}

// atExit has f called when all tests have ended.
func atExit(f func()) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.atExit = append(shared.atExit, f)
}

// binaries builds the programs once.
func binaries(t *testing.T) Binaries {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if !shared.binDone {
		shared.binDone = true
		shared.dir, shared.binErr = os.MkdirTemp("", "causeway-e2e-")
		if shared.binErr == nil {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
			defer cancel()
			shared.bin, shared.binErr = Build(ctx, shared.dir)
		}
	}
	require.NoError(t, shared.binErr)
	return shared.bin
}

// Ranges that nodes of the shared world announce beside their pods, not
// approved at first.
const (
	lanB        = "192.168.2.0/24" // b1's LAN
	containersA = "10.1.201.0/24"  // a2's Podman network
	containersC = "10.3.201.0/24"  // c1's Podman network
)

// sharedWorld is one world for all tests that leave it as it was. All nodes
// are ready and all pods run the traffic server.
func sharedWorld(t *testing.T) *World {
	t.Helper()
	needRoot(t)
	bin := binaries(t)
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if !shared.worldDone {
		shared.worldDone = true
		shared.worldErr = func() (err error) {
			defer func() {
				if r := recover(); r != nil {
					err = fmt.Errorf("build the world: %v", r)
				}
			}()
			l, err := lab.Open(func(err error) { panic(err) }, t.Logf)
			if err != nil {
				return err
			}
			shared.lab = l
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			quiet := func(string) {}
			w, err := NewWorld(ctx, l, bin, quiet)
			if err != nil {
				return err
			}
			shared.world = w
			extra := map[string][]string{"b1": {lanB}, "a2": {containersA}, "c1": {containersC}}
			if err := w.JoinAll(ctx, extra, quiet); err != nil {
				return err
			}
			var fs []func() error
			for _, name := range w.PodNames() {
				fs = append(fs, func() error {
					_, err := w.Serve(ctx, w.Pods[name].Host)
					return err
				})
			}
			return lab.All(fs...)
		}()
		if shared.worldErr != nil && shared.lab != nil {
			t.Log(shared.lab.Report())
		}
	}
	if shared.worldErr != nil {
		t.Fatalf("the shared world: %v", shared.worldErr)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(shared.lab.Report())
		}
	})
	return shared.world
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root: makes network namespaces")
		}
		t.Skip("needs root: makes network namespaces")
	}
}

// step is a context for one step of a test.
func step(t *testing.T) context.Context {
	t.Helper()
	return within(t, stepTimeout)
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// smallNode is a node of newSmall.
type smallNode struct {
	*Node
	Host *lab.Host
	Pod  *Pod
	LAN  string    // its underlay address
	Inet *lab.Host // the switch
}

// newSmall is a system of a hub and hosts on one public network, without
// NAT. Host i (from 1) is 203.0.113.(20+i) with one pod 10.i.1.11,
// fd10:i:1::11. Nothing has joined; there is one site for each host, "s1" and so
// on.
func newSmall(t *testing.T, hosts int) (*System, []*smallNode) {
	t.Helper()
	l, hub, nodes := smallHosts(t, hosts)
	return startSmall(t, l, hub, nodes), nodes
}

// smallHosts are the hosts of newSmall, on one switch, of which the hub's is the first.
func smallHosts(t *testing.T, hosts int) (*lab.Lab, *lab.Host, []*smallNode) {
	t.Helper()
	needRoot(t)
	l := lab.New(t)
	inet := l.Switch("inet")
	hub := l.Host("hub").Link("eth0", inet, HubAddr+"/24")
	var out []*smallNode
	for i := 1; i <= hosts; i++ {
		n := &smallNode{Inet: inet, LAN: fmt.Sprintf("203.0.113.%d", 20+i)}
		n.Host = l.Host(fmt.Sprintf("n%d", i)).Link("eth0", inet, n.LAN+"/24")
		net := n.Host.PodNet("pods0", fmt.Sprintf("10.%d.1.1/24", i), fmt.Sprintf("fd10:%d:1::1/64", i))
		v4, v6 := fmt.Sprintf("10.%d.1.11", i), fmt.Sprintf("fd10:%d:1::11", i)
		n.Pod = &Pod{Host: net.Pod(fmt.Sprintf("p%d", i), v4+"/24", v6+"/64"), V4: v4, V6: v6}
		out = append(out, n)
	}
	return l, hub, out
}

// startSmall starts the hub of smallHosts, with further args, and makes the sites.
func startSmall(t *testing.T, l *lab.Lab, hub *lab.Host, nodes []*smallNode, args ...string) *System {
	t.Helper()
	s, err := NewSystem(step(t), l, binaries(t), hub, HubAddr, args...)
	require.NoError(t, err)
	for i, n := range nodes {
		require.NoError(t, n.Host.Settle(step(t)))
		require.NoError(t, s.CreateSite(step(t), fmt.Sprintf("s%d", i+1)))
	}
	return s
}

// joinSmall joins host i of newSmall as node ni with its pods' ranges
// approved.
func joinSmall(t *testing.T, s *System, nodes []*smallNode, i int, accept ...string) {
	t.Helper()
	spec := NodeSpec{
		Name: fmt.Sprintf("n%d", i), Site: fmt.Sprintf("s%d", i), Host: nodes[i-1].Host,
		TokenRoutes: PodRoutes(i, 1), Accept: accept,
	}
	n, err := s.Join(step(t), spec)
	require.NoError(t, err)
	nodes[i-1].Node = n
}

// requireOneLine checks that a program ended with one of the statuses for
// errors (1; 2 for the command line itself) and said why in one line.
func requireOneLine(t *testing.T, err error, want ...string) {
	t.Helper()
	r := failed(t, err)
	require.Contains(t, []int{1, 2}, exitCode(t, r), r)
	requireLine(t, r.Stderr, want...)
	require.Empty(t, r.Stdout)
}

func failed(t *testing.T, err error) *lab.RunError {
	t.Helper()
	var r *lab.RunError
	require.ErrorAs(t, err, &r)
	return r
}

// exitCode is a program's exit status, -1 if a signal ended it.
func exitCode(t *testing.T, r *lab.RunError) int {
	t.Helper()
	var exit interface{ ExitCode() int }
	require.True(t, errors.As(r.Err, &exit), r)
	return exit.ExitCode()
}

func requireLine(t *testing.T, text string, want ...string) {
	t.Helper()
	require.Regexp(t, `^[^\n]+\n$`, text, "one line")
	require.NotContains(t, text, "goroutine ")
	for _, w := range want {
		require.Contains(t, text, w)
	}
}
