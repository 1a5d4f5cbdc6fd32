// Package kernel has the questions that netns and netns/look both ask of a host, one call each: links, routes
// and settings of the network namespace that the calling thread is in, and the system's programs nft and iptables.
package kernel

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// programTimeout bounds every run of nft and iptables.
const programTimeout = 10 * time.Second

// Run runs a program of the system and returns what it printed. An error holds
// the first line of what it complained about.
func Run(ctx context.Context, stdin string, name string, args ...string) (string, error) {
	path, err := LookPath(name)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second
	cmd.Stdin = strings.NewReader(stdin)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err = cmd.Start()
	if err == nil {
		ownPrograms.add(uint32(cmd.Process.Pid)) // before it can have changed anything
		err = cmd.Wait()
	}
	if err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(complaint.String()), "\n")
		if first == "" {
			return "", fmt.Errorf("run %s: %w", name, err)
		}
		return "", fmt.Errorf("run %s: %s: %w", name, first, err)
	}
	return out.String(), nil
}

// LookPath finds a program of the system; services often have a PATH without
// the sbin directories.
func LookPath(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, d := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"} {
		if st, err := os.Stat(d + name); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return d + name, nil
		}
	}
	return "", fmt.Errorf("program %s is missing", name)
}

// ownPrograms are the process ids of the last programs that this process ran.
var ownPrograms recent

// recent is a short memory of process ids. Its methods may be called concurrently.
type recent struct {
	mu   sync.Mutex
	pids [64]uint32
	next int
}

func (r *recent) add(pid uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pids[r.next%len(r.pids)] = pid
	r.next++
}

func (r *recent) has(pid uint32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.pids[:], pid)
}

// Ran reports whether a process was one of the last programs that Run ran, or a thread of Own.
func Ran(pid uint32) bool { return ownPrograms.has(pid) }

// Own runs f, which changes nftables by netlink, on a thread that Ran knows: the kernel names threads.
func Own(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if tid := uint32(unix.Gettid()); !ownPrograms.has(tid) {
		ownPrograms.add(tid)
	}
	return f()
}
