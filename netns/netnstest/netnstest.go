// Package netnstest has what tests of a host's network begin with: a namespace that is theirs alone.
package netnstest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	vns "github.com/vishvananda/netns"

	"causeway/netns/lab"
)

// Root skips a test that is run without root; in CI it fails.
func Root(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root: makes network namespaces")
		}
		t.Skip("needs root: makes network namespaces")
	}
}

// Namespace runs the rest of the test on a thread in a network namespace of
// its own, which goes away with the thread.
func Namespace(t *testing.T) {
	t.Helper()
	Root(t)
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	ns, err := vns.New()
	require.NoError(t, err)
	t.Cleanup(func() { ns.Close() })
	// Without duplicate address detection: it changes what is seen later on.
	Sh(t, "sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0; ip link set lo up")
}

// Sh runs a script in the namespace of the test, and returns what it printed.
func Sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	require.NoError(t, err, "%s\n%s", script, out)
	return string(out)
}

// Host is Namespace with an underlay link eth0, a bridge pods, and the tunnel's device cw0.
func Host(t *testing.T) {
	t.Helper()
	Namespace(t)
	Sh(t, `ip link add eth0 type veth peer name far0; ip link set eth0 up; ip link set far0 up
		ip addr add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1
		ip link add pods type bridge; ip link set pods up; ip addr add 10.1.0.1/16 dev pods; ip -6 addr add fd10:1::1/64 dev pods nodad`)
	// Carriers and link-local addresses come a moment later.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	require.NoError(t, lab.Wait(ctx, "the links", func(context.Context) error {
		out := Sh(t, "ip -6 addr; ip link; ip -6 route show table local")
		if strings.Contains(out, "tentative") || strings.Contains(out, "NO-CARRIER") || strings.Count(out, "inet6 fe80") != 3 || !strings.Contains(out, "local fd10:1::1 ") {
			return errors.New(out)
		}
		return nil
	}))
	Sh(t, "ip tuntap add cw0 mode tun")
}
