package inventory

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/fsnotify/fsnotify"

	"causeway/protocol"
)

// containerd is asked over gRPC, whose client would double the agent. What is needed of it
// lies on disk too, by the OCI's runtime specification: each running task has a bundle,
// a directory with config.json and init.pid, and the directories come and go
// with the tasks, which inotify tells. https://github.com/opencontainers/runtime-spec/blob/main/bundle.md
type containerd struct{ dir string } // containerd's state directory, such as /run/containerd

// taskDir holds a directory for each namespace, with one for each task.
const taskDir = "io.containerd.runtime.v2.task"

// maxBundle bounds the files of a bundle.
const maxBundle = 1 << 20

// Kubernetes' annotations, by which the CRI plugin names what it runs.
const (
	criType      = "io.kubernetes.cri.container-type"
	criName      = "io.kubernetes.cri.container-name"
	criImage     = "io.kubernetes.cri.image-name"
	criSandbox   = "io.kubernetes.cri.sandbox-id"
	criPod       = "io.kubernetes.cri.sandbox-name"
	criNamespace = "io.kubernetes.cri.sandbox-namespace"
	nerdctlName  = "nerdctl/name"
	mobyNS       = "moby" // Docker's, which tells of them itself
)

func (c *containerd) name() string { return "containerd" }

func (c *containerd) there() bool {
	fi, err := os.Stat(filepath.Join(c.dir, taskDir))
	return err == nil && fi.IsDir()
}

func (c *containerd) list(ctx context.Context) (protocol.Runtime, []found, error) {
	info := protocol.Runtime{Kind: "containerd", From: c.dir}
	var out []found
	root := filepath.Join(c.dir, taskDir)
	spaces, err := os.ReadDir(root)
	if err != nil {
		return info, nil, err
	}
	for _, ns := range spaces {
		if ns.Name() == mobyNS || !ns.IsDir() {
			continue
		}
		tasks, _ := os.ReadDir(filepath.Join(root, ns.Name()))
		for _, t := range tasks {
			if ctx.Err() != nil {
				return info, nil, ctx.Err()
			}
			if f, ok := bundle(filepath.Join(root, ns.Name(), t.Name()), t.Name()); ok && len(out) < 2*protocol.MaxContainers {
				out = append(out, f)
			}
		}
	}
	return info, out, nil
}

// ociConfig is what is needed of a bundle's config.json.
type ociConfig struct {
	Annotations map[string]string `json:"annotations"`
	Linux       struct {
		Resources struct {
			Memory struct {
				Limit       int64 `json:"limit"`
				Reservation int64 `json:"reservation"`
			} `json:"memory"`
			CPU struct {
				Quota  int64  `json:"quota"`
				Period uint64 `json:"period"`
			} `json:"cpu"`
		} `json:"resources"`
	} `json:"linux"`
}

// bundle reads the bundle of a task. One that is being made, or whose program ended, is
// none.
func bundle(dir, id string) (found, bool) {
	b, err := readBounded(filepath.Join(dir, "config.json"))
	if err != nil || !plainID(id) {
		return found{}, false
	}
	p, err := readBounded(filepath.Join(dir, "init.pid"))
	if err != nil {
		return found{}, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(p)))
	if err != nil || pid <= 0 || syscall.Kill(pid, 0) == syscall.ESRCH {
		return found{}, false
	}
	f, err := bundleFacts(id, b)
	f.pid = pid
	return f, err == nil
}

func bundleFacts(id string, config []byte) (found, error) {
	var c ociConfig
	if err := json.Unmarshal(config, &c); err != nil {
		return found{}, fmt.Errorf("config.json of %s makes no sense", id)
	}
	a := c.Annotations
	f := found{Container: protocol.Container{ID: id, Runtime: "containerd", Name: id, State: protocol.ContainerRunning, Image: a[criImage], Addresses: []netip.Addr{}}, sandbox: id}
	switch {
	case a[criType] == "sandbox":
		f.Name = a[criNamespace] + "/" + a[criPod]
	case a[criName] != "":
		f.Name, f.sandbox = a[criNamespace]+"/"+a[criPod]+"/"+a[criName], a[criSandbox]
	case a[nerdctlName] != "":
		f.Name = a[nerdctlName]
	}
	f.Labels = map[string]string{}
	for k, v := range a {
		if k == criPod || k == criNamespace || k == criType {
			f.Labels[k] = v
		}
	}
	r := c.Linux.Resources
	if r.CPU.Quota > 0 && r.CPU.Period > 0 {
		f.CPURequested = int(min(float64(r.CPU.Quota)/float64(r.CPU.Period)*1000, 1<<30))
	}
	if m := max(r.Memory.Reservation, 0); m > 0 {
		f.MemoryRequested = uint64(m)
	} else if r.Memory.Limit > 0 {
		f.MemoryRequested = uint64(r.Memory.Limit)
	}
	return f, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxBundle+1))
	if err == nil && len(b) > maxBundle {
		err = fmt.Errorf("%s is longer than %d bytes", path, maxBundle)
	}
	return b, err
}

func (c *containerd) watch(ctx context.Context, changed func()) error {
	return watchDirs(ctx, filepath.Join(c.dir, taskDir), 2, changed)
}

// watchDirs signals changes of the directories at most depth levels below root, until
// ctx or root ends.
func watchDirs(ctx context.Context, root string, depth int, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	var add func(dir string, depth int)
	add = func(dir string, depth int) {
		if w.Add(dir) != nil || depth == 0 {
			return
		}
		es, _ := os.ReadDir(dir)
		for _, e := range es {
			if e.IsDir() {
				add(filepath.Join(dir, e.Name()), depth-1)
			}
		}
	}
	add(root, depth)
	changed()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-w.Events:
			if !ok {
				return fsnotify.ErrClosed
			}
			if e.Name == root && e.Has(fsnotify.Remove|fsnotify.Rename) {
				return os.ErrNotExist
			}
			if e.Has(fsnotify.Create) {
				rel, err := filepath.Rel(root, e.Name)
				if err == nil {
					if fi, err := os.Lstat(e.Name); err == nil && fi.IsDir() {
						add(e.Name, depth-strings.Count(rel, "/")-1)
					}
				}
			}
			if !e.Has(fsnotify.Chmod) {
				changed()
			}
		case <-w.Errors: // some were lost
			changed()
		}
	}
}
