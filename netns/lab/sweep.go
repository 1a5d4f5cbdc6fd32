package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var labName = regexp.MustCompile(`^cw([0-9]+)-[0-9]+(-|$)`)

// Sweep removes what labs of dead processes left: their namespaces with the
// processes in them, containers, mounts and directories. Kept ones stay.
func Sweep() error {
	return removeDead(func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, keptName))
		return err != nil
	})
}

// RemoveKept removes labs that were kept and whose process has ended.
func RemoveKept() error {
	return removeDead(func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, keptName))
		return err == nil
	})
}

func removeDead(want func(dir string) bool) error {
	dead := map[string]bool{}
	for _, d := range []string{"/run/netns", os.TempDir()} {
		es, err := os.ReadDir(d)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range es {
			m := labName.FindStringSubmatch(e.Name())
			if m == nil {
				continue
			}
			if pid, err := strconv.Atoi(m[1]); err != nil || syscall.Kill(pid, 0) == nil {
				continue
			}
			dead[strings.Join(strings.SplitN(e.Name(), "-", 3)[:2], "-")] = true
		}
	}
	var errs []error
	for name := range dead {
		if dir := filepath.Join(os.TempDir(), name); want(dir) {
			errs = append(errs, remove(name+"-", dir))
		}
	}
	return errors.Join(errs...)
}

// Leftovers lists namespaces, processes and directories of a lab that are
// still there; empty after Close.
func Leftovers(prefix string) []string {
	var out []string
	for _, n := range namespaces(prefix) {
		out = append(out, "namespace "+n)
	}
	dir := filepath.Join(os.TempDir(), strings.TrimSuffix(prefix, "-"))
	if _, err := os.Stat(dir); err == nil {
		out = append(out, "directory "+dir)
	}
	for _, p := range processes(func(pid int) bool { return strings.Contains(cmdline(pid), dir+"/") }) {
		out = append(out, fmt.Sprintf("process %d %s", p, cmdline(p)))
	}
	return out
}

// remove takes a lab away by its names alone.
func remove(prefix, dir string) error {
	var errs []error
	errs = append(errs, removePodman(prefix, dir))
	names := namespaces(prefix)
	inodes := map[uint64]bool{}
	for _, n := range names {
		var st syscall.Stat_t
		if syscall.Stat("/run/netns/"+n, &st) == nil {
			inodes[st.Ino] = true
		}
	}
	mine := func(pid int) bool {
		if pid == os.Getpid() {
			return false
		}
		var st syscall.Stat_t
		if syscall.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) == nil && inodes[st.Ino] {
			return true
		}
		return strings.Contains(cmdline(pid), dir+"/")
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		ps := processes(mine)
		if len(ps) == 0 {
			break
		}
		if time.Now().After(deadline) {
			errs = append(errs, fmt.Errorf("processes of lab %s do not end: %v", prefix, ps))
			break
		}
		for _, p := range ps {
			syscall.Kill(p, syscall.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond) // between looks; the kernel tells nobody but a parent
	}
	for _, n := range names {
		removeCgroups(n) // of a machine
		os.RemoveAll("/run/systemd/nspawn/propagate/" + n)
		if out, err := command("ip", "netns", "del", n); err != nil {
			errs = append(errs, fmt.Errorf("delete namespace %s: %w: %s", n, err, out))
		}
	}
	for _, m := range mounts(dir) {
		if err := syscall.Unmount(m, syscall.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

func namespaces(prefix string) []string {
	es, err := os.ReadDir("/run/netns")
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range es {
		if strings.HasPrefix(e.Name(), prefix) {
			out = append(out, e.Name())
		}
	}
	return out
}

// mounts below dir, deepest first.
func mounts(dir string) []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if fs := strings.Fields(s.Text()); len(fs) > 4 && strings.HasPrefix(fs[4], dir+"/") {
			out = append(out, fs[4])
		}
	}
	slices.Reverse(out)
	return out
}

// processes lists live processes (no zombies) that match.
func processes(match func(pid int) bool) []int {
	es, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []int
	for _, e := range es {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !match(pid) {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		if i := strings.LastIndexByte(string(b), ')'); i > 0 && i+2 < len(b) && b[i+2] == 'Z' {
			continue
		}
		out = append(out, pid)
	}
	return out
}

func cmdline(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
}
