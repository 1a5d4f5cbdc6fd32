package netns

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// failures are those of an error that must hold some.
func failures(t *testing.T, err error) Failures {
	t.Helper()
	var f Failures
	require.ErrorAs(t, err, &f)
	require.NotContains(t, err.Error(), "\n")
	return f
}

// readOnly makes /proc/sys read-only for this thread, as containers have it.
func readOnly(t *testing.T) {
	t.Helper()
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNS))
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	require.NoError(t, unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND|unix.MS_REC, ""))
	require.NoError(t, unix.Mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
}

// Where settings cannot be written, those that are right are not, the others are named with
// what does not work and what to do, and all else is applied. The command that is
// named, run from outside, is what mends it.
func TestReadOnlySettings(t *testing.T) {
	h, p := host(t), plan(t, testConfig())
	outside := exec.Command("sleep", "60") // in this network, with the mounts of before
	require.NoError(t, outside.Start())
	t.Cleanup(func() { outside.Process.Kill(); outside.Wait() })
	sh(t, "sysctl -qw net.ipv6.conf.cw0.addr_gen_mode=1")
	readOnly(t)
	err := h.Apply(context.Background(), p)
	f := failures(t, err)
	require.Equal(t, f, f.Of(Sysctls), err)
	harm, harmless := f.Harm()
	require.Len(t, harm, 3, err)
	require.Len(t, harmless, 1, "rp_filter, where nothing checks strictly: %v", err)
	require.ErrorContains(t, harm[0].Err, "net.ipv4.conf.cw0.forwarding=1")
	require.ErrorContains(t, harm[1].Err, "net.ipv4.conf.pods.forwarding=51806")
	require.ErrorContains(t, harm[0].Err, "read-only file system: pods and LANs behind this host reach no other site")
	found, err := h.Found(context.Background(), p.Config)
	require.NoError(t, err)
	require.Equal(t, lineSet(f), less(p.Lines(), found))
	d, err := h.Drift(context.Background(), Kinds...)
	require.NoError(t, err)
	require.Empty(t, d, "nobody changed that")

	for _, x := range f {
		_, cure, _ := strings.Cut(x.Err.Error(), "set it by '")
		cure, _, _ = strings.Cut(cure, "'")
		pid := exec.Command("nsenter", "-t", pidOf(outside), "-m", "sh", "-ec", cure)
		out, err := pid.CombinedOutput()
		require.NoError(t, err, "%s: %s", cure, out)
	}
	require.NoError(t, h.Apply(context.Background(), p))
	requireFound(t, h, p)
}

func lineSet(f Failures) (out []string) {
	for _, x := range f {
		out = append(out, x.Line)
	}
	return out
}

func pidOf(c *exec.Cmd) string { return strconv.Itoa(c.Process.Pid) }

// Where IPv6 cannot be had on the device, its addresses and routes are named, each kind with
// the first few, and all of IPv4 is there.
func TestHalfOfEachKind(t *testing.T) {
	h := host(t)
	c := testConfig()
	for i := range 9 {
		c.Routes = append(c.Routes, netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x77, byte(i)}), 48))
	}
	p := plan(t, c)
	sh(t, "sysctl -qw net.ipv6.conf.cw0.disable_ipv6=1 net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	readOnly(t)
	err := h.Apply(context.Background(), p)
	f := failures(t, err)
	for k, want := range map[Kind]int{Addresses: 1, Routes: 11, Nftables: 0, Rules: 0, Link: 0, Other: 0} {
		require.Len(t, f.Of(k), want, "%s: %v", k, err)
	}
	require.Contains(t, err.Error(), ", and 8 more")
	require.Less(t, len(err.Error()), 3000)
	found, err := h.Found(context.Background(), p.Config)
	require.NoError(t, err)
	for _, l := range less(p.Lines(), found) {
		require.True(t, strings.HasPrefix(l, "ip -6 ") || strings.HasPrefix(l, "sysctl "), l)
	}
	d, err := h.Drift(context.Background(), Kinds...)
	require.NoError(t, err)
	require.Empty(t, d, "nobody changed that")
	sh(t, "ip route flush table 51806")
	d, err = h.Drift(context.Background(), Kinds...)
	require.NoError(t, err)
	require.Len(t, d, 1, "and what somebody changes is seen")
	require.NoError(t, h.Mend(context.Background(), d[:0]))
	failures(t, h.Mend(context.Background(), d))
	d, err = h.Drift(context.Background(), Kinds...)
	require.NoError(t, err)
	require.Empty(t, d)
}

// Without nft nothing is known of walls, and that is said; the ways are there all the same, so
// that nothing takes the host's default route. Walls of this run are known while they can be
// read: somebody may have deleted them.
func TestWithoutNft(t *testing.T) {
	h, p := host(t), plan(t, testConfig())
	ctx := context.Background()
	real, err := nftPath()
	require.NoError(t, err)
	hide := func(but string) func() {
		bin := filepath.Join(t.TempDir(), "false")
		require.NoError(t, os.WriteFile(bin, []byte("#!/bin/sh\n"+but+"\necho 'Operation not supported' >&2; exit 1\n"), 0o755))
		dir := filepath.Dir(bin)
		require.NoError(t, os.Rename(bin, filepath.Join(dir, "nft")))
		path := os.Getenv("PATH")
		os.Setenv("PATH", dir+":"+path)
		return func() { os.Setenv("PATH", path) }
	}
	back := hide("")
	err = h.Apply(ctx, p)
	back()
	f := failures(t, err)
	require.Len(t, f.Of(Nftables), 1)
	require.Equal(t, f, f.Of(Nftables))
	require.ErrorIs(t, err, ErrNoWalls)
	require.ErrorContains(t, err, "Operation not supported")
	found, err := h.Found(ctx, p.Config)
	require.NoError(t, err)
	var shut []string // the host forwards nothing before the walls stand
	for _, l := range p.lines(Sysctls) {
		if strings.HasSuffix(l, "forwarding="+forwardMark) {
			shut = append(shut, l)
		}
	}
	require.Len(t, shut, 2)
	require.Equal(t, slices.Concat(shut, p.lines(Nftables)), less(p.Lines(), found))

	require.NoError(t, h.Apply(ctx, p))
	requireFound(t, h, p)
	other := testConfig()
	other.Routes = append(other.Routes, netip.MustParsePrefix("203.0.113.0/24"))
	other.Local = append(other.Local, netip.MustParsePrefix("10.77.0.0/16"))
	reads := `case "$*" in *list*) exec ` + real + ` "$@"; esac`
	back = hide(reads)
	err = h.Apply(ctx, plan(t, other))
	back()
	require.Error(t, err)
	require.NotErrorIs(t, err, ErrNoWalls, "they stand since")
	sh(t, "nft delete table inet causeway; ip rule del pref 5206")
	back = hide("")
	d, err := h.Drift(ctx, Kinds...)
	require.Len(t, failures(t, err), 1)
	require.Len(t, d, 1, "what does read is compared")
	require.Equal(t, Rules, d[0].Kind)
	require.NoError(t, h.Mend(ctx, d))
	err = h.Apply(ctx, p)
	back()
	require.ErrorIs(t, err, ErrNoWalls, "they may be gone, as they are")
	require.NoError(t, h.Apply(ctx, p))
	back = hide(reads)
	err = NewHost(h.stateDir, zerolog.Nop()).Apply(ctx, plan(t, other))
	back()
	require.ErrorIs(t, err, ErrNoWalls, "another run does not know whose they are")
	back = hide("")
	err = NewHost(h.stateDir, zerolog.Nop()).Apply(ctx, p)
	back()
	require.ErrorIs(t, err, ErrNoWalls, "another run knows of none")
}

// A device that somebody made too small for IPv6 has lost it: with its size come its addresses,
// settings and routes back.
func TestSmallLink(t *testing.T) {
	h := host(t)
	c := testConfig()
	c.LinkMTU, c.Queue = 65535, 2000
	p := plan(t, c)
	ctx := context.Background()
	require.NoError(t, h.Apply(ctx, p))
	requireFound(t, h, p)
	for _, meddle := range []string{"mtu 1000", "mtu 1400", "txqueuelen 3", "down"} {
		sh(t, "ip link set cw0 "+meddle)
		d, err := h.Drift(ctx, Kinds...)
		require.NoError(t, err)
		require.Len(t, d, 1, meddle)
		require.Equal(t, Link, d[0].Kind)
		require.NoError(t, h.Mend(ctx, d), meddle)
		requireFound(t, h, p)
		sh(t, "ip link set cw0 "+meddle)
		require.NoError(t, h.Apply(ctx, p), meddle)
		requireFound(t, h, p)
		require.NotEmpty(t, h.PutRight())
	}
}

// A device that is called otherwise, whose name another link took, is followed by its index;
// what has the name is left alone, also when all is taken back.
func TestRenamedLink(t *testing.T) {
	h := host(t)
	link, err := netlink.LinkByName("cw0")
	require.NoError(t, err)
	c := testConfig()
	c.Index = link.Attrs().Index
	ctx := context.Background()
	require.NoError(t, h.Apply(ctx, plan(t, c)))
	sh(t, "ip link set cw0 down; ip link set cw0 name x0; ip link add cw0 type bridge; ip link set cw0 up")
	d, err := h.Drift(ctx, Kinds...)
	require.NoError(t, err)
	require.Len(t, d, 1)
	require.Equal(t, Link, d[0].Kind)
	require.Equal(t, []string{"# the tunnel's device is called x0"}, d[0].Extra)
	require.ErrorIs(t, h.Apply(ctx, plan(t, c)), ErrNoInterface)

	c.Interface = "x0"
	p := plan(t, c)
	require.NoError(t, h.Apply(ctx, p))
	requireFound(t, h, p)
	require.Contains(t, sh(t, "ip -d link show cw0"), "bridge")
	require.NotContains(t, sh(t, "ip addr show cw0"), "198.18")

	c.Interface = "cw0" // as 'leave' knows it
	require.NoError(t, NewHost(h.stateDir, zerolog.Nop()).Remove(ctx, c))
	require.Contains(t, sh(t, "ip -d link show cw0"), "bridge")
	require.NotContains(t, sh(t, "ip link"), "x0:")
	require.Empty(t, sh(t, "ip route show table 51806; ip rule | grep 51806 || :"))
}

// A device that is gone, whose name another link took: nothing is put on that, what was routed is
// closed, and it is left alone when all is taken back.
func TestReplacedLink(t *testing.T) {
	h := host(t)
	link, err := netlink.LinkByName("cw0")
	require.NoError(t, err)
	c := testConfig()
	c.Index, c.Held = link.Attrs().Index, c.Routes
	ctx := context.Background()
	require.NoError(t, h.Apply(ctx, plan(t, c)))
	sh(t, "ip link del cw0; ip link add cw0 type bridge; ip addr add 203.0.113.7/24 dev cw0; ip link set cw0 up")
	c.Index = NoDevice
	p := plan(t, c)
	err = h.Apply(ctx, p)
	require.ErrorIs(t, err, ErrNoInterface)
	require.Len(t, failures(t, err), 1)
	require.NotContains(t, sh(t, "ip addr show cw0"), "198.18")
	require.Contains(t, sh(t, "ip addr show cw0"), "203.0.113.7/24")
	routes := sh(t, "ip route show table 51806; ip -6 route show table 51806")
	require.NotContains(t, routes, "dev cw0")
	require.Contains(t, routes, "unreachable")
	d, err := h.Drift(ctx, Kinds...)
	require.NoError(t, err)
	require.Len(t, d, 1)
	require.Equal(t, Link, d[0].Kind)

	require.NoError(t, NewHost(h.stateDir, zerolog.Nop()).Remove(ctx, testConfig()))
	require.Contains(t, sh(t, "ip addr show cw0"), "203.0.113.7/24")
	require.Empty(t, sh(t, "ip route show table 51806; ip rule | grep 51806 || :"))
}

// A device that was renamed while no agent ran is taken back too, by its index and address; one
// that only has the index is another.
func TestLinkRenamedWhileStopped(t *testing.T) {
	h, c := host(t), testConfig()
	ctx := context.Background()
	require.NoError(t, h.Apply(ctx, plan(t, c)))
	sh(t, "ip link set cw0 down; ip link set cw0 name x0; ip link add cw0 type bridge")
	record, err := os.ReadFile(filepath.Join(h.stateDir, recordName))
	require.NoError(t, err)
	require.NoError(t, NewHost(h.stateDir, zerolog.Nop()).Remove(ctx, c))
	require.NotContains(t, sh(t, "ip link"), "x0:")
	require.Contains(t, sh(t, "ip -d link show cw0"), "bridge")

	var rec struct{ Index int }
	require.NoError(t, json.Unmarshal(record, &rec))
	require.NotZero(t, rec.Index)
	sh(t, "ip link add x1 index "+strconv.Itoa(rec.Index)+" type bridge")
	require.NoError(t, os.WriteFile(filepath.Join(h.stateDir, recordName), record, 0o600))
	require.NoError(t, NewHost(h.stateDir, zerolog.Nop()).Remove(ctx, c))
	require.Contains(t, sh(t, "ip link"), "x1:")
}

// What somebody undoes while a plan is applied is put right and told, however late.
func TestUndoneWhileApplying(t *testing.T) {
	for meddle, want := range map[string][]Drift{
		"sysctl -qw net.ipv4.conf.pods.forwarding=0 net.ipv6.conf.all.forwarding=0": {
			{Sysctls, "net.ipv4.conf.pods.forwarding", []string{"sysctl -w net.ipv4.conf.pods.forwarding=" + forwardMark}, []string{"sysctl -w net.ipv4.conf.pods.forwarding=0"}},
			{Sysctls, forward6, []string{"sysctl -w " + forward6 + "=" + forwardMark}, []string{"sysctl -w " + forward6 + "=0"}},
		},
		"ip link set cw0 down": {{Link, "link", []string{"ip link set cw0 up"}, nil}},
	} {
		t.Run(meddle, func(t *testing.T) {
			h, p := host(t), plan(t, testConfig())
			ctx := context.Background()
			p = used(t, h, p)
			require.NoError(t, h.Apply(ctx, p))
			require.Empty(t, h.PutRight())
			real, err := nftPath()
			require.NoError(t, err)
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(dir, "nft"), []byte("#!/bin/sh\nmkdir "+dir+"/once && "+meddle+"\nexec "+real+` "$@"`+"\n"), 0o755))
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
			require.NoError(t, h.Apply(ctx, p))
			requireFound(t, h, p)
			require.Equal(t, want, h.PutRight())
		})
	}
}
