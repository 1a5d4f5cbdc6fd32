package tunnel

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"causeway/protocol"
)

// Nodes and hubs run as processes of their own, as in life: they live in
// network namespaces, and SIGKILL is what a crash is. A child is this test
// binary, told by its environment what to be.
const childEnv = "CAUSEWAY_TUNNEL_CHILD"

// nodePort is the nodes' UDP port, each in a namespace of its own.
const nodePort = 51821

func TestMain(m *testing.M) {
	if role := os.Getenv(childEnv); role != "" {
		if err := child(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// childConfig is what a child is told first, on one line.
type childConfig struct {
	Number  protocol.NodeNumber
	Key     [32]byte
	Engine  string
	Listen  netip.AddrPort // hub
	Overlay []netip.Addr   // hub
	State   childState
}

// childState is what it may be told again later.
type childState struct {
	Hubs  []NodeHub  // node
	Peers []NodePeer // node
	Nodes []HubNode  // hub
}

// childReport answers every line.
type childReport struct {
	Error     string
	Paths     []protocol.PathStatus
	HubBound  bool
	Restarted int // how often HubRestarted spoke
	Relay     RelayStats
	Bound     []netip.AddrPort
}

func child(role string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	if !in.Scan() {
		return in.Err()
	}
	var c childConfig
	if err := json.Unmarshal(in.Bytes(), &c); err != nil {
		return err
	}
	boot, err := protocol.NewBootID()
	if err != nil {
		return err
	}
	log := zerolog.New(os.Stderr).With().Timestamp().Str("role", role).Uint32("node", uint32(c.Number)).Logger().Level(zerolog.DebugLevel)
	run := map[string]func(context.Context, childConfig, protocol.BootID, zerolog.Logger) (func(context.Context) error, <-chan struct{}, func(*childState) childReport, error){
		"node": childNode, "hub": childHub}[role]
	work, ready, report, err := run(ctx, c, boot, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- work(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(childReport{}); err != nil {
		return err
	}
	lines := make(chan *childState)
	go func() {
		defer close(lines)
		for in.Scan() {
			var s *childState
			if json.Unmarshal(in.Bytes(), &s) == nil {
				lines <- s
			}
		}
	}()
	for {
		select {
		case s, ok := <-lines:
			if !ok {
				return nil // the test is gone
			}
			if err := out.Encode(report(s)); err != nil {
				return err
			}
		case err := <-done:
			return err
		}
	}
}

func childNode(ctx context.Context, c childConfig, boot protocol.BootID, log zerolog.Logger) (func(context.Context) error, <-chan struct{}, func(*childState) childReport, error) {
	// No routes with MTUs here: the device itself is what the underlay carries.
	n, err := NewNode(NodeConfig{Number: c.Number, PrivateKey: c.Key, BootID: boot, Interface: "cw0", MTU: 1408, ListenPort: nodePort, Engine: c.Engine, Log: log,
		Excluded: func(name string, _ netip.Addr) bool { return name == "cw0" || name == "lo" }})
	if err != nil {
		return nil, nil, nil, err
	}
	var own []netip.Prefix
	for _, r := range []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6} {
		a, err := c.Number.Overlay(r)
		if err != nil {
			return nil, nil, nil, err
		}
		own = append(own, netip.PrefixFrom(a, a.BitLen()))
	}
	n.SetLocal(append(own, netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", c.Number)), netip.MustParsePrefix(fmt.Sprintf("fd10:%d::/64", c.Number)))) // its pods
	set := func(s childState) error {
		if err := n.SetHubs(s.Hubs); err != nil {
			return err
		}
		return n.SetPeers(s.Peers)
	}
	if err := set(c.State); err != nil {
		return nil, nil, nil, err
	}
	var restarted atomic.Int64
	go func() {
		for range n.HubRestarted() {
			restarted.Add(1)
		}
	}()
	return n.Run, n.Ready(), func(s *childState) (r childReport) {
		if s != nil {
			if err := set(*s); err != nil {
				r.Error = err.Error()
			}
		}
		r.Paths, r.HubBound, r.Restarted = n.Paths(), n.HubBound(1), int(restarted.Load())
		return r
	}, nil
}

// childHub also answers TCP on the control port: with the caller's address,
// then with what it sends.
func childHub(ctx context.Context, c childConfig, boot protocol.BootID, log zerolog.Logger) (func(context.Context) error, <-chan struct{}, func(*childState) childReport, error) {
	h, err := NewHub(HubConfig{Number: c.Number, PrivateKey: c.Key, BootID: boot, Listen: c.Listen, Overlay: c.Overlay, Log: log})
	if err != nil {
		return nil, nil, nil, err
	}
	if err := h.SetNodes(c.State.Nodes); err != nil {
		return nil, nil, nil, err
	}
	go func() {
		select {
		case <-h.Ready():
		case <-ctx.Done():
			return
		}
		for _, a := range c.Overlay {
			l, err := h.Listen(netip.AddrPortFrom(a, protocol.ControlPort))
			if err != nil {
				log.Error().Err(err).Msg("listen")
				return
			}
			go serve(l)
		}
	}()
	return h.Run, h.Ready(), func(s *childState) (r childReport) {
		if s != nil {
			if err := h.SetNodes(s.Nodes); err != nil {
				r.Error = err.Error()
			}
		}
		r.Relay, r.Bound = h.RelayStats(), h.Bound(2)
		return r
	}, nil
}

// serve tells callers their address and echoes, until l is closed; then it
// waits for its connections to end.
func serve(l net.Listener) {
	var conns sync.WaitGroup
	defer conns.Wait()
	closed := make(chan struct{})
	defer close(closed)
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		conns.Go(func() {
			done := make(chan struct{})
			defer close(done)
			go func() {
				select {
				case <-closed:
				case <-done:
				}
				c.Close()
			}()
			fmt.Fprintln(c, c.RemoteAddr())
			io.Copy(c, c)
		})
	}
}

// process is a running child.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	enc  *json.Encoder
	dec  *json.Decoder
	once sync.Once
}

// startChild runs a child in the namespace of h and waits until it is ready.
func startChild(t *testing.T, h *host, role string, c childConfig) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command("/proc/self/exe")}
	p.cmd.Env = append(os.Environ(), childEnv+"="+role)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.CreateTemp(t.TempDir(), role)
	require.NoError(t, err)
	p.cmd.Stderr = log
	in, err := p.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	p.in, p.enc, p.dec = in, json.NewEncoder(in), json.NewDecoder(out)
	// The thread stays, as Pdeathsig goes by the thread that started the child.
	h.do(func() { err = p.cmd.Start() })
	require.NoError(t, err)
	t.Cleanup(func() {
		p.kill()
		log.Close()
		if t.Failed() {
			if b, err := os.ReadFile(log.Name()); err == nil {
				t.Logf("log of %s %d:\n%s", role, c.Number, tail(b, 8<<10))
			}
		}
	})
	require.NoError(t, p.enc.Encode(c))
	var r childReport
	if err := p.dec.Decode(&r); err != nil {
		b, _ := os.ReadFile(log.Name())
		require.FailNow(t, "child did not start", "%s: %v\n%s", role, err, b)
	}
	return p
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// kill is SIGKILL.
func (p *process) kill() {
	p.once.Do(func() {
		p.cmd.Process.Kill()
		p.in.Close()
		p.cmd.Wait()
	})
}

// terminate ends the child as systemd would and returns its error.
func (p *process) terminate() error {
	p.cmd.Process.Signal(syscall.SIGTERM)
	return p.wait()
}

// wait waits for the child to end and returns its error.
func (p *process) wait() (err error) {
	p.once.Do(func() {
		timer := time.AfterFunc(patience, func() { p.cmd.Process.Signal(syscall.SIGQUIT) }) // its goroutines go to the log
		defer timer.Stop()
		err = p.cmd.Wait()
		p.in.Close()
	})
	return err
}

// report asks the child, giving it a new state unless s is nil.
func (p *process) report(s *childState) (r childReport) {
	p.t.Helper()
	require.NoError(p.t, p.enc.Encode(s))
	require.NoError(p.t, p.dec.Decode(&r))
	return r
}
