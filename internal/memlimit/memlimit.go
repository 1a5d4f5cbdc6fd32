// Package memlimit tells the Go runtime how much memory the control group of the process lets
// it have, so that it collects garbage before the kernel kills it. A limit that is set
// by GOMEMLIMIT stays as it is.
package memlimit

import (
	"bufio"
	"bytes"
	"math"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/rs/zerolog"
)

// share is how much of the control group's memory the runtime may have: sockets' buffers and
// files that are mapped or cached count there as well.
const share = 0.9

// Set sets the limit and logs it, if there is one.
func Set(log zerolog.Logger) {
	if os.Getenv("GOMEMLIMIT") != "" {
		log.Info().Int64("bytes", debug.SetMemoryLimit(-1)).Msg("memory limit, by GOMEMLIMIT")
		return
	}
	if n, ok := Group("/"); ok {
		limit := int64(float64(n) * share)
		debug.SetMemoryLimit(limit)
		log.Info().Int64("bytes", limit).Msg("memory limit, by the control group")
	}
}

// Group returns the smallest limit, in bytes, of the control group that the process is in and of
// those above it, of version 1 or 2; false: there is none. root is the host's.
func Group(root string) (limit uint64, ok bool) {
	groups, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return 0, false
	}
	mounts, err := os.ReadFile(filepath.Join(root, "proc/self/mountinfo"))
	if err != nil {
		return 0, false
	}
	limit = math.MaxUint64
	// hierarchy:controllers:path (cgroups(7)); version 2 has hierarchy 0 and no controllers.
	for line := range bytes.Lines(groups) {
		f := strings.SplitN(strings.TrimSpace(string(line)), ":", 3)
		if len(f) != 3 {
			continue
		}
		kind, file := "", ""
		switch {
		case f[0] == "0" && f[1] == "":
			kind, file = "cgroup2", "memory.max"
		case has(f[1], "memory"):
			kind, file = "cgroup", "memory.limit_in_bytes"
		default:
			continue
		}
		point, inside, found := mounted(mounts, kind)
		if !found {
			continue
		}
		// In a container what is mounted may begin below the root that the path is from.
		at, below := strings.CutPrefix(path.Clean(f[2]), strings.TrimSuffix(inside, "/"))
		if !below {
			at = "/"
		}
		for at = path.Clean("/" + at); ; at = path.Dir(at) {
			if n, ok := read(filepath.Join(root, point, at, file)); ok {
				limit = min(limit, n)
			}
			if at == "/" {
				break
			}
		}
	}
	// Version 1 says 'none' by the largest number of pages.
	return limit, limit < math.MaxInt64/2
}

func has(list, want string) bool {
	for s := range strings.SplitSeq(list, ",") {
		if s == want {
			return true
		}
	}
	return false
}

// mounted returns where the memory controller of a kind is mounted, and which of its directories
// that is (proc_pid_mountinfo(5)): ID parent device ROOT POINT options … - TYPE source SUPER.
func mounted(mounts []byte, kind string) (point, inside string, ok bool) {
	s := bufio.NewScanner(bytes.NewReader(mounts))
	for s.Scan() {
		head, tail, found := strings.Cut(s.Text(), " - ")
		f, t := strings.Fields(head), strings.Fields(tail)
		if !found || len(f) < 5 || len(t) < 3 || t[0] != kind || kind == "cgroup" && !has(t[2], "memory") {
			continue
		}
		return f[4], f[3], true
	}
	return "", "", false
}

func read(name string) (uint64, bool) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64) // "max" is none
	return n, err == nil && n > 0
}
