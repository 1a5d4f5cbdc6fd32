package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Podman is a container engine of a host's own: its storage, network and
// locks lie in the host's directory, and its rules in the host's namespace.
type Podman struct {
	host *Host
	dir  string
}

// PodNetwork is the name of the one network of a Podman.
const PodNetwork = "podsnet"

const podmanConf = `[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["/usr/lib/cni"]
network_config_dir = "%[1]s/net"
default_network = "podsnet"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "%[1]s/tmp"
`

// The network masquerades, as Podman's own default network does.
const podmanNet = `{ "cniVersion": "0.4.0", "name": "podsnet", "plugins": [
  { "type": "bridge", "bridge": "cni-pod0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
    "ipam": { "type": "host-local", "dataDir": "%[1]s/ipam", "routes": [{"dst":"0.0.0.0/0"}],
              "ranges": [[{"subnet":"%[2]s"}]] } },
  { "type": "portmap", "capabilities": {"portMappings": true} },
  { "type": "firewall" } ] }
`

// Podman sets up a container engine on the host whose one network is subnet
// and masquerades as Podman's default network does. It has no images yet.
func (h *Host) Podman(subnet string) *Podman {
	p := &Podman{host: h, dir: filepath.Join(h.Dir(), "podman")}
	for _, d := range []string{"net", "root", "run", "tmp"} {
		if err := os.MkdirAll(filepath.Join(p.dir, d), 0o755); err != nil {
			h.lab.fail(fmt.Errorf("podman of %s: %w", h.Name, err))
		}
	}
	for f, s := range map[string]string{
		"containers.conf":      fmt.Sprintf(podmanConf, p.dir),
		"net/10-pods.conflist": fmt.Sprintf(podmanNet, p.dir, subnet),
	} {
		if err := os.WriteFile(filepath.Join(p.dir, f), []byte(s), 0o644); err != nil {
			h.lab.fail(fmt.Errorf("podman of %s: %w", h.Name, err))
		}
	}
	return p
}

func podmanCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "podman", append([]string{"--root", dir + "/root", "--runroot", dir + "/run"}, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+dir+"/containers.conf")
	cmd.WaitDelay = time.Second
	return cmd
}

// Run runs podman with arguments and returns its standard output.
func (p *Podman) Run(ctx context.Context, args ...string) (string, error) {
	cmd := podmanCommand(ctx, p.dir, args...)
	// Files, not pipes: conmon keeps them open for as long as the container
	// lives.
	out, err := os.CreateTemp(p.dir, "out")
	if err != nil {
		return "", err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	complaint, err := os.CreateTemp(p.dir, "err")
	if err != nil {
		return "", err
	}
	defer os.Remove(complaint.Name())
	defer complaint.Close()
	cmd.Stdout, cmd.Stderr = out, complaint
	if err := p.host.Do(cmd.Start); err != nil {
		return "", fmt.Errorf("start podman on %s: %w", p.host.Name, err)
	}
	err = cmd.Wait()
	o, e1 := os.ReadFile(out.Name())
	c, e2 := os.ReadFile(complaint.Name())
	if err != nil {
		return string(o), fmt.Errorf("podman %s on %s: %w\n%s", strings.Join(args, " "), p.host.Name, err, c)
	}
	return strings.TrimSpace(string(o)), errors.Join(e1, e2)
}

// Serve starts Podman's API on a socket, as podman.socket does on a host, and returns the
// socket's path.
func (p *Podman) Serve(ctx context.Context) (string, error) {
	socket := filepath.Join(p.dir, "api.sock")
	return socket, p.ServeAt(ctx, socket)
}

// ServeAt is Serve on a socket of the caller's choice.
func (p *Podman) ServeAt(ctx context.Context, socket string) error {
	_, err := p.host.Start(Program{Name: "podman-" + p.host.Name, Env: []string{"CONTAINERS_CONF=" + p.dir + "/containers.conf"},
		Args: []string{"podman", "--root", p.dir + "/root", "--runroot", p.dir + "/run", "system", "service", "--time=0", "unix://" + socket}})
	if err != nil {
		return err
	}
	return Wait(ctx, "Podman's socket", func(context.Context) error {
		_, err := os.Stat(socket)
		return err
	})
}

// Image makes an image from programs: busybox as the shell and whatever
// static binaries are given, all in /bin.
func (p *Podman) Image(ctx context.Context, name string, binaries ...string) error {
	root := filepath.Join(p.dir, "rootfs")
	for _, d := range []string{"bin", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for _, b := range append([]string{"/bin/busybox"}, binaries...) {
		if out, err := command("cp", "-L", b, filepath.Join(root, "bin")+"/"); err != nil {
			return fmt.Errorf("copy %s: %w: %s", b, err, out)
		}
	}
	for _, a := range []string{"sh", "sleep", "cat", "ip", "wget"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", a)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	tar := filepath.Join(p.dir, "rootfs.tar")
	if out, err := command("tar", "-C", root, "-cf", tar, "."); err != nil {
		return fmt.Errorf("pack image: %w: %s", err, out)
	}
	_, err := p.Run(ctx, "import", tar, name)
	return err
}

// Address is the address of a running container.
func (p *Podman) Address(ctx context.Context, container string) (string, error) {
	return p.Run(ctx, "inspect", "-f", "{{.NetworkSettings.Networks."+PodNetwork+".IPAddress}}", container)
}

// Process is the process id of a container's program.
func (p *Podman) Process(ctx context.Context, container string) (string, error) {
	return p.Run(ctx, "inspect", "-f", "{{.State.Pid}}", container)
}

// removePodman removes all containers of all hosts of a lab.
func removePodman(prefix, dir string) error {
	confs, err := filepath.Glob(filepath.Join(dir, "*", "podman", "containers.conf"))
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range confs {
		pd := filepath.Dir(c)
		name := filepath.Base(filepath.Dir(pd))
		h := &Host{Name: name, ns: prefix + name}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		cmd := podmanCommand(ctx, pd, "rm", "-f", "-a", "-t", "0")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		start := h.Do(cmd.Start)
		if start == nil {
			if err := cmd.Wait(); err != nil {
				errs = append(errs, fmt.Errorf("remove containers of %s: %w", name, err))
			}
		}
		cancel()
	}
	return errors.Join(errs...)
}
