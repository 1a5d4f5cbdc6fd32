// Package inventory gathers a node's facts and publishes them over NATS on a
// stream of the control channel, acknowledged by JetStream.
package inventory

import (
	"context"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/mem"
	"go4.org/netipx"

	"causeway/protocol"
)

// maxInterfaces keeps a host with thousands of container interfaces inside
// the size of one message.
const maxInterfaces = 512

// Facts gathers what the host says of itself. What cannot be read is left
// empty: an inventory with a hole is better than none.
func Facts(ctx context.Context) protocol.Inventory {
	inv := protocol.Inventory{Version: protocol.Version, Time: time.Now().UTC(), Arch: runtime.GOARCH, CPUs: runtime.NumCPU()}
	inv.Hostname, _ = os.Hostname()
	if h, err := host.InfoWithContext(ctx); err == nil {
		inv.Kernel = h.KernelVersion
		inv.OS = strings.TrimSpace(h.Platform + " " + h.PlatformVersion)
		if h.BootTime > 0 {
			inv.HostBootTime = time.Unix(int64(h.BootTime), 0).UTC()
		}
	}
	if name := osName(); name != "" {
		inv.OS = name
	}
	if c, err := cpu.InfoWithContext(ctx); err == nil && len(c) > 0 {
		inv.CPUModel = c[0].ModelName
	}
	if n, err := cpu.CountsWithContext(ctx, true); err == nil && n > 0 {
		inv.CPUs = n
	}
	if m, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		inv.MemoryTotal, inv.MemoryUsed = m.Total, m.Used
	}
	inv.Interfaces = Interfaces()
	return inv
}

// osName is PRETTY_NAME of os-release(5).
func osName() string {
	for _, p := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		b, err := os.ReadFile(p)
		if err != nil || len(b) > 64<<10 {
			continue
		}
		for l := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(l), "PRETTY_NAME="); ok {
				return strings.Trim(v, `"'`)
			}
		}
	}
	return ""
}

// Interfaces lists the host's network interfaces, by name.
func Interfaces() []protocol.Interface {
	ifs, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var out []protocol.Interface
	for _, i := range ifs {
		if i.Flags&net.FlagLoopback != 0 {
			continue
		}
		x := protocol.Interface{Name: i.Name, MAC: i.HardwareAddr.String(), MTU: i.MTU, Up: i.Flags&net.FlagUp != 0, Addresses: []netip.Prefix{}}
		if as, err := i.Addrs(); err == nil {
			for _, a := range as {
				if n, ok := a.(*net.IPNet); ok {
					if p, ok := netipx.FromStdIPNet(n); ok {
						if ip, ok := netipx.FromStdIP(n.IP); ok { // with its host part
							x.Addresses = append(x.Addresses, netip.PrefixFrom(ip, p.Bits()))
						}
					}
				}
			}
		}
		slices.SortFunc(x.Addresses, netipx.ComparePrefix)
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b protocol.Interface) int { return strings.Compare(a.Name, b.Name) })
	return out[:min(len(out), maxInterfaces)]
}
