package inventory

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// What a runtime answers holds names, labels and addresses that containers chose. It must
// not panic, and what becomes of it is within bounds and fits a message.
func FuzzRuntimeAnswers(f *testing.F) {
	f.Add([]byte(`{"Id":"ab12","Names":["/web"],"Image":"i","State":"running","Labels":{"a":"b"}}`),
		[]byte(`{"State":{"Pid":7,"StartedAt":"2026-01-01T00:00:00Z"},"HostConfig":{"NanoCpus":1500000000,"Memory":7},"NetworkSettings":{"Networks":{"n":{"IPAddress":"10.0.0.2","GlobalIPv6Address":"fd00::2"}}}}`))
	f.Add([]byte(`{"kind":"cniCacheV1","containerId":"x","result":{"ips":[{"address":"10.1.0.2/24"}]}}`), []byte(`{"annotations":{"io.kubernetes.cri.container-name":"c"},"linux":{"resources":{"cpu":{"quota":1,"period":2}}}}`))
	f.Add([]byte(`{"Type":"container","Action":"start","Actor":{"ID":"ab12"}}`), []byte(`{"State":{"StartedAt":"0001-01-01T00:00:00Z"},"HostConfig":{"CpuQuota":-1,"CpuPeriod":100000}}`))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var l []found
		var listed dockerListed
		var inspected dockerInspected
		if json.Unmarshal(a, &listed) == nil && json.Unmarshal(b, &inspected) == nil && plainID(listed.ID) {
			l = append(l, foundOf("docker", listed, inspected))
		}
		if c, err := bundleFacts("x", b); err == nil {
			l = append(l, c)
		}
		d := newDocker("docker", "/nowhere")
		_ = readEvents(bytes.NewReader(a), d.noted)
		if r, ok := parseResult(a); ok {
			l = append(l, found{Container: protocol.Container{ID: r.ContainerID}, sandbox: r.ContainerID})
		}
		inv := protocol.Inventory{Hostname: "h", Containers: map[string]protocol.Container{}}
		joined, alone := joinCNI(slices.Clone(l), l)
		for _, x := range append(joined, alone...) {
			if x.CPURequested < 0 || x.pid < 0 {
				t.Fatalf("%+v", x)
			}
			inv.Containers[x.Runtime+"/"+x.ID] = x.Container
		}
		bound(&inv)
		if b, err := fit(&inv); err != nil || len(b) > protocol.MaxInventory {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
	})
}

// An event without an end is no reason to fill the memory.
func TestEventTooLong(t *testing.T) {
	err := readEvents(strings.NewReader(`{"Type":"`+strings.Repeat("x", 2*maxEvent)+`"}`), func(dockerEvent) {})
	require.ErrorContains(t, err, "too long")
	n := 0
	err = readEvents(strings.NewReader(strings.Repeat(`{"Type":"container","Action":"exec_start: sh"}{"Type":"container","Action":"die"}`+"\n", 20_000)), func(dockerEvent) { n++ })
	require.Error(t, err)
	require.Equal(t, 20_000, n, "many events are as many")
}

// A socket at which nothing sensible answers, or nothing at all: said in the facts, and the
// rest of them is there.
func TestRuntimeFails(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "d.sock")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	mode := atomic.Value{}
	mode.Store("error")
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch mode.Load() {
		case "error":
			w.WriteHeader(http.StatusInternalServerError)
		case "nonsense":
			w.Write([]byte(`<html>`))
		case "endless":
			for range maxAnswer/1000 + 2 {
				w.Write(bytes.Repeat([]byte("["), 1000))
			}
		}
	})}
	go srv.Serve(l)
	defer srv.Close()
	c := NewCollector(Config{Docker: socket})
	for m, want := range map[string]string{"error": "status 500", "nonsense": "makes no sense", "endless": "longer than"} {
		mode.Store(m)
		f := c.Facts(t.Context())
		require.Contains(t, f.Runtimes["docker"].Error, want)
		require.NotEmpty(t, f.Kernel)
	}
	srv.Close()
	require.NotContains(t, c.Facts(t.Context()).Runtimes, "docker", "the socket is gone")
}

// A bundle as containerd's shim writes it, with a real process: it is found when it comes, by
// inotify, has the addresses that CNI noted, and is gone with its process.
func TestContainerdBundles(t *testing.T) {
	dir, cniDir := t.TempDir(), t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, taskDir, "k8s.io"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(cniDir, "results"), 0o755))
	c := NewCollector(Config{Containerd: dir, CNI: cniDir})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	defer func() { cancel(); <-done }()
	require.Empty(t, c.Facts(ctx).Containers)
	cmd := exec.Command("sleep", "600")
	require.NoError(t, cmd.Start())
	defer cmd.Process.Kill()
	write := func(path, text string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	await := func(ok func(protocol.Inventory) bool) protocol.Inventory {
		t.Helper()
		end := time.After(10 * time.Second)
		for {
			if f := c.Facts(ctx); ok(f) {
				return f
			}
			select {
			case <-c.Changes():
			case <-end:
				t.Fatal("no change was told of")
			}
		}
	}
	task := filepath.Join(dir, taskDir, "k8s.io", "c1")
	write(filepath.Join(cniDir, "results", "net-sandbox1-eth0"), `{"kind":"cniCacheV1","containerId":"sandbox1","networkName":"net","result":{"ips":[{"address":"10.9.0.2/24"}]}}`)
	// Each sandbox has the loopback plugin's, too.
	write(filepath.Join(cniDir, "results", "cni-loopback-sandbox1-lo"), `{"kind":"cniCacheV1","containerId":"sandbox1","networkName":"cni-loopback","result":{"ips":[{"address":"127.0.0.1/8"},{"address":"::1/128"}]}}`)
	write(filepath.Join(cniDir, "results", "cni-loopback-lonely-lo"), `{"kind":"cniCacheV1","containerId":"lonely","networkName":"cni-loopback","result":{"ips":[{"address":"127.0.0.1/8"},{"address":"::1/128"}]}}`)
	sandbox := filepath.Join(dir, taskDir, "k8s.io", "sandbox1")
	write(filepath.Join(sandbox, "config.json"), `{"annotations":{"io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-name":"pod","io.kubernetes.cri.sandbox-namespace":"default","io.kubernetes.cri.sandbox-id":"sandbox1"}}`)
	write(filepath.Join(sandbox, "init.pid"), strconv.Itoa(cmd.Process.Pid))
	write(filepath.Join(cniDir, "results", "net-lonely-eth0"), `{"kind":"cniCacheV1","containerId":"lonely","networkName":"net","result":{"ips":[{"address":"10.9.0.3/24"}]}}`)
	write(filepath.Join(task, "config.json"), `{"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.container-name":"app","io.kubernetes.cri.sandbox-name":"pod","io.kubernetes.cri.sandbox-namespace":"default",
		"io.kubernetes.cri.sandbox-id":"sandbox1","io.kubernetes.cri.image-name":"example.net/app:1"},"linux":{"resources":{"cpu":{"quota":50000,"period":100000},"memory":{"limit":1048576}}}}`)
	write(filepath.Join(task, "init.pid"), strconv.Itoa(cmd.Process.Pid))
	f := await(func(f protocol.Inventory) bool {
		return len(f.Containers) == 2 && len(f.Containers["containerd/c1"].Addresses) == 1
	})
	got := f.Containers["containerd/c1"]
	require.Equal(t, "default/pod/app", got.Name)
	require.Equal(t, "example.net/app:1", got.Image)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.9.0.2")}, got.Addresses)
	require.Equal(t, 500, got.CPURequested)
	require.Equal(t, uint64(1<<20), got.MemoryRequested)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.9.0.3")}, f.Containers["cni/lonely"].Addresses, "a pod that no runtime tells of")
	require.NoError(t, os.RemoveAll(task))
	f = await(func(f protocol.Inventory) bool { _, there := f.Containers["containerd/c1"]; return !there })
	require.Contains(t, f.Runtimes, "containerd")
}

// Control groups of both versions.
func TestUsage(t *testing.T) {
	dir := t.TempDir()
	write := func(path, text string) {
		path = filepath.Join(dir, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	u := newUsage()
	u.root, u.proc = filepath.Join(dir, "cg"), filepath.Join(dir, "proc")
	write("proc/7/cgroup", "0::/machine/a\n")
	write("cg/machine/a/memory.current", "1048576\n")
	write("cg/machine/a/cpu.stat", "usage_usec 1000000\nuser_usec 1\n")
	write("proc/8/cgroup", "5:memory:/b\n3:cpu,cpuacct:/b\n")
	write("cg/memory/b/memory.usage_in_bytes", "77\n")
	write("cg/cpuacct/b/cpuacct.usage", "1000000000\n")
	write("proc/9/cgroup", "0::/\n")
	l := []found{{Container: protocol.Container{ID: "a"}, pid: 7}, {Container: protocol.Container{ID: "b"}, pid: 8}, {Container: protocol.Container{ID: "host"}, pid: 9}, {Container: protocol.Container{ID: "off"}}}
	at := time.Unix(1000, 0)
	u.measure(at, l)
	require.Equal(t, []uint64{1 << 20, 77, 0, 0}, []uint64{l[0].MemoryUsed, l[1].MemoryUsed, l[2].MemoryUsed, l[3].MemoryUsed})
	require.Zero(t, l[0].CPUUsed, "not known at the first")
	write("cg/machine/a/cpu.stat", "usage_usec 6000000\n")
	write("cg/cpuacct/b/cpuacct.usage", "2000000000\n")
	u.measure(at.Add(10*time.Second), l)
	require.Equal(t, []int{500, 100}, []int{l[0].CPUUsed, l[1].CPUUsed})
}
