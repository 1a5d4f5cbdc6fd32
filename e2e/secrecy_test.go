package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// secret is something to look for in memory and captures.
type secret struct {
	name  string
	bytes []byte
}

// privateKeys are a node's keys as raw bytes (without the bits that clamping
// changes) and as text, from its state directory.
func privateKeys(t *testing.T, n *Node) (out []secret) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(n.StateDir, "identity.json"))
	require.NoError(t, err)
	var fields map[string]any
	require.NoError(t, json.Unmarshal(b, &fields))
	for k, v := range fields {
		s, _ := v.(string)
		if key, err := protocol.ParseWireGuardPrivateKey(s); err == nil {
			_, text, _ := strings.Cut(s, ":")
			out = append(out, secret{n.Name + " " + k, key[1:31]}, secret{n.Name + " " + k + " as text", []byte(text[2:40])})
		}
	}
	require.Len(t, out, 2, "one WireGuard key in identity.json")
	return out
}

// search reads all memory of a process and returns the names of what it found.
// It is what a core dump would hold.
func search(t *testing.T, pid int, for_ []secret) (found []string, size int64) {
	t.Helper()
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	require.NoError(t, err)
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	require.NoError(t, err)
	defer mem.Close()
	hit := map[string]bool{}
	for s := bufio.NewScanner(maps); s.Scan(); {
		var from, to uint64
		var perm string
		_, err := fmt.Sscanf(s.Text(), "%x-%x %s", &from, &to, &perm)
		require.NoError(t, err)
		if perm[0] != 'r' || strings.HasSuffix(s.Text(), "[vvar]") || strings.HasSuffix(s.Text(), "[vsyscall]") {
			continue
		}
		size += scan(io.NewSectionReader(mem, int64(from), int64(to-from)), for_, hit)
	}
	for h := range hit {
		found = append(found, h)
	}
	return found, size
}

// scan looks for secrets in a stream in pieces that overlap. It ends at the
// first error: a mapping that went away meanwhile.
func scan(r io.Reader, for_ []secret, hit map[string]bool) (size int64) {
	const overlap = 256
	buf := make([]byte, overlap+(1<<20))
	have := 0
	for {
		n, err := io.ReadFull(r, buf[have:])
		size += int64(n)
		for _, s := range for_ {
			if bytes.Contains(buf[:have+n], s.bytes) {
				hit[s.name] = true
			}
		}
		if err != nil {
			return size
		}
		copy(buf, buf[have+n-overlap:have+n])
		have = overlap
	}
}

// The hub forwards what it cannot read: neither captures on its network nor its
// memory hold what pods sent or an agent's private key. An agent's memory,
// searched in the same way, holds both: the search works. Not parallel: the
// capture would take other tests' traffic.
func TestHubCannotReadTraffic(t *testing.T) {
	lab.Counts(t)
	w := sharedWorld(t)
	a, b := w.Pods["a1-1"], w.Pods["b1-1"]
	require.NoError(t, Ping(step(t), a.Host, b.V4))
	marker := secret{"marker", []byte("MARKER-4f1c8a7e-that-pods-send-and-nobody-else-")}
	secrets := []secret{marker}
	for _, n := range WorldNodes() {
		secrets = append(secrets, privateKeys(t, w.Node(n))...)
	}
	before := relayed(t, w)
	capHub, err := w.Hub.Host.Capture("any", "")
	require.NoError(t, err)
	capPod, err := b.Capture("eth0", "tcp port 7000")
	require.NoError(t, err)
	// Looked at while traffic flows, or buffers are reused by then.
	seen := map[string]bool{}
	var hubFound []string
	var hubSize int64
	for i := 0; i < 3 || i < 20 && !(seen["marker"] && len(seen) >= 2); i++ {
		done := make(chan error, 1)
		ctx := step(t)
		go func() {
			_, err := w.Send(ctx, "tcp", a.Host, b.V4, 30<<20, "-marker", string(marker.bytes))
			done <- err
		}()
		f, n := search(t, w.Hub.Proc.PID(), secrets)
		hubFound, hubSize = append(hubFound, f...), n
		own := append([]secret{marker}, privateKeys(t, w.Node("b1"))...)
		f, _ = search(t, w.Node("b1").Proc.PID(), own)
		for _, x := range f {
			seen[x] = true
		}
		require.NoError(t, <-done)
	}
	require.NoError(t, capHub.Stop())
	require.NoError(t, capPod.Stop())
	require.Greater(t, relayed(t, w)-before, uint64(30<<20), "the traffic went through the hub")
	require.True(t, seen["marker"], "an agent's memory holds the marker: the search works")
	require.Greater(t, len(seen), 1, "an agent's memory holds its private key: the search works")
	require.Greater(t, hubSize, int64(1<<20))
	require.Empty(t, hubFound, "in the hub's memory")
	for file, want := range map[string]bool{capHub.File: false, capPod.File: true} {
		r, err := os.Open(file)
		require.NoError(t, err)
		hit := map[string]bool{}
		size := scan(r, secrets, hit)
		r.Close()
		require.Greater(t, size, int64(20<<20), file) // captures may drop some
		require.Equal(t, want, hit["marker"], file)
		delete(hit, "marker")
		require.Empty(t, hit, file)
		require.NoError(t, os.Remove(file))
	}
}
