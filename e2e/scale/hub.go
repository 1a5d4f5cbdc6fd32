package scale

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"causeway/hub"
	"causeway/hub/api"
	"causeway/protocol"
	"causeway/tunnel"
)

// hubEnv names the directory of the hub that a process is to be.
const hubEnv = "CAUSEWAY_SCALE_HUB"

// Names below the hub's directory.
const (
	adminSocket = "admin.sock"
	simSocket   = "sim.sock"
	debugSocket = "debug.sock"
	settings    = "hub.json"
)

const (
	joinRate     = 500 // all hosts join from one address
	heapReadings = 5
)

type hubSettings struct {
	UDP   string `json:"udp"`
	HTTPS string `json:"https"`
}

// Main makes this process a hub if it was started as one, and then ends it. It
// belongs before anything else in main, or in TestMain.
func Main() {
	dir := os.Getenv(hubEnv)
	if dir == "" {
		return
	}
	if err := runHub(dir); err != nil {
		fmt.Fprintln(os.Stderr, "hub:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// runHub runs the hub as causeway-hub does. Beside it there is a socket for
// nodes without a tunnel, and one for pprof and the size of the heap.
func runHub(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() { // it must not outlive who started it
		io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	b, err := os.ReadFile(filepath.Join(dir, settings))
	if err != nil {
		return err
	}
	var s hubSettings
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	sims, err := net.Listen("unix", filepath.Join(dir, simSocket))
	if err != nil {
		return err
	}
	defer sims.Close()
	debug, err := net.Listen("unix", filepath.Join(dir, debugSocket))
	if err != nil {
		return err
	}
	defer debug.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/heap", func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(heapNow()) })
	go http.Serve(debug, mux)

	h, err := hub.New(hub.Config{DataDir: filepath.Join(dir, "data"), AdminSocket: filepath.Join(dir, adminSocket), ListenUDP: s.UDP, ListenHTTPS: s.HTTPS,
		PublicHost: "127.0.0.1", JoinRate: joinRate, Version: "scale", Log: zerolog.New(os.Stderr).Level(zerolog.WarnLevel).With().Timestamp().Logger(),
		Tunnel: func(c tunnel.HubConfig) (hub.Tunnel, error) {
			t, err := tunnel.NewHub(c)
			return &simTunnel{t, sims}, err
		}})
	if err != nil {
		return err
	}
	go func() {
		select {
		case <-h.Ready():
			fmt.Println("ready")
		case <-ctx.Done():
		}
	}()
	return h.Run(ctx)
}

// heapSize is what a hub's process uses.
type heapSize struct {
	Live       uint64 `json:"live_bytes"` // of the heap after a collection
	Stacks     uint64 `json:"stack_bytes"`
	Goroutines int    `json:"goroutines"`
}

func heapNow() heapSize {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // pools need two
	runtime.ReadMemStats(&m)
	return heapSize{m.HeapAlloc, m.StackInuse, runtime.NumGoroutine()}
}

// simTunnel is a hub's tunnel that takes nodes from a unix socket, too, on their word.
type simTunnel struct {
	*tunnel.Hub
	sims net.Listener
}

// Listen adds the socket to the first family's listener.
func (t *simTunnel) Listen(at netip.AddrPort) (net.Listener, error) {
	l, err := t.Hub.Listen(at)
	if err != nil || !at.Addr().Is4() || at.Port() != protocol.ControlPort {
		return l, err
	}
	m := &merged{Listener: l, conns: make(chan net.Conn), closed: make(chan struct{}), failed: make(chan error, 1)}
	go m.pump(l, func(c net.Conn) (net.Conn, error) { return c, nil })
	go m.pump(t.sims, func(c net.Conn) (net.Conn, error) {
		var who simHeader
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if err := protocol.ReadFrame(c, &who, protocol.MaxStreamHeader); err != nil {
			return nil, err
		}
		c.SetReadDeadline(time.Time{})
		return simConn{c, net.TCPAddrFromAddrPort(netip.AddrPortFrom(who.Overlay, 40000))}, nil
	})
	return m, nil
}

// simHeader is the first thing that a node without a tunnel says.
type simHeader struct {
	Overlay netip.Addr `json:"overlay"`
}

type simConn struct {
	net.Conn
	remote net.Addr
}

func (c simConn) RemoteAddr() net.Addr { return c.remote }

// merged is one listener over two.
type merged struct {
	net.Listener
	conns  chan net.Conn
	failed chan error
	once   sync.Once
	closed chan struct{}
}

func (m *merged) pump(l net.Listener, greet func(net.Conn) (net.Conn, error)) {
	for {
		c, err := l.Accept()
		if err != nil {
			select {
			case m.failed <- err:
			default:
			}
			return
		}
		go func() {
			g, err := greet(c)
			if err != nil {
				c.Close()
				return
			}
			select {
			case m.conns <- g:
			case <-m.closed:
				c.Close()
			}
		}()
	}
}

func (m *merged) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case err := <-m.failed:
		return nil, err
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

func (m *merged) Close() error {
	m.once.Do(func() { close(m.closed) })
	return m.Listener.Close()
}

// hubProcess is a hub in a process of its own, so that its memory and its
// processor time are its own, and it can be killed.
type hubProcess struct {
	dir   string
	udp   netip.AddrPort
	admin *api.Client
	debug *http.Client

	cmd   *exec.Cmd
	stdin io.Closer
	done  chan struct{} // the process has ended
}

func newHubProcess(dir string) (*hubProcess, error) {
	h := &hubProcess{dir: dir}
	s := hubSettings{}
	for _, network := range []string{"udp", "tcp"} {
		at, err := freePort(network)
		if err != nil {
			return nil, err
		}
		if network == "udp" {
			s.UDP, h.udp = at.String(), at
		} else {
			s.HTTPS = at.String()
		}
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, settings), b, 0o600); err != nil {
		return nil, err
	}
	if h.admin, err = api.NewClient(api.ClientConfig{Socket: filepath.Join(dir, adminSocket), Timeout: time.Minute}); err != nil {
		return nil, err
	}
	h.debug = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, debugSocket))
	}}}
	return h, nil
}

// freePort is one that nobody listens on now.
func freePort(network string) (netip.AddrPort, error) {
	const at = "127.0.0.1:0"
	if network == "udp" {
		c, err := net.ListenPacket("udp", at)
		if err != nil {
			return netip.AddrPort{}, err
		}
		defer c.Close()
		return netip.ParseAddrPort(c.LocalAddr().String())
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer l.Close()
	return netip.ParseAddrPort(l.Addr().String())
}

// start starts the process and waits until the hub is ready.
func (h *hubProcess) start(ctx context.Context) error {
	for _, s := range []string{simSocket, debugSocket} { // left by one that was killed
		if err := os.Remove(filepath.Join(h.dir, s)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(h.dir, "hub.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	h.cmd = exec.Command(exe)
	h.cmd.Env = append(os.Environ(), hubEnv+"="+h.dir)
	h.cmd.Stderr = log
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := h.cmd.Start(); err != nil {
		return fmt.Errorf("start the hub: %w", err)
	}
	h.done = make(chan struct{})
	ready := make(chan bool, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		ready <- line == "ready\n"
		h.cmd.Wait()
		close(h.done)
	}()
	select {
	case ok := <-ready:
		if ok {
			return nil
		}
	case <-ctx.Done():
		h.kill()
		return ctx.Err()
	}
	<-h.done
	b, _ := os.ReadFile(filepath.Join(h.dir, "hub.log"))
	return fmt.Errorf("the hub did not start: %.2000s", b)
}

// kill ends the process at once, as a crash would.
func (h *hubProcess) kill() {
	if h.cmd != nil && h.cmd.Process != nil {
		h.cmd.Process.Kill()
		<-h.done
		h.stdin.Close()
	}
}

// heap collects the hub's garbage and returns what is left, the least of several times: the
// NATS server loads blocks of 8 MB now and then and forgets them within seconds.
func (h *hubProcess) heap(ctx context.Context) (least heapSize, err error) {
	for i := range heapReadings {
		if i > 0 {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return least, ctx.Err()
			}
		}
		b, err := h.get(ctx, "/heap")
		if err != nil {
			return least, err
		}
		var s heapSize
		if err := json.Unmarshal(b, &s); err != nil {
			return least, err
		}
		if i == 0 || s.Live < least.Live {
			least = s
		}
	}
	return least, nil
}

func (h *hubProcess) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://hub"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := h.debug.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// profile writes pprof profiles of the hub into dir while it works.
func (h *hubProcess) profile(ctx context.Context, dir, name, path string) error {
	b, err := h.get(ctx, path)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name), b, 0o644)
}

// cpu is the processor time that the hub has used, and peak its largest resident size in bytes.
func (h *hubProcess) usage() (cpu time.Duration, peak uint64) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", h.cmd.Process.Pid))
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) > 12 {
		u, _ := strconv.ParseInt(f[11], 10, 64)
		s, _ := strconv.ParseInt(f[12], 10, 64)
		cpu = time.Duration(u+s) * (time.Second / 100) // USER_HZ
	}
	b, _ = os.ReadFile(fmt.Sprintf("/proc/%d/status", h.cmd.Process.Pid))
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			k, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			peak = k << 10
		}
	}
	return cpu, peak
}
