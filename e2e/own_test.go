package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// owning is n1 with networks of its own inside and around what n2's site has.
//
//	10.2.240.7  ── docker9 ─┐
//	10.9.0.7    ── docker8 ─┤
//	10.2.250.7  ── tun9 ────┤ n1 ── eth0 ── hub (its gateway), behind which 10.2.200.7 and 10.10.0.7 are
//	10.1.1.11   ── pods0 ───┘        └───── n2 10.2.0.0/16: pods 10.2.1.11, 10.2.240.7, LAN 10.2.3.7
type owning struct {
	t     *testing.T
	s     *System
	n, n2 *smallNode
	own   *lab.Capture // of what is the host's own, in the tunnel
}

// way waits until n1's kernel sends packets for an address by an interface.
func (o *owning) way(addr, dev string) {
	o.t.Helper()
	require.NoError(o.t, lab.Wait(step(o.t), addr+" by "+dev, func(ctx context.Context) error {
		out, err := o.n.Host.Run(ctx, "ip", "route", "get", addr)
		if err == nil && !strings.Contains(out, "dev "+dev+" ") {
			err = errors.New(out)
		}
		return err
	}))
}

// at is the same at once.
func (o *owning) at(addr, dev string) {
	o.t.Helper()
	require.Contains(o.t, o.n.Host.Sh("ip route get "+addr), "dev "+dev+" ")
}

// networks makes docker9 and the point-to-point link; they are the host's own then.
func (o *owning) networks() {
	o.n.Host.Sh("ip link set docker9 up; ip addr add 10.2.240.1/24 dev docker9; ip -6 addr add fd10:2:240::1/64 dev docker9 nodad; ip addr add 10.2.250.1 peer 10.2.250.7/32 dev tun9")
	o.way("10.2.240.7", "docker9")
	o.way("10.2.250.7", "tun9")
	o.way("fd10:2:240::7", "docker9")
}

// gone takes them away; their packets go into the tunnel at once.
func (o *owning) gone() {
	o.n.Host.Sh("ip addr flush dev docker9; ip addr flush dev tun9")
	o.at("10.2.240.7", "cw0")
	o.at("10.2.250.7", "cw0")
	o.way("fd10:2:240::7", "cw0") // of IPv6 the kernel takes no copy away with an address; nobody is there meanwhile
}

// reach wants each of the host's own networks to answer, and the rest of the other site's range.
func (o *owning) reach(own ...string) {
	o.t.Helper()
	for _, a := range append(own, HubAddr, o.n2.LAN, o.n2.Pod.V4, o.n2.Pod.V6, "10.2.3.7") {
		require.NoError(o.t, Ping(step(o.t), o.n.Host, a), a)
	}
	require.NoError(o.t, Ping(step(o.t), o.n.Pod.Host, o.n2.Pod.V4))
	require.NoError(o.t, Ping(step(o.t), o.n2.Pod.Host, o.n.Pod.V4), "and back")
}

// state is what n1 has of its own: routes and rules that are not the agent's.
func (o *owning) state() string {
	return o.n.Host.Sh("ip -4 route show table main; ip -6 route show table main | grep -v cw0; ip -4 rule | grep -v 'proto 202'; ip -6 rule | grep -v 'proto 202'")
}

// explain wants a flow from n1's pod to name a cause first, and returns what mends it.
func (o *owning) explain(from, to, cause string) (mend string) {
	o.t.Helper()
	require.NoError(o.t, lab.Wait(step(o.t), cause, func(ctx context.Context) error {
		r, err := (&explained{t: o.t, System: o.s}).ask(ctx, from, to)
		if err != nil {
			return err
		}
		if len(r.Faults) == 0 || r.Faults[0].Cause != cause || r.Faults[0].Node != "n1" {
			return errors.New(verdictText(r))
		}
		mend = r.Faults[0].Mend
		return nil
	}))
	o.t.Logf("%s to %s: %s: %s", from, to, cause, mend)
	return mend
}

// views wants a line of each view that has all of some words.
func (o *owning) views(status, doctor, hub []string) {
	o.t.Helper()
	line := func(text string, words []string) error {
		for l := range strings.Lines(text) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(l, w) }) {
				return nil
			}
		}
		return fmt.Errorf("no line has %q:\n%s", words, text)
	}
	require.NoError(o.t, Wait(o.t, func() error {
		out, err := o.n.Agent(step(o.t), "status")
		if err == nil {
			err = line(out, status)
		}
		return err
	}), "causeway-agent status")
	out, err := o.n.Host.Run(step(o.t), o.s.Bin.Agent, "doctor", "--state-dir", o.n.StateDir, "--config", o.n.Config)
	if err != nil {
		out = failed(o.t, err).Stdout
	}
	require.NoError(o.t, line(out, doctor), "causeway-agent doctor")
	require.NoError(o.t, lab.Wait(within(o.t, 15*time.Second), "the hub's word of it", func(context.Context) error {
		ctx := step(o.t)
		shown, err := o.s.CLI(ctx, "node", "show", "n1")
		if err == nil {
			err = line(shown, hub)
		}
		if err != nil {
			return fmt.Errorf("node show: %w", err)
		}
		out, err := o.s.CLI(ctx, "doctor", "-o", "json") // which ends with 4 for the routes that wait
		if err != nil {
			out = failed(o.t, err).Stdout
		}
		var c api.Checkup
		if err := json.Unmarshal([]byte(out), &c); err != nil {
			return err
		}
		for _, f := range c.Findings {
			if f.Where == "n1" && line(f.Summary, hub) == nil {
				return nil
			}
		}
		return fmt.Errorf("doctor: %+v", c.Findings)
	}))
}

// accept writes what n1 accepts besides the private ranges, and has it read.
func (o *owning) accept(l ...string) {
	o.t.Helper()
	require.NoError(o.t, o.n.Configure(nil, append(l, "10.0.0.0/8", "fd10::/16")))
	o.n.Proc.Signal(syscall.SIGHUP)
}

// A host's own networks inside, around and as large as another site's range: what is its own stays
// local, the rest goes on, nothing of either is seen where the other is, every view says so, and
// what is printed as a mend cuts the host from nothing. An operator who names its own network all
// the same gets that, but for the one in which gateway and hub are.
func TestOwnNetworks(t *testing.T) {
	lab.Counts(t)
	t.Parallel()
	const range2, range6, as, wide, mine = "10.2.0.0/16", "fd10:2::/32", "10.9.0.0/24", "10.10.1.0/24", "203.0.113.0/24"
	l, hub, nodes := smallHosts(t, 2)
	n, n2 := nodes[0], nodes[1]
	o := &owning{t: t, n: n, n2: n2}
	c9 := n.Host.PodNet("docker9", "10.2.240.1/24", "fd10:2:240::1/64").Pod("c9", "10.2.240.7/24", "fd10:2:240::7/64")
	n.Host.PodNet("docker8", "10.9.0.1/24").Pod("c8", "10.9.0.7/24")
	vpn := l.Host("vpn")
	l.Wire(vpn, "eth0", []string{"10.2.250.7/32"}, n.Host, "tun9", nil)
	vpn.Sh("ip route add 10.2.250.1 dev eth0")
	// n2's announced range has a LAN of its own and pods, one of them with an address that n1's Docker has too.
	n2.Host.PodNet("lan3", "10.2.3.1/24").Pod("lan3-7", "10.2.3.7/24")
	n2.Host.PodNet("pods240", "10.2.240.1/24").Pod("p240", "10.2.240.7/24")
	n2.Host.PodNet("pods9", "10.9.0.1/24").Pod("p9", "10.9.0.9/24")
	n2.Host.PodNet("pods10", "10.10.1.1/24").Pod("p10", "10.10.1.9/24")
	o.s = startSmall(t, l, hub, nodes)
	hub.Sh("ip addr add 10.2.200.7/32 dev lo; ip addr add 10.10.0.7/32 dev lo")
	n.Host.Sh("ip route replace default via " + HubAddr + "; ip route add 10.2.200.0/24 via " + HubAddr + "; ip route add 10.10.0.0/16 via " + HubAddr)
	n.Host.Sh("ip addr flush dev docker9")
	joinSmall(t, o.s, nodes, 1)
	var err error
	n2.Node, err = o.s.Join(step(t), NodeSpec{Name: "n2", Site: "s2", Host: n2.Host, Routes: []string{range2, range6, as, wide, mine}})
	require.NoError(t, err)
	require.NoError(t, o.s.WaitReady(step(t), "n1", "n2"))
	for _, r := range []string{range2, range6} {
		require.NoError(t, o.s.Approve(step(t), "n2", r))
		require.NoError(t, n.Installed(step(t), r))
	}

	// What is the host's own, and what is not: probes of paths, which try a peer's addresses, are neither.
	const local = "10.2.200.0/24 or dst net 10.2.240.0/24 or dst host 10.2.250.7 or dst net fd10:2:240::/64"
	clear, err := n.Host.Capture("eth0", "(icmp and dst net "+range2+" and not dst net 10.2.200.0/24) or (icmp6 and dst net "+range6+")")
	require.NoError(t, err)
	away, err := n.Host.Capture("tun9", "icmp and dst net "+range2+" and not dst net 10.2.250.0/24")
	require.NoError(t, err)
	begun := time.Now()
	took := func(what string) {
		t.Logf("%-70s %.1f s", what, time.Since(begun).Seconds())
		begun = time.Now()
	}
	mine0 := []string{"10.2.200.7", "10.9.0.7", "10.10.0.7"}
	o.reach(mine0...)
	took("at first")

	// They appear after the route, leave, appear while the agent is stopped, and before the route.
	o.networks()
	inside := append([]string{"10.2.240.7", "10.2.250.7", "fd10:2:240::7"}, mine0...)
	o.own, err = n.Host.Capture("cw0", "dst net "+local)
	require.NoError(t, err)
	o.reach(inside...)
	o.views([]string{"local", "10.2.240.0/24 of docker9", range2, "n2"}, []string{"local networks", "10.2.240.0/24 on docker9"}, []string{"10.2.240.0/24 of docker9", "10.2.250.7/32 of tun9", range2})
	took("networks appear after the route, and every view says so")
	before := o.state()
	for _, ends := range [][2]string{{n.Pod.V4, "10.2.240.7"}, {"10.2.240.7", n.Pod.V4}} {
		mend := o.explain(ends[0], ends[1], "stays-local")
		require.Contains(t, mend, "give one of the two sites another range; 10.2.240.0/24 in accept: would take 10.2.240.0/24 of docker9 from n1")
	}
	require.Contains(t, o.explain(n.Pod.V4, "10.2.200.7", "stays-local"), "name 10.2.200.0/24 exactly in accept: of n1, which takes 10.2.200.0/24 by gateway "+HubAddr)
	took("explained from both ends")
	// The halves of a default route by another VPN.
	n.Host.Sh("ip route add 0.0.0.0/1 via 10.2.250.7 dev tun9; ip route add 128.0.0.0/1 via 10.2.250.7 dev tun9")
	for range 5 {
		o.reach(inside...)
	}
	n.Host.Sh("ip route del 0.0.0.0/1; ip route del 128.0.0.0/1")
	require.Equal(t, before, o.state())
	took("the halves of a default route by another VPN")
	_, err = o.s.CLI(step(t), "route", "reject", "n2", range2)
	require.NoError(t, err)
	require.NoError(t, lab.Wait(step(t), "the range to be closed", func(ctx context.Context) error {
		if PingOnce(ctx, n.Host, n2.Pod.V4) == nil {
			return errors.New("it is open")
		}
		return nil
	}))
	for _, a := range inside {
		require.NoError(t, PingOnce(step(t), n.Host, a), "while the range is closed: %s", a)
	}
	require.NoError(t, o.s.Approve(step(t), "n2", range2))
	require.NoError(t, n.Installed(step(t), range2))
	o.reach(inside...)
	took("networks are there before the route")
	require.NoError(t, o.own.Stop())
	require.Empty(t, n.Host.Sh("tcpdump -nr "+o.own.File+" 2>/dev/null"), "the host's own in the tunnel")
	o.gone()
	require.NoError(t, n.Proc.Stop(step(t)))
	n.Host.Sh("ip addr add 10.2.240.1/24 dev docker9")
	require.NoError(t, n.Start())
	require.NoError(t, o.s.WaitReady(step(t), "n1"))
	o.way("10.2.240.7", "docker9")
	require.NoError(t, Ping(step(t), n.Host, "10.2.240.7"))
	require.NoError(t, Ping(step(t), c9, "10.2.240.1"))
	require.NoError(t, n.Proc.Stop(step(t)))
	n.Host.Sh("ip addr flush dev docker9")
	o.at("10.2.240.7", "cw0")
	require.NoError(t, n.Start())
	require.NoError(t, o.s.WaitReady(step(t), "n1"))
	o.at("10.2.240.7", "cw0")
	o.networks()
	took("networks appear and leave while the agent is stopped")

	// Ranges that are the host's own, or a part of it: refused, and what is advised is applied.
	for _, r := range []string{as, wide, mine} {
		require.NoError(t, o.s.Approve(step(t), "n2", r))
	}
	before = o.state()
	mend := o.explain(n.Pod.V4, "10.9.0.9", "route-overlaps")
	require.Equal(t, "give one of the two sites another range; 10.9.0.0/24 in accept: would take 10.9.0.0/24 of docker8 from n1", mend)
	mend = o.explain(n.Pod.V4, n2.LAN, "route-refused")
	require.Contains(t, mend, "give one of the two sites another range; accept: of n1 cannot take 203.0.113.0/24 of eth0 (with ")
	mend = o.explain(n.Pod.V4, "10.10.1.9", "route-overlaps")
	named := regexp.MustCompile(`^name (\S+) exactly in accept: of n1, which takes 10.10.1.0/24, a part of 10.10.0.0/16 by gateway ` + HubAddr).FindStringSubmatch(mend)
	require.NotNil(t, named, mend)
	o.accept(named[1])
	o.way("10.10.1.9", "cw0")
	require.NoError(t, Ping(step(t), n.Pod.Host, "10.10.1.9"), "what was advised helps")
	o.reach(inside...)
	require.Equal(t, before, o.state())
	took("whole ranges, and the advice that helps")

	// Named all the same.
	o.accept(as, mine, "10.2.240.0/24")
	o.way("10.9.0.7", "cw0")
	o.views([]string{"taken", "10.9.0.0/24 of docker8"}, []string{"taken by accept:", "10.9.0.0/24 on docker8"}, []string{"accept: takes from this host", "10.9.0.0/24 of docker8"})
	o.at(HubAddr, "eth0")
	o.at(n2.LAN, "eth0")
	for _, a := range []string{"10.2.250.7", "10.2.200.7", "10.10.0.7", HubAddr, n2.LAN} {
		require.NoError(t, Ping(step(t), n.Host, a), a)
	}
	require.NoError(t, n.Proc.Stop(step(t)))
	require.NoError(t, n.Start())
	require.NoError(t, o.s.WaitReady(step(t), "n1"))
	o.at(HubAddr, "eth0")
	require.NoError(t, Ping(step(t), n.Host, HubAddr))
	require.NoError(t, Ping(step(t), n.Pod.Host, n2.Pod.V4))
	require.Equal(t, before, o.state())
	o.accept()
	for _, a := range []string{"10.9.0.7", "10.2.240.7"} {
		require.NoError(t, Ping(step(t), n.Host, a), "it is the host's own again: %s", a)
	}
	o.reach(inside...)
	took("named all the same")

	require.NoError(t, clear.Stop())
	require.NoError(t, away.Stop())
	for _, c := range []*lab.Capture{clear, away} {
		out := n.Host.Sh("tcpdump -nr " + c.File + " 2>/dev/null")
		require.Empty(t, out[:min(len(out), 2000)], "the other site's range where it does not belong")
	}
}
