package tunnel

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netns"
)

const patience = 30 * time.Second

// host is a network namespace without a name: it goes away with its last
// process and with close.
type host struct {
	t    *testing.T
	name string
	ns   netns.NsHandle
	work chan func()
}

// newHost makes a namespace and a thread that lives in it.
func newHost(t *testing.T, name string) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root: makes network namespaces and TUN devices")
		}
		t.Skip("needs root: makes network namespaces and TUN devices")
	}
	h := &host{t: t, name: name, work: make(chan func())}
	made := make(chan error)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var err error
		h.ns, err = netns.New()
		made <- err
		for f := range h.work {
			f()
		}
	}()
	require.NoError(t, <-made)
	t.Cleanup(func() {
		close(h.work)
		<-gone
		h.ns.Close()
	})
	h.ip("link set lo up")
	return h
}

// do runs f on the host's thread. Sockets that it opens stay in the namespace.
func (h *host) do(f func()) {
	done := make(chan struct{})
	h.work <- func() {
		defer close(done)
		f()
	}
	<-done
}

// run runs a command in the namespace.
func (h *host) run(name string, args ...string) (string, error) {
	var out []byte
	var err error
	h.do(func() { out, err = exec.Command(name, args...).CombinedOutput() })
	return string(out), err
}

// ip runs an ip command.
func (h *host) ip(args string) {
	h.t.Helper()
	out, err := h.run("ip", strings.Fields(args)...)
	require.NoError(h.t, err, "%s: ip %s: %s", h.name, args, out)
}

// dial connects from within the namespace.
func (h *host) dial(to string, timeout time.Duration) (c net.Conn, err error) {
	h.do(func() { c, err = net.DialTimeout("tcp", to, timeout) })
	return c, err
}

// listen echoes on an address in the namespace.
func (h *host) listen(at string) {
	h.t.Helper()
	var l net.Listener
	var err error
	h.do(func() { l, err = net.Listen("tcp", at) })
	require.NoError(h.t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		serve(l)
	}()
	h.t.Cleanup(func() {
		l.Close()
		<-served
	})
}

// reaches reports whether a ping is answered.
func (h *host) reaches(to netip.Addr) bool {
	_, err := h.run("ping", "-n", "-c", "1", "-W", "1", "-i", "0.2", to.String())
	return err == nil
}

// wire joins hosts at one switch, with 192.0.2.N and 2001:db8::N.
func wire(t *testing.T, hosts ...*host) {
	t.Helper()
	sw := newHost(t, "switch")
	sw.ip("link add br0 type bridge")
	sw.ip("link set br0 up")
	for i, h := range hosts {
		port := fmt.Sprintf("p%d", i+1)
		sw.ip(fmt.Sprintf("link add %s type veth peer name eth0", port))
		var err error
		sw.do(func() {
			var out []byte
			// By the descriptor: the namespace has no name and no process of its own.
			cmd := exec.Command("ip", "link", "set", "eth0", "netns", "/proc/self/fd/3")
			cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(dup(t, int(h.ns))), "netns")}
			if out, err = cmd.CombinedOutput(); err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			cmd.ExtraFiles[0].Close()
		})
		require.NoError(t, err)
		sw.ip("link set " + port + " master br0 up")
		h.ip(fmt.Sprintf("addr add 192.0.2.%d/24 dev eth0", i+1))
		h.ip(fmt.Sprintf("addr add 2001:db8::%d/64 dev eth0 nodad", i+1))
		h.ip("link set eth0 up")
	}
}
