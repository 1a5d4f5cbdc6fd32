package inventory

import (
	"context"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/load"
	"github.com/shirou/gopsutil/v4/mem"

	"causeway/protocol"
)

// hostFacts fills in what the host says of itself and never changes while it runs.
func hostFacts(ctx context.Context, inv *protocol.Inventory) {
	inv.Arch, inv.CPUs = runtime.GOARCH, runtime.NumCPU()
	inv.Hostname, _ = os.Hostname()
	if h, err := host.InfoWithContext(ctx); err == nil {
		inv.Kernel = h.KernelVersion
		inv.OS = strings.TrimSpace(h.Platform + " " + h.PlatformVersion)
		if h.BootTime > 0 {
			inv.HostBootTime = time.Unix(int64(h.BootTime), 0).UTC()
		}
		if h.VirtualizationRole == "guest" {
			inv.Virtual = h.VirtualizationSystem
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
	if n, err := cpu.CountsWithContext(ctx, false); err == nil {
		inv.Cores = n
	}
}

// loadFacts fills in what moves all the time.
func loadFacts(ctx context.Context, inv *protocol.Inventory) {
	if m, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		// What programs can have is not used, whatever caches hold.
		inv.MemoryTotal, inv.MemoryUsed = m.Total, m.Total-min(m.Available, m.Total)
	}
	if l, err := load.AvgWithContext(ctx); err == nil {
		inv.Load = &protocol.Load{One: l.Load1, Five: l.Load5, Fifteen: l.Load15}
	}
	inv.Disks = disks(ctx)
}

// disks are the file systems on devices, each device once: the others are views of them.
func disks(ctx context.Context) map[string]protocol.Disk {
	parts, err := disk.PartitionsWithContext(ctx, false)
	if err != nil {
		return nil
	}
	out, seen := map[string]protocol.Disk{}, map[string]bool{}
	for _, p := range parts {
		if seen[p.Device] {
			continue
		}
		u, err := disk.UsageWithContext(ctx, p.Mountpoint)
		if err != nil || u.Total == 0 {
			continue
		}
		seen[p.Device] = true
		out[protocol.OneLine(p.Mountpoint, protocol.MaxFactText)] = protocol.Disk{Device: protocol.OneLine(p.Device, protocol.MaxFactText),
			Type: p.Fstype, Total: u.Total, Used: u.Used}
	}
	return out
}

// busy measures how much of the processors is used, on average since it was last asked.
type busy struct {
	total, idle float64
}

// milli is in thousandths of a CPU.
func (b *busy) milli(ctx context.Context, cpus int) uint64 {
	t, err := cpu.TimesWithContext(ctx, false)
	if err != nil || len(t) == 0 {
		return 0
	}
	c := t[0]
	idle := c.Idle + c.Iowait
	total := c.User + c.System + c.Nice + c.Irq + c.Softirq + c.Steal + idle
	was := *b
	b.total, b.idle = total, idle
	if d := total - was.total; d > 0 {
		return uint64(min(1, max(0, 1-(idle-was.idle)/d)) * 1000 * float64(cpus))
	}
	return 0
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
