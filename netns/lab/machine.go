package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Machine is a host that boots: systemd as PID 1 on a Debian tree of its own, in
// the network namespace of a Host and with its links.
type Machine struct {
	Host *Host
	Root string // its file system

	name   string // among all machines and control groups
	base   string
	nspawn *Process
	pid1   int
}

// rootfsScript makes the tree that machines start from, and prints its path.
const rootfsScript = "scripts/rootfs"

// Machine makes a machine on the host. source is the source tree, whose
// scripts/rootfs makes the tree of machines if it is not there yet, with these
// packages besides those that each has. It is off.
func (h *Host) Machine(source string, packages ...string) (*Machine, error) {
	out, err := exec.Command(filepath.Join(source, rootfsScript), packages...).Output()
	if err != nil {
		return nil, fmt.Errorf("make the tree of a machine: %w", err)
	}
	m := &Machine{Host: h, name: h.ns, base: strings.TrimSpace(string(out)), Root: filepath.Join(h.Dir(), machineDir, "root")}
	for _, d := range []string{"root", "upper", "work"} {
		if err := os.MkdirAll(filepath.Join(h.Dir(), machineDir, d), 0o755); err != nil {
			return nil, err
		}
	}
	dir := filepath.Dir(m.Root)
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", m.base, dir, dir)
	if err := syscall.Mount("overlay", m.Root, "overlay", 0, opts); err != nil {
		return nil, fmt.Errorf("mount the machine's tree: %w", err)
	}
	for name, text := range map[string]string{"etc/hostname": h.Name + "\n", "etc/hosts": "127.0.0.1 localhost " + h.Name + "\n", "etc/resolv.conf": ""} {
		if err := os.WriteFile(filepath.Join(m.Root, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(m.Root, "lab-init"), []byte(labInit), 0o755); err != nil {
		return nil, err
	}
	return m, nil
}

// labInit is what PID 1 of a guest does first: without it memory and other limits
// of units are ignored. /dev/net/tun is for everybody, as udev has it.
const labInit = `#!/bin/sh
for c in memory cpu cpuacct cpuset freezer blkio pids devices; do mount -o remount,rw,bind /sys/fs/cgroup/$c 2>/dev/null; done
umount /dev/net/tun && rm -f /dev/net/tun && mknod -m 0666 /dev/net/tun c 10 200
exec /lib/systemd/systemd
`

// machineDir is the directory below a host's that holds its machine.
const machineDir = "machine"

// boot is what becomes the guest's container manager: it gives the guest control
// groups of its own, which --keep-unit alone does not.
const boot = `set -e
while IFS=: read -r id ctl path; do
  case $ctl in "") h=unified;; name=*) h=${ctl#name=};; *) h=$ctl;; esac
  d=/sys/fs/cgroup/$h${path%/}/$0; mkdir -p $d
  if [ $h = cpuset ]; then cat $d/../cpuset.cpus > $d/cpuset.cpus; cat $d/../cpuset.mems > $d/cpuset.mems; echo 1 > $d/cgroup.clone_children; fi
  echo $$ > $d/cgroup.procs
done </proc/self/cgroup
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network
exec systemd-nspawn -q -D "$1" -M "$0" --register=no --keep-unit --network-namespace-path="$2" --capability=CAP_NET_ADMIN,CAP_NET_RAW \
  --system-call-filter=@keyring --bind=/dev/net/tun --kill-signal=SIGRTMIN+3 --console=pipe /lab-init`

// Boot starts the machine and waits until systemd says that it runs.
func (m *Machine) Boot(ctx context.Context) error {
	// Not in the namespace: nspawn enters it, and needs this machine's /sys.
	l := m.Host.lab
	log, err := os.OpenFile(filepath.Join(l.Dir, m.Host.Name+"-machine.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("bash", "-c", boot, m.name, m.Root, "/run/netns/"+m.Host.ns)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("boot %s: %w", m.Host.Name, err)
	}
	m.nspawn = &Process{Name: "machine", Host: m.Host, Log: log.Name(), cmd: cmd, done: make(chan struct{})}
	go func() {
		m.nspawn.err = cmd.Wait()
		close(m.nspawn.done)
	}()
	l.mu.Lock()
	l.procs = append(l.procs, m.nspawn)
	l.mu.Unlock()
	return Wait(ctx, "the boot of "+m.Host.Name, func(ctx context.Context) error {
		if !m.nspawn.Running() {
			return Permanent(fmt.Errorf("it ended: %v\n%s", m.nspawn.err, m.nspawn.Output()))
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", cmd.Process.Pid))
		if err != nil {
			return err
		}
		if m.pid1, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
			return errors.New("no PID 1 yet")
		}
		out, err := m.Run(ctx, "systemctl", "is-system-running")
		if s := strings.TrimSpace(out); s == "running" || s == "degraded" {
			return nil
		}
		return fmt.Errorf("systemd is %q: %w", out, err)
	})
}

// Run runs a program on the machine and returns its standard output.
func (m *Machine) Run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(m.pid1), "-a", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}, args...)...)
	var out, complaint strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaint
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), &RunError{Host: m.Host.Name, Args: args, Stdout: out.String(), Stderr: complaint.String(), Err: err}
	}
	return out.String(), nil
}

// Inside is the path of the guest's file system as its programs see it, sockets in
// /run included, until it is off.
func (m *Machine) Inside() string { return fmt.Sprintf("/proc/%d/root", m.pid1) }

// Off ends the machine: by poweroff, or at once as if the plug was pulled. The
// network namespace outlives it, with all that a kernel would have forgotten:
// the caller clears it.
func (m *Machine) Off(ctx context.Context, plug bool) error {
	if plug {
		syscall.Kill(m.pid1, syscall.SIGKILL)
	} else if _, err := m.Run(ctx, "systemctl", "poweroff"); err != nil && m.nspawn.Running() {
		return err
	}
	if err := m.nspawn.Wait(ctx); err != nil && m.nspawn.Running() {
		return err
	}
	removeCgroups(m.name)
	return nil
}

// Copy puts a file of this machine into the guest.
func (m *Machine) Copy(src, dst string) error {
	if out, err := command("cp", src, filepath.Join(m.Root, dst)); err != nil {
		return fmt.Errorf("copy %s: %w: %s", src, err, out)
	}
	return nil
}

// removeCgroups removes the control groups of a machine, the deepest first.
func removeCgroups(name string) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		h := strings.TrimPrefix(f[1], "name=")
		if h == "" {
			h = "unified"
		}
		top := filepath.Join("/sys/fs/cgroup", h, f[2], name)
		var dirs []string
		filepath.WalkDir(top, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			syscall.Rmdir(dirs[i]) // a busy one is tried again by the next sweep
		}
	}
}
