package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	vns "github.com/vishvananda/netns"
)

// Host is a network namespace: a host, router, switch or pod.
type Host struct {
	Name string // in the lab
	lab  *Lab
	kind string
	ns   string // name of the namespace

	links []string // for the report
	mtu   int      // of a switch

	queues int // netfilter queues in use, by Delay
}

// Host makes a host without links.
func (l *Lab) Host(name string) *Host { return l.host(name, "host") }

func (l *Lab) host(name, kind string) *Host {
	h := &Host{Name: name, lab: l, kind: kind, ns: l.prefix + name}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		l.fail(fmt.Errorf("host %s: the lab is closed", name))
	}
	for _, o := range l.hosts {
		if o.Name == name {
			l.fail(fmt.Errorf("host %s is there already", name))
		}
	}
	l.hosts = append(l.hosts, h)
	if out, err := command("ip", "netns", "add", h.ns); err != nil {
		l.fail(fmt.Errorf("make namespace %s: %w: %s", h.ns, err, out))
	}
	h.sh(`ip link set lo up
		sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0 net.ipv4.ping_group_range="0 2147483647" 2>/dev/null || :`)
	return h
}

// Namespace is the name under /run/netns.
func (h *Host) Namespace() string { return h.ns }

// Dir is a directory of the host's own in the lab's.
func (h *Host) Dir() string {
	d := filepath.Join(h.lab.Dir, h.Name)
	if err := os.MkdirAll(d, 0o755); err != nil {
		h.lab.fail(fmt.Errorf("make directory: %w", err))
	}
	return d
}

// Switch makes an Ethernet switch: a namespace with a bridge.
func (l *Lab) Switch(name string) *Host {
	s := l.host(name, "switch")
	s.mtu = 1500
	s.sh("ip link add br0 type bridge; ip link set br0 up")
	return s.NoBridgeFilter()
}

// NoBridgeFilter keeps netfilter from frames that the host's bridges pass on,
// where a module of the kernel (br_netfilter) hands them over: no switch does,
// and it costs each frame a third of its way.
func (h *Host) NoBridgeFilter() *Host {
	h.sh("for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 >$f; done")
	return h
}

// MTU sets the MTU of a switch's ports; links made later get it at both ends.
func (h *Host) MTU(mtu int) *Host {
	h.mtu = mtu
	h.sh(fmt.Sprintf("ip link set br0 mtu %d", mtu))
	return h
}

// Link joins the host to a switch by an interface of that name with addresses
// such as 192.168.1.2/24.
func (h *Host) Link(dev string, sw *Host, addrs ...string) *Host {
	if sw.kind != "switch" {
		h.lab.fail(fmt.Errorf("link %s of %s: %s is no switch", dev, h.Name, sw.Name))
	}
	h.lab.mu.Lock()
	h.lab.links++
	port := fmt.Sprintf("p%d", h.lab.links)
	h.lab.mu.Unlock()
	h.sh(fmt.Sprintf("ip link add %s mtu %d type veth peer name %s mtu %d netns %s", dev, sw.mtu, port, sw.mtu, sw.ns))
	sw.sh(fmt.Sprintf("ip link set %s master br0 up", port))
	h.up(dev, addrs)
	h.links = append(h.links, fmt.Sprintf("%s (%s) in %s", dev, strings.Join(addrs, ", "), sw.Name))
	return h
}

// Wire joins two hosts by a cable, without a switch.
func (l *Lab) Wire(a *Host, devA string, addrsA []string, b *Host, devB string, addrsB []string) {
	a.sh(fmt.Sprintf("ip link add %s type veth peer name %s netns %s", devA, devB, b.ns))
	a.up(devA, addrsA)
	b.up(devB, addrsB)
	a.links = append(a.links, fmt.Sprintf("%s (%s) to %s", devA, strings.Join(addrsA, ", "), b.Name))
	b.links = append(b.links, fmt.Sprintf("%s (%s) to %s", devB, strings.Join(addrsB, ", "), a.Name))
}

func (h *Host) up(dev string, addrs []string) {
	h.sh("ip link set " + dev + " up")
	h.Addr(dev, addrs...)
}

// Addr adds addresses to an interface.
func (h *Host) Addr(dev string, addrs ...string) *Host {
	var b strings.Builder
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			h.lab.fail(fmt.Errorf("address of %s on %s: %w", dev, h.Name, err))
		}
		nodad := ""
		if p.Addr().Is6() {
			nodad = " nodad"
		}
		fmt.Fprintf(&b, "ip addr add %s dev %s%s\n", p, dev, nodad)
	}
	h.sh(b.String())
	return h
}

// HasAddr reports whether one of the host's interfaces has an address.
func (h *Host) HasAddr(addr string) bool {
	return strings.Contains(h.sh("ip -o addr show"), " "+addr+"/")
}

// Default sets the default routes, one gateway for each address family.
func (h *Host) Default(gateways ...string) *Host {
	for _, g := range gateways {
		h.Route("default", g)
	}
	return h
}

// Route adds a route to prefix (or "default") by a gateway.
func (h *Host) Route(prefix, gateway string) *Host {
	g, err := netip.ParseAddr(gateway)
	if err != nil {
		h.lab.fail(fmt.Errorf("route %s on %s: %w", prefix, h.Name, err))
	}
	f := "-4"
	if g.Is6() {
		f = "-6"
	}
	h.sh(fmt.Sprintf("ip %s route replace %s via %s", f, prefix, g))
	h.links = append(h.links, fmt.Sprintf("%s via %s", prefix, g))
	return h
}

// Sysctl sets kernel settings of the host, each written as key=value.
func (h *Host) Sysctl(settings ...string) *Host {
	h.sh("sysctl -qw " + strings.Join(settings, " "))
	return h
}

// Nft adds to the host's nftables; text is as 'nft -f' takes it.
func (h *Host) Nft(text string) *Host {
	if out, err := h.output(text, "nft", "-f", "-"); err != nil {
		h.lab.fail(fmt.Errorf("nftables of %s: %w: %s", h.Name, err, out))
	}
	return h
}

// Sh runs a shell script on the host and returns what it printed; the test
// fails if the script does.
func (h *Host) Sh(script string) string { return h.sh(script) }

func (h *Host) sh(script string) string {
	out, err := h.output("", "sh", "-ec", script)
	if err != nil {
		h.lab.fail(fmt.Errorf("on %s: %s: %w\n%s", h.Name, script, err, out))
	}
	return out
}

// Settle waits until the host's links have their carriers and link-local
// addresses, which come a moment after the links.
func (h *Host) Settle(ctx context.Context) error {
	return Wait(ctx, "the links of "+h.Name, func(context.Context) error {
		out, err := h.output("", "sh", "-c", "exec 2>/dev/null; ip -6 addr; ip link")
		for _, s := range []string{"tentative", "NO-CARRIER", "LOWERLAYERDOWN"} {
			if err == nil && strings.Contains(out, s) {
				err = errors.New(s)
			}
		}
		if err == nil {
			err = h.solicitable()
		}
		return err
	})
}

// solicitable is an error while an IPv6 address is not heard yet by who looks
// for it: the kernel joins the address's group some time after it was added, and
// a solicitation before that is repeated only after a second.
func (h *Host) solicitable() error {
	out, err := h.output("", "sh", "-c", "exec 2>/dev/null; ip -o link; cat /proc/net/if_inet6 /proc/net/igmp6")
	if err != nil {
		return err
	}
	arp, joined, missing := map[string]bool{}, map[string]bool{}, []string{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		switch {
		case len(f) > 2 && strings.HasSuffix(f[0], ":"): // 2: veth1@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> ...
			dev, _, _ := strings.Cut(strings.TrimSuffix(f[1], ":"), "@")
			arp[dev] = strings.Contains(f[2], "LOWER_UP") && !strings.Contains(f[2], "NOARP") && !strings.Contains(f[2], "LOOPBACK")
		case len(f) == 6 && len(f[0]) == 32: // fd0000aa0000…02 02 60 00 82 veth1
			if dev := f[5]; arp[dev] {
				missing = append(missing, dev+" ff0200000000000000000001ff"+f[0][26:])
			}
		case len(f) > 3 && len(f[2]) == 32: // 2 veth1 ff02…ff000002 1 00000004 0
			joined[f[1]+" "+f[2]] = true
		}
	}
	for _, m := range missing {
		if !joined[m] {
			return errors.New("not in group: " + m)
		}
	}
	return nil
}

// Do runs f on a thread that is in the host's namespace: what f opens, reads
// under /proc/sys/net and starts belongs there. Goroutines that f starts do
// not.
func (h *Host) Do(f func() error) error {
	errc := make(chan error, 1)
	go func() {
		errc <- func() error {
			runtime.LockOSThread()
			old, err := vns.Get()
			if err != nil {
				runtime.UnlockOSThread()
				return fmt.Errorf("get namespace: %w", err)
			}
			defer old.Close()
			ns, err := vns.GetFromPath("/run/netns/" + h.ns)
			if err != nil {
				runtime.UnlockOSThread()
				return fmt.Errorf("open namespace %s: %w", h.ns, err)
			}
			defer ns.Close()
			if err := vns.Set(ns); err != nil {
				runtime.UnlockOSThread()
				return fmt.Errorf("enter namespace %s: %w", h.ns, err)
			}
			err = f()
			if e := vns.Set(old); e != nil {
				return err // the thread stays locked and ends with this goroutine
			}
			runtime.UnlockOSThread()
			return err
		}()
	}()
	return <-errc
}
