package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"causeway/internal/cause"
	"causeway/netns"
	"causeway/netns/look"
)

// leastKernel is the oldest kernel that the agent is tested with.
var leastKernel = [2]int{5, 4}

// programTime bounds each program that is run.
const programTime = 10 * time.Second

// host looks at kernel, rights, clock and firewalls.
func host(ctx context.Context, c Config) []Check {
	var u unix.Utsname
	unix.Uname(&u)
	out := []Check{kernel(unix.ByteSliceToString(u.Release[:])), rights(), tun(), clock()}
	return slices.Concat(out, installed(ctx, c.Version), []Check{turnedOn()}, firewalls(ctx, c))
}

// turnedOn says which settings of the host the agent turned on.
func turnedOn() Check {
	v4, v6, marks := netns.TurnedOn()
	var l []string
	if len(v4) > 0 {
		l = append(l, few(v4)+" forward IPv4 to and from the tunnel and nothing else (net.ipv4.conf.INTERFACE.forwarding)")
	}
	if v6 {
		l = append(l, "the host forwards IPv6 to and from the tunnel and nothing else (net.ipv6.conf.all.forwarding)")
	}
	if len(marks) > 0 {
		l = append(l, few(marks)+" check sources strictly, by the mark of the tunnel's packets too (net.ipv4.conf.INTERFACE.src_valid_mark)")
	}
	if len(l) == 0 {
		return Check{Name: "settings", Status: OK, What: "the agent has turned none of the host's on"}
	}
	return Check{Name: "settings", Status: OK, What: "turned on for the tunnel, and taken back where it is needed no more: " + strings.Join(l, "; "),
		Why: "a host that shall forward for others too says so itself: sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; the agent leaves that alone"}
}

// installed compares this program with what the package manager says of its package, which
// is none or says nothing where there is no check.
func installed(ctx context.Context, version string) []Check {
	if version == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	for _, q := range [][]string{
		{"dpkg-query", "-W", "-f", "${Version}", "causeway-agent"},
		{"rpm", "-q", "--qf", "%{VERSION}", "causeway-agent"},
	} {
		out, err := exec.CommandContext(ctx, q[0], q[1:]...).Output()
		if err != nil || len(out) == 0 {
			continue
		}
		// Both write ~ where a version of a release candidate has its first -.
		if pkg := string(out); strings.Replace(pkg, "~", "-", 1) != version {
			return []Check{{Name: "package", Status: OK, What: fmt.Sprintf("this is %s, the package manager names %s: an upgrade by the hub, or by hand, replaces the program alone", version, pkg)}}
		}
		return []Check{{Name: "package", Status: OK, What: "this is " + version + ", as the package manager says"}}
	}
	return nil
}

func kernel(release string) Check {
	c := Check{Name: "kernel", Status: OK, What: "Linux " + release}
	var v [2]int
	if n, _ := fmt.Sscanf(release, "%d.%d", &v[0], &v[1]); n != 2 {
		c.Status, c.Why = Warn, "its version cannot be read"
		return c
	}
	if v[0] < leastKernel[0] || v[0] == leastKernel[0] && v[1] < leastKernel[1] {
		c.Status, c.Why, c.Do = Fail, fmt.Sprintf("the agent needs Linux %d.%d", leastKernel[0], leastKernel[1]), "install a newer kernel"
	}
	return c
}

// rights are the process's own: they say what the checks could see, and for root what an
// agent started by hand may.
func rights() Check {
	c := Check{Name: "capabilities", Status: OK, What: "CAP_NET_ADMIN is there"}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil || data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return Check{Name: "capabilities", Status: Warn, What: "this process has no CAP_NET_ADMIN", Why: "the agent needs it for interface, routes and rules; what takes it could not be looked at here",
			Do: "run 'causeway-agent doctor' as root; the package's service has the capability"}
	}
	if data[0].Effective&(1<<unix.CAP_NET_RAW) == 0 {
		c.What += ", CAP_NET_RAW is not: no captures, and where a policy cuts a connection an end that only waits learns so by its next packet"
	}
	return c
}

func tun() Check {
	c := Check{Name: "tun", Status: OK, What: "/dev/net/tun opens"}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Check{Name: "tun", Status: Fail, What: "/dev/net/tun is not there", Why: "the tunnel is a TUN device", Do: "on a host, run 'modprobe tun; mkdir -p /dev/net; mknod -m 666 /dev/net/tun c 10 200'; in a container, hand the device in (--device /dev/net/tun)"}
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return Check{Name: "tun", Status: Fail, What: "the kernel has no TUN driver", Why: "the tunnel is a TUN device", Do: "run 'modprobe tun', or install a kernel that has it"}
	case errors.Is(err, unix.EISDIR):
		return noTUN()
	case err != nil:
		return Check{Name: "tun", Status: Warn, What: "/dev/net/tun: " + cause.Innermost(err).Error(), Why: "the tunnel is a TUN device", Do: "run 'causeway-agent doctor' as root; in a container, allow the device"}
	}
	defer f.Close()
	features, err := unix.IoctlGetInt(int(f.Fd()), unix.TUNGETFEATURES)
	switch {
	case errors.Is(err, unix.ENOTTY):
		return noTUN()
	case err == nil && features&unix.IFF_VNET_HDR == 0:
		c.Status, c.Why = Warn, "it knows no offloads: the tunnel is slower"
	}
	return c
}

// noTUN is what is said where a file or directory, or another device, has the place of the TUN device.
func noTUN() Check {
	return Check{Name: "tun", Status: Fail, What: "what is at /dev/net/tun is no TUN device", Why: "the tunnel is a TUN device; a container gets a plain file or directory there where one is mounted that its host has not",
		Do: "on a host, run 'modprobe tun; rm -r /dev/net/tun; mknod -m 666 /dev/net/tun c 10 200'; in a container, hand the device in (--device /dev/net/tun)"}
}

func clock() Check {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err == nil && (state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0) {
		return Check{Name: "clock sync", Status: Warn, What: "the clock is not kept by a time service", Why: "netmaps and tokens expire by the clock; it may drift", Do: "run chrony or systemd-timesyncd"}
	}
	return Check{Name: "clock sync", Status: OK, What: "the clock is kept by a time service"}
}

// plainName is what a name may be made of in a command.
var plainName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*$`)

// output judges a chain that drops what the host sends: the tunnel's own datagrams and connections have its
// mark, and what the agent says to hub and peers inside goes by its interface.
func output(ctx context.Context, nft string, c chain, dev string) []Check {
	name := c.Family + " " + c.Table + " " + c.Name
	text, err := exec.CommandContext(ctx, nft, "list", "table", c.Family, c.Table).Output()
	if err != nil {
		return nil // gone meanwhile
	}
	mark := fmt.Sprintf("mark 0x%08x", netns.DefaultMark)
	_, rules, _ := strings.Cut(string(text), "chain "+c.Name+" {")
	rules, _, _ = strings.Cut(rules, "\n\t}")
	if accepts(rules, mark) && accepts(rules, fmt.Sprintf("oifname %q", dev)) {
		return nil
	}
	k := Check{Name: "firewall", Status: Warn, What: fmt.Sprintf("nftables chain %s drops what the host sends unless a rule accepts it", name),
		Why: "the agent sends UDP and TCP to hubs and other nodes, and into the tunnel"}
	k.Do = fmt.Sprintf("accept output with the mark %#x, and output by %s", netns.DefaultMark, dev)
	if strings.Contains(string(text), "chain ufw") { // writes its rules anew
		k.Do = "have ufw let out UDP and TCP to the hub's ports, UDP to other nodes, and what goes by " + dev
	} else if !slices.ContainsFunc([]string{c.Family, c.Table, c.Name, dev}, func(s string) bool { return !plainName.MatchString(s) }) {
		k.Do = fmt.Sprintf("run 'nft add rule %s meta mark %#x accept && nft add rule %s oifname %s accept'", name, netns.DefaultMark, name, dev)
	}
	return []Check{k}
}

// accepts reports whether a rule with match accepts.
func accepts(rules, match string) bool {
	for l := range strings.Lines(rules) {
		if strings.Contains(l, match) && strings.Contains(l, " accept") {
			return true
		}
	}
	return false
}

type chain struct {
	Family, Table, Name, Hook, Policy string
}

// firewalls looks for nft and for what drops by default.
func firewalls(ctx context.Context, c Config) []Check {
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	path, err := exec.LookPath("nft")
	if err != nil {
		return []Check{{Name: "nftables", Status: Fail, What: "the program nft is not there", Why: "the agent writes its rules with it", Do: "install the package nftables"}}
	}
	out, err := exec.CommandContext(ctx, path, "-j", "list", "chains").Output()
	if err != nil {
		if os.Geteuid() != 0 {
			return []Check{{Name: "nftables", Status: Warn, What: "its rules cannot be read without root", Do: "run 'causeway-agent doctor' as root"}}
		}
		var e *exec.ExitError
		text := err.Error()
		if errors.As(err, &e) {
			text = string(e.Stderr)
		}
		return []Check{{Name: "nftables", Status: Fail, What: "nft does not work: " + strings.TrimSpace(text), Why: "the agent writes its rules with it", Do: "load nf_tables, or install a kernel that has it"}}
	}
	var list struct {
		Nftables []struct {
			Chain *chain `json:"chain"`
		} `json:"nftables"`
	}
	if json.Unmarshal(out, &list) != nil {
		return []Check{{Name: "nftables", Status: Warn, What: "what nft lists cannot be read"}}
	}
	found := []Check{{Name: "nftables", Status: OK, What: "nft works"}}
	dev := cmp.Or(c.Interface, netns.DefaultInterface)
	for _, e := range list.Nftables {
		if e.Chain != nil && e.Chain.Hook == "output" && e.Chain.Policy == "drop" {
			found = append(found, output(ctx, path, *e.Chain, dev)...)
		}
	}
	blocked, err := look.ForwardBlocked(ctx, dev, c.Routes)
	if err == nil && blocked == "" {
		blocked = look.ReadBlocked(ctx, dev, c.Routes)
	}
	switch {
	case err != nil:
		found = append(found, Check{Name: "firewall", Status: Warn, What: "forward rules cannot be read: " + err.Error()})
	case blocked != "":
		what, do := mendOf(blocked)
		found = append(found, Check{Name: "firewall", Status: Warn, What: what, Why: "packets of pods would not pass; Docker's own drop the agent opens by itself", Do: do})
	case len(found) == 1:
		found = append(found, Check{Name: "firewall", Status: OK, What: "nothing drops by default what is forwarded or sent"})
	}
	return found
}

// mendOf splits what netns says of a firewall into what it does, and what mends it.
func mendOf(blocked string) (what, do string) {
	if i := strings.LastIndex(blocked, ": run '"); i >= 0 {
		return blocked[:i], blocked[i+2:]
	}
	if what, docker, ok := strings.Cut(blocked, ": add "); ok { // Docker's configuration
		return what, "add " + docker
	}
	do = "let packets pass there both ways between the tunnel's interface and the one that pods are behind"
	return blocked, do
}
