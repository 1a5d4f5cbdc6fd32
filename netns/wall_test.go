package netns

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// sends has a user send a packet from where the thread is; the end is waited for by the function
// returned.
func sends(t *testing.T, uid uint32, args ...string) (wait func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	require.NoError(t, cmd.Start())
	return func() {
		t.Helper()
		cmd.Wait() // nobody answers: it says so
		require.NoError(t, ctx.Err(), "%v", args)
		cancel()
	}
}

var packets = regexp.MustCompile(`packets (\d+)`)

// An agent with a user of its own: root of the host, other users and what is forwarded do not
// get at the hub or at agents' ports, the agent does, and so does an echo. What was sent on by
// the kernel for somebody, without a socket, does not either.
func TestWallAroundTheOverlay(t *testing.T) {
	lab.Counts(t)
	h, c := host(t), testConfig()
	p := plan(t, c)
	require.NoError(t, h.Apply(context.Background(), p))
	requireFound(t, h, p)
	pod := exec.Command("unshare", "-n", "sleep", "600")
	require.NoError(t, pod.Start())
	t.Cleanup(func() { pod.Process.Kill(); pod.Wait() })
	inPod := func(args ...string) []string {
		return append([]string{"nsenter", "-n", "-t", strconv.Itoa(pod.Process.Pid)}, args...)
	}
	own := sh(t, "readlink /proc/self/ns/net")
	require.NoError(t, lab.Wait(t.Context(), "the pod", func(context.Context) error {
		if sh(t, "readlink /proc/"+strconv.Itoa(pod.Process.Pid)+"/ns/net") == own {
			return errors.New("it is not there yet")
		}
		return nil
	}))
	sh(t, "ip link add podv type veth peer name eth9 netns "+strconv.Itoa(pod.Process.Pid)+"; ip link set podv master pods up")
	sh(t, strings.Join(inPod("sh", "-ec", `'ip addr add 10.1.0.9/16 dev eth9; ip -6 addr add fd10:1::9/64 dev eth9 nodad; ip link set eth9 up
		ip route add default via 10.1.0.1; ip -6 route add default via fd10:1::1'`), " "))
	sh(t, `nft -f - <<E
table inet seen {
	chain p {
		type filter hook postrouting priority 300
		oifname "cw0" icmp type echo-request counter comment "echo4"
		oifname "cw0" icmpv6 type echo-request counter comment "echo6"
		oifname "cw0" meta l4proto { tcp, udp } counter comment "through"
	}
}
E`)
	through := func(comment string) int {
		for _, l := range regexp.MustCompile(`.*comment "`+comment+`"`).FindAllString(sh(t, "nft list table inet seen"), -1) {
			n, err := strconv.Atoi(packets.FindStringSubmatch(l)[1])
			require.NoError(t, err)
			return n
		}
		require.Fail(t, "no counter", comment)
		return 0
	}
	wait := func(what, comment string, more int) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(t, lab.Wait(ctx, what, func(context.Context) error {
			if n := through(comment); n < more {
				return fmt.Errorf("%d packets", n)
			}
			return nil
		}))
	}
	// Of programs that send one packet or two, and are not answered.
	tcp := func(addr, port string) []string {
		return []string{"timeout", "0.8", "bash", "-c", "exec 3<>/dev/tcp/" + addr + "/" + port}
	}
	udp := func(addr, port string) []string {
		return []string{"bash", "-c", "echo x > /dev/udp/" + addr + "/" + port}
	}
	hub4, hub6, node4, node6 := "198.18.0.1", "fd63:7761:7900::1", "198.18.0.77", "fd63:7761:7900::4d"
	walled := [][]string{tcp(hub4, "4710"), tcp(hub6, "4710"), tcp(hub4, "80"), udp(hub4, "4712"), udp(hub6, "53"), tcp(node4, "4713"), tcp(node6, "4719"), udp(node4, "4713")}
	var waits []func()
	for _, x := range walled {
		for _, uid := range []uint32{0, 65534, 999} {
			waits = append(waits, sends(t, uid, x...))
		}
		waits = append(waits, sends(t, 0, inPod(x...)...))
	}
	for _, w := range waits {
		w()
	}
	require.Zero(t, through("through"), "packets of root, other users and a pod")
	for _, x := range walled {
		before := through("through")
		defer sends(t, 998, x...)()
		wait(fmt.Sprintf("the agent's packet: %v", x), "through", before+1)
	}
	before := through("through") // other ports of other nodes are anybody's
	defer sends(t, 65534, tcp(node4, "22")...)()
	wait("a user to another node", "through", before+1)
	for n, ping := range [][]string{{"ping", "-c1", "-W1"}, inPod("ping", "-c1", "-W1")} {
		sends(t, 0, append(slices.Clone(ping), hub4)...)()
		sends(t, 0, append(slices.Clone(ping), hub6)...)()
		wait("echo", "echo4", n+1)
		wait("echo", "echo6", n+1)
	}
	// Another tool's address translation is no way around.
	sh(t, `nft -f - <<E
table ip detour {
	chain o {
		type nat hook output priority -100
		ip daddr 192.0.2.200 dnat to 198.18.0.1
	}
	chain p {
		type nat hook prerouting priority -100
		ip daddr 192.0.2.200 dnat to 198.18.0.1
	}
	chain s {
		type nat hook postrouting priority 100
		oifname "cw0" ip daddr 198.18.0.1 masquerade
	}
}
E`)
	before = through("through")
	sends(t, 0, tcp("192.0.2.200", "4710")...)()
	sends(t, 0, inPod(tcp("192.0.2.200", "4710")...)...)()
	require.Equal(t, before, through("through"), "by another tool's translation")
	defer sends(t, 998, tcp("192.0.2.200", "4710")...)()
	wait("the agent's translated packet", "through", before+1)

	// A hole in the wall is found and mended, and the wall goes with the rest.
	sh(t, "nft flush chain inet causeway wall-forward")
	d, err := h.Drift(context.Background(), Nftables)
	require.NoError(t, err)
	require.NotEmpty(t, d)
	require.NoError(t, h.Mend(context.Background(), d))
	requireFound(t, h, p)
	require.NoError(t, h.Remove(context.Background(), c))
	_, err = exec.Command("nft", "list", "table", "inet", NftTable).Output()
	require.True(t, errors.As(err, new(*exec.ExitError)))
}
