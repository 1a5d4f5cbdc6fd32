package inventory

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// usage measures containers by their control groups, whichever runtime made them: asking
// a runtime costs it a second for each (cgroups(7), the kernel's cgroup-v2.rst).
type usage struct {
	root string // /sys/fs/cgroup
	proc string // /proc
	last map[string]cpuTime
}

type cpuTime struct {
	at   time.Time
	used time.Duration
}

func newUsage() *usage {
	return &usage{root: "/sys/fs/cgroup", proc: "/proc", last: map[string]cpuTime{}}
}

// measure fills in what the running ones take. CPU is the average since the last
// measurement, and so not known at the first.
func (u *usage) measure(now time.Time, l []found) {
	seen := make(map[string]cpuTime, len(l))
	for i := range l {
		f := &l[i]
		if f.pid == 0 {
			continue
		}
		mem, cpu, ok := u.read(f.pid)
		if !ok {
			continue
		}
		f.MemoryUsed = mem
		was, known := u.last[f.ID]
		if d := now.Sub(was.at); known && d > 0 && cpu >= was.used {
			if d < time.Second { // too short to tell: as it was
				seen[f.ID] = was
				continue
			}
			f.CPUUsed = int(1000 * (cpu - was.used) / d)
		}
		seen[f.ID] = cpuTime{now, cpu}
	}
	u.last = seen
}

// read returns bytes and CPU time of the control group that pid is in.
func (u *usage) read(pid int) (mem uint64, cpu time.Duration, ok bool) {
	b, err := os.ReadFile(filepath.Join(u.proc, strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return 0, 0, false
	}
	groups := map[string]string{} // controller to path; "" is version 2
	for l := range bytes.Lines(b) {
		f := strings.SplitN(strings.TrimSpace(string(l)), ":", 3)
		if len(f) == 3 {
			for _, c := range strings.Split(f[1], ",") {
				groups[c] = filepath.Clean("/" + f[2])
			}
		}
	}
	// The root group is the host.
	if p := groups[""]; p != "" && p != "/" {
		m, err := number(filepath.Join(u.root, p, "memory.current"))
		if err == nil {
			return m, time.Duration(field(filepath.Join(u.root, p, "cpu.stat"), "usage_usec")) * time.Microsecond, true
		}
	}
	p, a := groups["memory"], groups["cpuacct"]
	if p == "" || p == "/" {
		return 0, 0, false
	}
	m, err := number(filepath.Join(u.root, "memory", p, "memory.usage_in_bytes"))
	if err != nil {
		return 0, 0, false
	}
	n, _ := number(filepath.Join(u.root, "cpuacct", a, "cpuacct.usage"))
	return m, time.Duration(n), true
}

func number(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 63)
}

// field is the number after name on a line of its own.
func field(path, name string) uint64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		if k, v, ok := strings.Cut(sc.Text(), " "); ok && k == name {
			n, _ := strconv.ParseUint(strings.TrimSpace(v), 10, 63)
			return n
		}
	}
	return 0
}
