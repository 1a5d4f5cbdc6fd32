package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/agent/config"
	"causeway/agent/debug"
	"causeway/agent/held"
	"causeway/internal/shortage"
	"causeway/netns"
	"causeway/netns/lab"
	"causeway/netns/look"
	"causeway/protocol"
)

// labHost is the real netns.Host on a lab's host.
type labHost struct {
	*netns.Host
	on *lab.Host
}

// labLook is the real look.Host there.
type labLook struct {
	*look.Host
	on *lab.Host
}

func within[T any](on *lab.Host, f func() (T, error)) (v T, err error) {
	err = on.Do(func() (err error) {
		v, err = f()
		return err
	})
	return v, err
}

func (h labHost) Apply(ctx context.Context, p netns.Plan) error {
	return h.on.Do(func() error { return h.Host.Apply(ctx, p) })
}

func (h labHost) Found(ctx context.Context, c netns.Config) ([]string, error) {
	return within(h.on, func() ([]string, error) { return h.Host.Found(ctx, c) })
}

func (h labHost) ForeignRoutes(ctx context.Context, c netns.Config) ([]netns.Foreign, error) {
	return within(h.on, func() ([]netns.Foreign, error) { return h.Host.ForeignRoutes(ctx, c) })
}

func (h labHost) Gateways(ctx context.Context, c netns.Config) ([]netip.Addr, error) {
	return within(h.on, func() ([]netip.Addr, error) { return h.Host.Gateways(ctx, c) })
}

func (h labHost) Ranges(ctx context.Context, c netns.Config) ([]netip.Prefix, error) {
	return within(h.on, func() ([]netip.Prefix, error) { return h.Host.Ranges(ctx, c) })
}

func (h labHost) Apart(ctx context.Context, c netns.Config) ([]netip.Addr, error) {
	return within(h.on, func() ([]netip.Addr, error) { return h.Host.Apart(ctx, c) })
}

func (h labHost) RouteMTUs(ctx context.Context, c netns.Config) (map[netip.Prefix]int, error) {
	return within(h.on, func() (map[netip.Prefix]int, error) { return h.Host.RouteMTUs(ctx, c) })
}

func (h labLook) ForwardBlockedBy(ctx context.Context) (string, error) {
	return within(h.on, func() (string, error) { return h.Host.ForwardBlockedBy(ctx) })
}

func (h labLook) Try(ctx context.Context, inject look.Inject) (look.Trial, error) {
	return within(h.on, func() (look.Trial, error) { return h.Host.Try(ctx, inject) })
}

func (h labHost) Watch(ctx context.Context) (<-chan []netns.Change, error) {
	return within(h.on, func() (<-chan []netns.Change, error) { return h.Host.Watch(ctx) })
}

func (h labHost) Drift(ctx context.Context, k ...netns.Kind) ([]netns.Drift, error) {
	return within(h.on, func() ([]netns.Drift, error) { return h.Host.Drift(ctx, k...) })
}

func (h labLook) Passing() ([]look.Passing, error) { return within(h.on, h.Host.Passing) }

func (h labHost) Mend(ctx context.Context, l []netns.Drift) error {
	return h.on.Do(func() error { return h.Host.Mend(ctx, l) })
}

// site is an agent between a tunnel's double and a real kernel: on a LAN with a
// gateway, with pods, a network of Docker's, and a capture of what leaves in clear.
type site struct {
	*world
	on      *lab.Host
	capture *lab.Capture
}

func newSite(t *testing.T) *site {
	l := lab.New(t)
	lan := l.Switch("lan")
	l.Host("gw").Link("eth0", lan, "192.168.7.1/24", "fd99::1/64")
	on := l.Host("n").Link("eth0", lan, "192.168.7.2/24", "fd99::2/64").Default("192.168.7.1", "fd99::1")
	on.Sh(`ip link add pods type bridge; ip link set pods up; ip addr add 10.2.0.1/24 dev pods
		ip link add docker9 type bridge; ip link set docker9 up; ip addr add 10.9.5.1/24 dev docker9
		ip tuntap add cw0 mode tun`)
	require.NoError(t, on.Settle(t.Context()))
	s := &site{world: newWorld(t), on: on}
	h := netns.NewHost(t.TempDir(), zerolog.Nop())
	s.real, s.looks = labHost{h, on}, labLook{look.At(h), on}
	t.Cleanup(func() { // tables are listened to until they go
		require.NoError(t, on.Do(func() error {
			return h.Remove(context.Background(), netns.Config{Interface: "cw0", Table: netns.DefaultTable})
		}))
	})
	var err error
	s.capture, err = on.Capture("eth0", "dst host 172.31.0.1 or dst net 10.0.0.0/8 or dst net 192.168.0.0/16 and not dst net 192.168.7.0/24 or dst net fd10::/16")
	require.NoError(t, err)
	return s
}

// by is where the kernel sends a packet: a device, or "closed".
func (s *site) by(addr string) string {
	out := s.on.Sh("ip route get " + addr + " 2>&1 || :")
	if strings.Contains(out, "No route to host") {
		return "closed"
	}
	_, dev, _ := strings.Cut(out, " dev ")
	dev, _, _ = strings.Cut(dev, " ")
	return dev
}

func (s *site) want(what string, ways map[string]string) {
	s.t.Helper()
	for addr, dev := range ways {
		require.Equal(s.t, dev, s.by(addr), "%s: %s", what, addr)
	}
}

// none ends the capture after a packet of its own and wants no other in it.
func (s *site) none() {
	s.t.Helper()
	s.on.Sh("ping -nc1 -W1 172.31.0.1 >/dev/null || :")
	require.NoError(s.t, s.capture.Stop())
	out := s.on.Sh("tcpdump -nr " + s.capture.File + " 2>/dev/null")
	require.Contains(s.t, out, "> 172.31.0.1", "the capture sees what leaves in clear")
	require.Equal(s.t, 1, strings.Count(out, "\n"), "in clear on the LAN:\n%s", out)
}

// What a hub that was taken over says in netmaps, with a real kernel: of what peers had,
// no packet goes onto the LAN, and of what is the host's own none goes to a peer.
func TestHostileNetmaps(t *testing.T) {
	lab.Counts(t)
	s := newSite(t)
	s.start()
	s.tunnel.setBound(true)
	h := s.session()
	version := uint64(1)
	netmap := func(own []string, routes ...string) protocol.NetmapAck {
		n := testNetmap(version, testPeer(3, routes...))
		version++
		for _, o := range own {
			n.Self.Routes = append(n.Self.Routes, protocol.AnnouncedRoute{Prefix: netip.MustParsePrefix(o), State: protocol.RouteApproved})
		}
		return h.give(n)
	}
	reasons := func(a protocol.NetmapAck) (out string) {
		for _, r := range a.Refused {
			out += fmt.Sprintln(r.Peer, r.Prefix, r.Reason)
		}
		return out
	}
	theirs := []string{"10.3.0.0/16", "10.9.0.0/16", "fd10:3::/64"}
	ack := netmap(nil, theirs...)
	require.Empty(t, ack.Refused)
	require.Empty(t, ack.Errors)
	usual := map[string]string{"10.3.0.9": "cw0", "10.9.7.7": "cw0", "fd10:3::9": "cw0", "10.9.5.9": "docker9", "10.2.0.9": "pods", "192.168.7.9": "eth0"}
	s.want("at first", usual)
	for _, a := range []string{"10.3.0.9", "10.9.7.7", "fd10:3::9"} {
		p, err := s.on.Start(lab.Program{Name: "send " + a, Args: []string{"sh", "-c", "trap 'kill $!; wait; exit 0' TERM; while :; do ping -nqi0.05 -c100 -W1 " + a + " >/dev/null 2>&1 & wait $!; sleep 0.05; done"}})
		require.NoError(t, err)
		t.Cleanup(p.Kill)
		t.Cleanup(func() { p.Stop(context.Background()) })
	}

	// Another site's ranges as this node's own, whole, in parts and around them.
	ack = netmap([]string{"10.3.0.0/16", "10.3.0.0/17", "10.3.128.0/17", "10.9.7.0/24", "10.0.0.0/8", "fd10:3::/64", "fd10:3::/65"}, theirs...)
	require.Equal(t, 7, strings.Count(reasons(ack), "neither announces it nor was given it by its token"), reasons(ack))
	s.want("self.routes", usual)
	ack = netmap([]string{"10.3.0.0/16", "10.9.0.0/16", "fd10:3::/64"})
	require.Len(t, ack.Refused, 3, reasons(ack))
	closed := map[string]string{"10.3.0.9": "closed", "10.9.7.7": "closed", "fd10:3::9": "closed", "10.9.5.9": "docker9", "10.2.0.9": "pods", "192.168.7.9": "eth0"}
	s.want("self.routes instead of the peer's", closed)

	// What is the host's own, as a peer's.
	ack = netmap(nil, append(theirs, "10.2.0.0/24", "10.9.5.0/24", "10.9.5.128/25", "192.168.7.1/32", "192.168.0.0/16", "10.2.0.0/16", "fd99::/64")...)
	require.Len(t, ack.Refused, 5, reasons(ack))
	s.want("the host's own", usual)
	s.want("the host's own, around it", map[string]string{"192.168.8.8": "cw0", "192.168.7.1": "eth0", "10.2.9.9": "cw0", "10.2.0.77": "pods"})

	// A feature that nobody has, nothing at all, and ranges that come and go.
	n := testNetmap(version)
	version++
	n.Requires = []string{"everything"}
	require.NotEmpty(t, h.give(n).Refused)
	s.want("a feature that nobody has", map[string]string{"10.3.0.9": "closed", "10.9.7.7": "closed", "10.9.5.9": "docker9"})
	r := rand.New(rand.NewPCG(1, 2))
	parts := []string{"10.3.0.0/16", "10.3.0.0/17", "10.3.0.8/29", "10.3.0.9/32", "10.9.0.0/16", "10.9.4.0/22", "10.9.7.0/24", "10.0.0.0/8", "fd10:3::/64", "fd10:3::9/128", "fd10::/16"}
	rounds := 15
	if os.Getenv("CAUSEWAY_SOAK") != "" {
		rounds = 300
	}
	for range rounds {
		var some []string
		for _, p := range parts {
			if r.IntN(2) == 0 {
				some = append(some, p)
			}
		}
		require.Empty(t, netmap(nil, some...).Errors)
		for _, a := range []string{"10.3.0.9", "10.3.200.1", "10.9.7.7", "fd10:3::9"} {
			require.Contains(t, []string{"cw0", "closed"}, s.by(a), "%s with %v", a, some)
		}
		s.want("coming and going", map[string]string{"10.9.5.9": "docker9", "10.2.0.9": "pods", "192.168.7.9": "eth0"})
	}
	require.Empty(t, netmap(nil, theirs...).Refused)
	s.want("in the end", usual)

	// Networks of the host's own appear and go.
	s.on.Sh("ip link add net9 type bridge; ip link set net9 up; ip addr add 10.3.4.1/24 dev net9")
	s.eventually(func() bool { return s.by("10.3.4.9") == "net9" }, "one inside")
	s.want("one inside", usual)
	s.on.Sh("ip link del net9")
	s.want("at once", map[string]string{"10.3.4.9": "cw0"})
	s.on.Sh("ip link add net9 type bridge; ip link set net9 up; ip addr add 10.3.0.1/16 dev net9")
	s.eventually(func() bool { return s.by("10.3.4.9") == "net9" }, "one as large")
	s.on.Sh("ip link del net9")
	require.Contains(t, []string{"cw0", "closed"}, s.by("10.3.4.9"))
	s.eventually(func() bool { return s.by("10.3.4.9") == "cw0" }, "the range is back")
	s.on.Sh("ip route add 10.3.0.0/16 via 192.168.7.1")
	s.eventually(func() bool { return s.by("10.3.4.9") == "closed" }, "a gateway's, as large")
	s.on.Sh("ip route del 10.3.0.0/16")
	s.eventually(func() bool { return s.by("10.3.4.9") == "cw0" }, "the range is back")
	s.none()
}

// What a token granted is what the join said, or for an identity of before what the hub
// said last; a hub's word adds nothing later.
func TestGrantedRoutes(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	h := w.session()
	more := func(n protocol.Netmap, l ...string) protocol.Netmap {
		for _, p := range l {
			n.Self.Routes = append(n.Self.Routes, protocol.AnnouncedRoute{Prefix: netip.MustParsePrefix(p), State: protocol.RouteApproved})
		}
		return n
	}
	require.Empty(t, h.give(more(testNetmap(1), "10.7.0.0/24")).Refused, "the first netmap of an agent that was not told")
	id, err := w.store.Identity()
	require.NoError(t, err)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.7.0.0/24")}, id.Granted)
	ack := h.give(more(testNetmap(2), "10.7.0.0/24", "10.8.0.0/24"))
	require.Len(t, ack.Refused, 1)
	require.Equal(t, "10.8.0.0/24", firstRefused(ack).Prefix)
	w.stop()
	w.start()
	w.tunnel.setBound(true)
	require.Len(t, w.session().give(more(testNetmap(3), "10.7.0.0/24", "10.8.0.0/24")).Refused, 1)
	w.stop()
	// Told at the join that there are none.
	id.Granted = []netip.Prefix{}
	require.NoError(t, w.store.SaveIdentity(id))
	w.start()
	w.tunnel.setBound(true)
	require.Len(t, w.session().give(more(testNetmap(4), "10.7.0.0/24")).Refused, 1)
}

// A grant that the disk does not take holds all the same, and is stored once it can be.
func TestGrantedRoutesNotStored(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	h := w.session()
	dir := w.store.Dir()
	require.NoError(t, os.Rename(dir, dir+".away"))
	n := testNetmap(1)
	n.Self.Routes = append(n.Self.Routes, protocol.AnnouncedRoute{Prefix: netip.MustParsePrefix("10.7.0.0/24"), State: protocol.RouteApproved})
	ack := h.give(n)
	require.NotEmpty(t, ack.Errors)
	require.Empty(t, ack.Refused)
	require.NoError(t, os.Rename(dir+".away", dir))
	require.Nil(t, w.stored().Granted)
	w.agent.host.Reapply(t.Context())
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.7.0.0/24")}, w.stored().Granted)
}

// The books of an agent before this one, damaged ones and full disks.
func TestHeldAcrossStarts(t *testing.T) {
	w := newWorld(t)
	heldNow := func() (out []string) {
		var st debug.Status
		require.NoError(t, debug.NewClient(w.socket).Get(t.Context(), "/v1/status", &st))
		for _, r := range st.Held {
			out = append(out, r.Prefix.String())
		}
		return out
	}
	w.start()
	w.tunnel.setBound(true)
	require.NoFileExists(t, w.store.HeldFile(), "nothing was routed")
	h := w.session()
	h.give(testNetmap(1, testPeer(3, "10.3.0.0/24", "10.4.0.0/24")))
	h.give(testNetmap(2, testPeer(3, "10.4.0.0/24")))
	require.Equal(t, []string{"10.3.0.0/24"}, heldNow())
	require.FileExists(t, w.store.HeldFile())
	w.stop()
	w.start()
	w.tunnel.setBound(true)
	require.Equal(t, []string{"10.3.0.0/24"}, heldNow())
	w.stop()
	// Both files damaged: what the kernel and the netmap have.
	for _, f := range []string{w.store.HeldFile(), held.Copy(w.store.HeldFile())} {
		require.NoError(t, os.WriteFile(f, []byte("{"), 0o600))
	}
	w.host.ranges = []netip.Prefix{netip.MustParsePrefix("10.3.0.0/24"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("198.18.0.3/32")}
	w.host.apart = []netip.Addr{netip.MustParseAddr("10.3.0.53"), netip.MustParseAddr("10.5.0.53")}
	w.start()
	w.tunnel.setBound(true)
	require.Equal(t, []string{"10.3.0.0/24"}, heldNow())
	b, good, err := held.Load(w.store.HeldFile())
	require.NoError(t, err)
	require.True(t, good, "made anew")
	require.Len(t, b.Ranges, 2)
	require.Len(t, b.Exceptions, 1)
	require.Equal(t, netip.MustParseAddr("10.3.0.53"), b.Exceptions[0].Addr, "what was outside a range stays so")
	// By hand, by the config.
	c := debug.NewClient(w.socket)
	_, err = c.Release(t.Context(), netip.MustParsePrefix("10.4.0.0/24"))
	require.ErrorContains(t, err, "a peer has it now")
	r, err := c.Release(t.Context(), netip.MustParsePrefix("10.3.0.0/24"))
	require.NoError(t, err)
	require.Len(t, r.Released, 1)
	require.Empty(t, heldNow())
	h = w.session()
	h.give(testNetmap(3))
	require.Equal(t, []string{"10.4.0.0/24"}, heldNow())
	set := config.Default()
	set.Release = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	w.agent.Reload(t.Context(), set)
	require.Empty(t, heldNow())
	require.NoError(t, w.store.RemoveAll(false))
	require.NoFileExists(t, w.store.HeldFile())
	require.NoFileExists(t, held.Copy(w.store.HeldFile()))
}

// Without a descriptor left an agent does not start: it would take what it holds for lost, and
// write over it.
func TestNoStartForShortage(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.stop()
	id, err := w.store.Identity()
	require.NoError(t, err)
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}))
	_, err = w.buildAs(id)
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	require.True(t, shortage.Is(err), err)
	_, err = w.buildAs(id)
	require.NoError(t, err)
}

// An operator who names the host's own networks in accept: gets them into the tunnel, but for the
// one in which the gateway is, with a real kernel.
func TestNamedOwnNetworks(t *testing.T) {
	s := newSite(t)
	s.start()
	s.tunnel.setBound(true)
	h := s.session()
	theirs := testPeer(3, "10.3.0.0/16", "10.9.5.0/24", "192.168.7.0/24", "fd99::/64")
	own := map[string]string{"10.3.0.9": "cw0", "10.9.5.9": "docker9", "192.168.7.1": "eth0", "192.168.7.9": "eth0", "fd99::9": "eth0"}
	require.Len(t, h.give(testNetmap(1, theirs)).Refused, 3)
	s.want("nothing is named", own)
	set := config.Default()
	set.Named = []netip.Prefix{netip.MustParsePrefix("10.9.5.0/24"), netip.MustParsePrefix("192.168.7.0/24"), netip.MustParsePrefix("fd99::/64")}
	set.Accept = append(set.Named, netip.MustParsePrefix("10.0.0.0/8"))
	s.agent.Reload(t.Context(), set)
	s.want("named", map[string]string{"10.3.0.9": "cw0", "10.9.5.9": "cw0", "192.168.7.1": "eth0", "192.168.7.9": "eth0", "fd99::9": "eth0"})
	var st debug.Status
	require.NoError(t, debug.NewClient(s.socket).Get(t.Context(), "/v1/status", &st))
	require.Equal(t, []string{"10.9.5.0/24 of docker9"}, st.Taken)
	s.agent.Reload(t.Context(), config.Default())
	s.want("no more", own)
	s.none()
}
