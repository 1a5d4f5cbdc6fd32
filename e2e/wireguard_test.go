package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
	"causeway/tunnel"
)

// These tests are the groups of WireGuard's own netns.sh (tools/testing/selftests/
// wireguard in the Linux tree) for our engine. wgtool takes the place of the
// kernel's device: its sockets stay in the namespace where it was started, the
// interface is moved. Interfaces of one lab have different names, because wg(8)
// finds a userspace device by name alone. What else differs is said in each test.

const (
	inlineEngine = tunnel.EngineInline
	reference    = tunnel.EngineWireGuardGo // as it is, with its own sockets
)

var soaking = os.Getenv("CAUSEWAY_SOAK") != ""

// enginePairs runs a group once for the first pair, in a soak for all.
func enginePairs(t *testing.T, first [2]string, f func(t *testing.T, e [2]string)) {
	pairs := [][2]string{first}
	if soaking {
		pairs = [][2]string{ours, {inlineEngine, reference}, {reference, inlineEngine}}
	}
	runPairs(t, pairs, f)
}

// oursAlone runs a group in which devices change from IPv4 to IPv6 outside.
// wireguard-go's messages then go to an address of which only the first four
// bytes are new, whichever end it is (StdNetBind's pool of addresses).
func oursAlone(t *testing.T, f func(t *testing.T, e [2]string)) { runPairs(t, [][2]string{ours}, f) }

func runPairs(t *testing.T, pairs [][2]string, f func(t *testing.T, e [2]string)) {
	t.Parallel()
	needRoot(t)
	if _, err := exec.LookPath("wg"); err != nil {
		t.Fatal("wg is missing (make deps)")
	}
	for _, p := range pairs {
		t.Run(p[0]+" "+p[1], func(t *testing.T) { f(t, p) })
	}
}

var ours = [2]string{inlineEngine, inlineEngine}

var wgtool struct {
	once sync.Once
	path string
	err  error
}

// buildWgtool builds wgtool once, beside the other binaries.
func buildWgtool(t *testing.T) string {
	t.Helper()
	dir := binaries(t).Dir
	wgtool.once.Do(func() {
		wgtool.path = filepath.Join(dir, "wgtool")
		root, err := moduleRoot(context.Background())
		if err != nil {
			wgtool.err = err
			return
		}
		cmd := exec.Command("go", "build", "-trimpath", "-o", wgtool.path, "./e2e/cmd/wgtool")
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			wgtool.err = fmt.Errorf("build wgtool: %w\n%s", err, out)
		}
	})
	require.NoError(t, wgtool.err)
	return wgtool.path
}

// wgLab is a lab with WireGuard devices in it.
type wgLab struct {
	*lab.Lab
	t    *testing.T
	tool string
	run  string // stands for /run, where the sockets are
	any  *lab.Host

	started int
}

func newWgLab(t *testing.T) *wgLab {
	t.Helper()
	w := &wgLab{t: t, tool: buildWgtool(t), Lab: lab.New(t)}
	w.run = filepath.Join(w.Dir, "run")
	require.NoError(t, os.Mkdir(w.run, 0o755))
	return w
}

// device starts a device with its sockets on one host and moves its interface
// to another.
func (w *wgLab) device(engine, name string, sockets, iface *lab.Host, args ...string) *lab.Process {
	w.t.Helper()
	line := append([]string{w.tool, "-engine", engine}, args...)
	w.started++ // a log of its own, or an earlier device's word counts
	p, err := sockets.Start(lab.Program{Name: fmt.Sprintf("%s-%d", name, w.started), Args: withRun(w.run, append(line, name)...)})
	require.NoError(w.t, err)
	require.NoError(w.t, p.WaitOutput(step(w.t), "ready"))
	if iface != sockets {
		sockets.Sh("ip link set " + name + " netns " + iface.Namespace())
	}
	// No router solicitations: they would be in the counters.
	iface.Sh("ip link set " + name + " addrgenmode none; ip link set " + name + " up")
	w.any = sockets
	return p
}

// wg runs wg(8), which has to succeed, and returns what it printed.
func (w *wgLab) wg(args ...string) string {
	w.t.Helper()
	out, err := w.tryWg(args...)
	require.NoError(w.t, err)
	return strings.TrimSuffix(out, "\n")
}

func (w *wgLab) tryWg(args ...string) (string, error) {
	return w.any.Run(step(w.t), withRun(w.run, append([]string{"wg"}, args...)...)...)
}

// wgKey is a key as wg takes it: in a file.
type wgKey struct{ file, private, public string }

func (w *wgLab) key() wgKey {
	w.t.Helper()
	k, err := protocol.NewWireGuardPrivateKey()
	require.NoError(w.t, err)
	f, err := os.CreateTemp(w.Dir, "key-")
	require.NoError(w.t, err)
	defer f.Close()
	public := k.Public()
	key := wgKey{f.Name(), base64.StdEncoding.EncodeToString(k[:]), base64.StdEncoding.EncodeToString(public[:])}
	_, err = f.WriteString(key.private + "\n")
	require.NoError(w.t, err)
	return key
}

// transfer is what a device counted for its only peer.
func (w *wgLab) transfer(name string) (rx, tx int) {
	w.t.Helper()
	f := strings.Fields(w.wg("show", name, "transfer"))
	require.Len(w.t, f, 3)
	rx, err := strconv.Atoi(f[1])
	require.NoError(w.t, err)
	tx, err = strconv.Atoi(f[2])
	require.NoError(w.t, err)
	return rx, tx
}

// pings are n echoes at once, all of them answered within a second. A flood
// (ping -f) waits for the last answer no longer than for two others.
func (w *wgLab) pings(from *lab.Host, addr string, n int, args ...string) {
	w.t.Helper()
	line := append([]string{"ping", "-nq", "-W1", "-c", strconv.Itoa(n), "-l", strconv.Itoa(n)}, args...)
	out, err := from.Run(step(w.t), append(line, addr)...)
	require.NoError(w.t, err)
	require.Contains(w.t, out, fmt.Sprintf("%d received", n))
}

// ping is one echo that is answered within a second: no retry of a handshake
// helps.
func (w *wgLab) ping(from *lab.Host, addr string, args ...string) {
	w.t.Helper()
	_, err := from.Run(step(w.t), append(append([]string{"ping", "-nc1", "-W1"}, args...), addr)...)
	require.NoError(w.t, err)
}

// noPing is one echo that is not answered.
func (w *wgLab) noPing(from *lab.Host, addr string, args ...string) string {
	w.t.Helper()
	out, err := from.Run(step(w.t), append(append([]string{"ping", "-nc1", "-W1"}, args...), addr)...)
	require.Error(w.t, err, out)
	return out
}

// eventually polls for the time of a step.
func (w *wgLab) eventually(f func() error) {
	w.t.Helper()
	require.NoError(w.t, lab.Wait(step(w.t), "it", func(context.Context) error { return f() }))
}

// wgPair is two devices and their addresses inside.
type wgPair struct {
	*wgLab
	n0, n1, n2       *lab.Host
	e                [2]string
	d1, d2           *lab.Process
	key1, key2, key3 wgKey
	psk              wgKey
}

// Addresses inside, as in netns.sh.
const (
	in1v4, in2v4 = "192.168.241.1", "192.168.241.2"
	in1v6, in2v6 = "fd00::1", "fd00::2"
)

// newHosts makes the hosts alone.
func newWgPair(t *testing.T, e [2]string) *wgPair {
	p := &wgPair{wgLab: newWgLab(t), e: e}
	p.n0, p.n1, p.n2 = p.Host("ns0"), p.Host("ns1"), p.Host("ns2")
	p.key1, p.key2, p.key3, p.psk = p.key(), p.key(), p.key(), p.key()
	return p
}

// newLoopback is the topology of most groups: wg1 on ns1 and wg2 on ns2, both
// with their sockets on ns0, ports 1 and 2.
func newLoopback(t *testing.T, e [2]string) *wgPair {
	p := newWgPair(t, e)
	p.d1 = p.device(e[0], "wg1", p.n0, p.n1)
	p.d2 = p.device(e[1], "wg2", p.n0, p.n2)
	p.configure()
	p.endpoints("127.0.0.1:2", "127.0.0.1:1")
	return p
}

// configure gives both devices keys, ports, each other and addresses.
func (p *wgPair) configure() {
	p.t.Helper()
	p.n1.Addr("wg1", in1v4+"/24", in1v6+"/112")
	p.n2.Addr("wg2", in2v4+"/24", in2v6+"/112")
	p.wg("set", "wg1", "private-key", p.key1.file, "listen-port", "1",
		"peer", p.key2.public, "preshared-key", p.psk.file, "allowed-ips", in2v4+"/32,"+in2v6+"/128")
	p.wg("set", "wg2", "private-key", p.key2.file, "listen-port", "2",
		"peer", p.key1.public, "preshared-key", p.psk.file, "allowed-ips", in1v4+"/32,"+in1v6+"/128")
}

func (p *wgPair) endpoints(of2, of1 string) {
	p.t.Helper()
	p.wg("set", "wg1", "peer", p.key2.public, "endpoint", of2)
	p.wg("set", "wg2", "peer", p.key1.public, "endpoint", of1)
}

func (p *wgPair) mtu(mtu int) {
	p.n1.Sh(fmt.Sprintf("ip link set wg1 mtu %d", mtu))
	p.n2.Sh(fmt.Sprintf("ip link set wg2 mtu %d", mtu))
}

// serve starts the traffic server on a host.
func (w *wgLab) serve(h *lab.Host) {
	w.t.Helper()
	p, err := h.Start(lab.Program{Name: "serve", Args: []string{binaries(w.t).Labtool, "serve"}})
	require.NoError(w.t, err)
	w.eventually(func() error {
		if !p.Running() {
			return lab.Permanent(errors.New(p.Output()))
		}
		_, err := h.Run(step(w.t), binaries(w.t).Labtool, "http", "http://127.0.0.1:7080/ready")
		return err
	})
}

// send sends bytes by tcp or udp and compares checksums.
func (w *wgLab) send(from *lab.Host, proto, addr string, bytes int64) error {
	out, err := from.Run(step(w.t), binaries(w.t).Labtool, proto, addr, "-bytes", fmt.Sprint(bytes))
	if err != nil {
		return err
	}
	var r Transfer
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return fmt.Errorf("read result: %w\n%s", err, out)
	}
	if r.Bytes != bytes {
		return fmt.Errorf("%d of %d bytes", r.Bytes, bytes)
	}
	return nil
}
