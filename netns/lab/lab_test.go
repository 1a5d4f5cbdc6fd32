package lab

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// two sites behind routers of a kind, with a server on the internet.
func sites(t *testing.T, nat NAT) (l *Lab, server, a, b *Host) {
	l = New(t)
	inet := l.Switch("inet")
	server = l.Host("server").Link("eth0", inet, "203.0.113.1/24", "fd00:203::1/64").
		Route("fd00:11::/64", "fd00:203::11").Route("fd00:12::/64", "fd00:203::12")
	var hosts []*Host
	for i := 11; i <= 12; i++ {
		lan := l.Switch(fmt.Sprintf("lan%d", i))
		l.Router(fmt.Sprintf("r%d", i), nat).
			Link("wan", inet, fmt.Sprintf("203.0.113.%d/24", i), fmt.Sprintf("fd00:203::%d/64", i)).
			Link("lan", lan, fmt.Sprintf("192.168.%d.1/24", i), fmt.Sprintf("fd00:%d::1/64", i)).
			Default("203.0.113.1", "fd00:203::1")
		hosts = append(hosts, l.Host(fmt.Sprintf("h%d", i)).
			Link("eth0", lan, fmt.Sprintf("192.168.%d.2/24", i), fmt.Sprintf("fd00:%d::2/64", i)).
			Default(fmt.Sprintf("192.168.%d.1", i), fmt.Sprintf("fd00:%d::1", i)))
	}
	return l, server, hosts[0], hosts[1]
}

// mappings sends a datagram from one socket to two ports of the server and
// returns the source addresses that it sees.
func mappings(t *testing.T, server, from *Host) (out []string) {
	var servers []*net.UDPConn
	require.NoError(t, server.Do(func() error {
		for _, p := range []int{7001, 7002} {
			c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: p})
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
			servers = append(servers, c)
		}
		return nil
	}))
	require.NoError(t, from.Do(func() error {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: 5000})
		if err != nil {
			return err
		}
		defer c.Close()
		for _, p := range []int{7001, 7002} {
			if _, err := c.WriteTo([]byte("hello"), &net.UDPAddr{IP: net.IPv4(203, 0, 113, 1), Port: p}); err != nil {
				return err
			}
		}
		return nil
	}))
	for _, c := range servers {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, src, err := c.ReadFrom(make([]byte, 16))
		require.NoError(t, err)
		out = append(out, src.String())
	}
	return out
}

func TestNAT(t *testing.T) {
	for _, nat := range []NAT{EndpointIndependent, Symmetric} {
		t.Run(fmt.Sprint(nat), func(t *testing.T) {
			t.Parallel()
			l, server, a, b := sites(t, nat)
			a.Sh("ping -nqc1 -W2 203.0.113.1; ping -nqc1 -W2 fd00:203::1")
			b.Sh("ping -nqc1 -W2 203.0.113.1")
			_, err := server.Run(within(t, 5*time.Second), "ping", "-nqc1", "-W1", "fd00:11::2")
			require.Error(t, err, "nothing comes in from outside")
			m := mappings(t, server, a)
			require.Len(t, m, 2)
			require.True(t, strings.HasPrefix(m[0], "203.0.113.11:"), m)
			require.Equal(t, nat == EndpointIndependent, m[0] == m[1], m)
			require.NoError(t, l.Close())
			require.Empty(t, Leftovers(l.Prefix()))
		})
	}
}

func TestRouterFaults(t *testing.T) {
	t.Parallel()
	l := New(t)
	x, y := l.Switch("x"), l.Switch("y").MTU(1400)
	r := l.Router("r", None).Link("left", x, "10.0.1.1/24").Link("right", y, "10.0.2.1/24")
	a := l.Host("a").Link("eth0", x, "10.0.1.2/24").Default("10.0.1.1")
	l.Host("b").Link("eth0", y, "10.0.2.2/24").Default("10.0.2.1")
	ping := func(flags string) error {
		_, err := a.Run(within(t, 20*time.Second), "sh", "-c", "ping -nq "+flags+" 10.0.2.2")
		return err
	}
	require.NoError(t, ping("-c1 -W1"))
	require.NoError(t, ping("-c1 -W1 -M do -s 1372"))
	require.Error(t, ping("-c1 -W1 -M do -s 1373"), "does not fit")
	r.Loss("right", "left", 100) // one way
	require.Error(t, ping("-c1 -W1"))
	r.Loss("right", "left", 0)
	require.NoError(t, ping("-c1 -W1"))
	r.Loss("left", "right", 40)
	out, err := a.Run(within(t, 20*time.Second), "ping", "-nq", "-c200", "-i0.005", "-W1", "10.0.2.2")
	require.NoError(t, err)
	var lost float64
	for _, f := range strings.Split(out, ", ") {
		fmt.Sscanf(f, "%f%% packet loss", &lost)
	}
	require.InDelta(t, 40, lost, 20, out)
	r.Loss("left", "right", 0).Block("icmp type echo-request")
	require.Error(t, ping("-c1 -W1"))
	r.Unblock()
	require.NoError(t, ping("-c1 -W1"))
}

func TestPodsAndPrograms(t *testing.T) {
	t.Parallel()
	l := New(t)
	n := l.Host("n").Sysctl("net.ipv4.ip_forward=1", "net.ipv4.ip_unprivileged_port_start=0")
	net := n.PodNet("pods", "10.1.0.1/24", "fd10:1::1/64")
	p1, p2 := net.Pod("p1", "10.1.0.2/24", "fd10:1::2/64"), net.Pod("p2", "10.1.0.3/24", "fd10:1::3/64")
	p1.Sh("ping -nqc1 -W2 10.1.0.3; ping -nqc1 -W2 fd10:1::3; ping -nqc1 -W2 10.1.0.1")
	p2.Sh("ping -nqc1 -W2 fd10:1::1")

	srv, err := n.Start(Program{Name: "server", Args: []string{"busybox", "nc", "-l", "-p", "80", "-e", "/bin/echo", "served"}, User: Nobody})
	require.NoError(t, err)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", srv.PID()))
	require.NoError(t, err)
	require.Contains(t, string(b), "CapEff:\t0000000000000000")
	require.Contains(t, string(b), "Uid:\t65534\t65534")
	require.NoError(t, Wait(within(t, 5*time.Second), "the server", func(ctx context.Context) error {
		out, err := p1.Run(ctx, "sh", "-c", "busybox nc -w1 10.1.0.1 80 </dev/null")
		if err == nil && out != "served\n" {
			err = fmt.Errorf("answer %q", out)
		}
		return err
	}))
	require.NoError(t, srv.Wait(within(t, 5*time.Second)))
	other, err := n.Start(Program{Name: "sleep", Args: []string{"sleep", "600"}})
	require.NoError(t, err)
	other.Kill()
	require.False(t, other.Running())
	require.Contains(t, l.Report(), "busybox nc -l")

	_, err = p1.Run(within(t, time.Minute), "sh", "-c", "echo why >&2; exit 3")
	require.ErrorContains(t, err, "why")
}

func TestPodman(t *testing.T) {
	t.Parallel()
	l := New(t)
	n := l.Host("n")
	p := n.Podman("10.201.0.0/24")
	ctx := within(t, 2*time.Minute)
	require.NoError(t, p.Image(ctx, "bb"))
	_, err := p.Run(ctx, "run", "-d", "--name", "a1", "bb", "/bin/busybox", "sleep", "600")
	require.NoError(t, err)
	a, err := p.Address(ctx, "a1")
	require.NoError(t, err)
	n.Sh("ping -nqc1 -W2 " + a)
	require.NoError(t, l.Close())
	require.Empty(t, Leftovers(l.Prefix()))
}

// A run that was killed leaves namespaces, programs and files; the next one
// takes them away. A kept lab stays until it is asked for.
func TestSweep(t *testing.T) {
	require.NoError(t, New(t).Close()) // skips without root, before another process does the same unseen
	for _, mode := range []string{"killed", "kept"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSweepHelper$")
		cmd.Env = append(os.Environ(), "CAUSEWAY_LAB_HELPER="+mode)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		prefix := ""
		for s := bufio.NewScanner(out); s.Scan(); {
			if p, ok := strings.CutPrefix(s.Text(), "prefix "); ok {
				prefix = p
				if mode == "killed" {
					require.NoError(t, cmd.Process.Kill())
				}
			}
		}
		cmd.Wait()
		require.NotEmpty(t, prefix)
		require.Len(t, Leftovers(prefix), 3, "namespace, directory, process")
		require.NoError(t, Sweep())
		if mode == "kept" {
			require.Len(t, Leftovers(prefix), 3)
			require.NoError(t, RemoveKept())
		}
		require.Empty(t, Leftovers(prefix))
	}
}

func TestSweepHelper(t *testing.T) {
	mode := os.Getenv("CAUSEWAY_LAB_HELPER")
	if mode == "" {
		return // not a test of its own: TestSweep runs it in another process
	}
	err := Main(t.Logf, func(l *Lab) error {
		h := l.Host("h")
		script := filepath.Join(l.Dir, "wait")
		if err := os.WriteFile(script, []byte("read x < "+l.Dir+"/fifo\n"), 0o644); err != nil {
			return err
		}
		h.Sh("mkfifo " + l.Dir + "/fifo")
		if _, err := h.Start(Program{Name: "wait", Args: []string{"sh", script}}); err != nil {
			return err
		}
		fmt.Println("prefix " + l.Prefix())
		if mode == "kept" {
			l.Keep()
			return nil
		}
		select {} // until killed
	})
	require.NoError(t, err)
}
