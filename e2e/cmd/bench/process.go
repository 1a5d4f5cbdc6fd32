package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"causeway/netns/lab"
)

// usage is what a process took: processor seconds since its start, megabytes
// resident now.
type usage struct{ cpu, rss float64 }

// clockTicks is USER_HZ, the unit of times in /proc/PID/stat; Linux has the
// same on every architecture that Go knows.
const clockTicks = 100

// usageOf reads /proc/PID/stat (proc_pid_stat(5)) of each process that is
// there.
func usageOf(procs map[string]*lab.Process) (map[string]usage, error) {
	out := map[string]usage{}
	for name, p := range procs {
		if p == nil {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
		if err != nil {
			return nil, fmt.Errorf("%s ended: %w\n%s", p.Name, err, p.Output())
		}
		if out[name], err = parseStat(string(b), os.Getpagesize()); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func parseStat(stat string, page int) (usage, error) {
	// The name before may hold spaces and parentheses. Fields are counted from
	// the one after it, the third.
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 22 {
		return usage{}, fmt.Errorf("read process state: %d fields", len(f))
	}
	var v [3]float64
	for i, at := range []int{14, 15, 24} { // utime, stime, rss
		n, err := strconv.ParseInt(f[at-3], 10, 64)
		if err != nil {
			return usage{}, fmt.Errorf("read process state: %w", err)
		}
		v[i] = float64(n)
	}
	return usage{cpu: (v[0] + v[1]) / clockTicks, rss: v[2] * float64(page) / 1e6}, nil
}

// memory is the resident memory of the world's processes, by site and for the
// hub.
func (w *world) memory() (map[string]float64, error) {
	procs := map[string]*lab.Process{roleHub: w.relay}
	for _, s := range w.sites {
		procs[s.name] = s.proc
	}
	us, err := usageOf(procs)
	out := map[string]float64{}
	for name, u := range us {
		out[name] = u.rss
	}
	return out, err
}
