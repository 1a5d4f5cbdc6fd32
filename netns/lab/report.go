package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// logTail is how much of each log a report shows.
const logTail = 6000

// Topology is a drawing in words: hosts and how they are linked.
func (l *Lab) Topology() string {
	var b strings.Builder
	for _, h := range l.snapshot() {
		fmt.Fprintf(&b, "%-7s %-12s %s\n", h.kind, h.Name, strings.Join(h.links, "; "))
	}
	return b.String()
}

func (l *Lab) snapshot() []*Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Host(nil), l.hosts...)
}

// Report is all that explains a failure: topology, the hosts' network state
// and the ends of all logs.
func (l *Lab) Report() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n=== lab %s\n%s", l.prefix, l.Topology())
	for _, h := range l.snapshot() {
		if h.kind == "switch" {
			continue
		}
		script := "ip -br addr; ip -4 route show table all | grep -v 'table local'; ip -6 route show table all | grep -v 'table local'; ip -4 rule; nft list ruleset"
		if h.kind == "pod" {
			script = "ip -br addr; ip route; ip -s link show eth0"
		}
		out, err := h.output("", "sh", "-c", script)
		if err != nil && out == "" {
			out = err.Error() + "\n"
		}
		fmt.Fprintf(&b, "--- state of %s\n%s", h.Name, out)
	}
	logs, _ := filepath.Glob(filepath.Join(l.Dir, "*.log"))
	sort.Strings(logs)
	for _, f := range logs {
		t, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if len(t) > logTail {
			t = append([]byte("…"), t[len(t)-logTail:]...)
		}
		fmt.Fprintf(&b, "--- %s\n%s\n", filepath.Base(f), t)
	}
	return b.String()
}
