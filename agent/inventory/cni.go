package inventory

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"causeway/protocol"
)

// cni is what CNI keeps on disk of the networks it gave: libcni's results, a file for each
// network and container. They have the addresses of containers whose runtime does
// not know them, and of pods that no runtime tells of.
type cni struct{ dir string } // such as /var/lib/cni

func (c *cni) name() string { return "cni" }

func (c *cni) results() string { return filepath.Join(c.dir, "results") }

func (c *cni) there() bool {
	fi, err := os.Stat(c.results())
	return err == nil && fi.IsDir()
}

// cniResult is a file of libcni's cache (kind cniCacheV1).
type cniResult struct {
	Kind        string `json:"kind"`
	ContainerID string `json:"containerId"`
	NetworkName string `json:"networkName"`
	Result      struct {
		IPs []struct {
			Address netip.Prefix `json:"address"`
		} `json:"ips"`
	} `json:"result"`
}

func (c *cni) list(ctx context.Context) (protocol.Runtime, []found, error) {
	info := protocol.Runtime{Kind: "cni", From: c.dir}
	es, err := os.ReadDir(c.results())
	if err != nil {
		return info, nil, err
	}
	byID := map[string]*found{}
	var order []string
	for _, e := range es {
		if ctx.Err() != nil {
			return info, nil, ctx.Err()
		}
		if !e.Type().IsRegular() || len(order) >= 2*protocol.MaxContainers {
			continue
		}
		b, err := readBounded(filepath.Join(c.results(), e.Name()))
		if err != nil {
			continue
		}
		r, ok := parseResult(b)
		if !ok {
			continue
		}
		f := byID[r.ContainerID]
		if f == nil {
			f = &found{Container: protocol.Container{ID: r.ContainerID, Runtime: "cni", Name: r.ContainerID, State: protocol.ContainerRunning, Addresses: []netip.Addr{}}, sandbox: r.ContainerID}
			byID[r.ContainerID], order = f, append(order, r.ContainerID)
		}
		for _, ip := range r.Result.IPs {
			if a := ip.Address.Addr().Unmap(); a.IsValid() && !a.IsLoopback() { // the loopback plugin's are every container's
				f.Addresses = append(f.Addresses, a)
			}
		}
	}
	out := make([]found, 0, len(order))
	for _, id := range order {
		byID[id].Addresses = sortedAddrs(byID[id].Addresses)
		out = append(out, *byID[id])
	}
	return info, out, nil
}

func parseResult(b []byte) (cniResult, bool) {
	var r cniResult
	if json.Unmarshal(b, &r) != nil || !plainID(r.ContainerID) {
		return r, false
	}
	return r, true
}

func (c *cni) watch(ctx context.Context, changed func()) error {
	return watchDirs(ctx, c.results(), 0, changed)
}

// sortedAddrs are l in order, each once.
func sortedAddrs(l []netip.Addr) []netip.Addr {
	slices.SortFunc(l, netip.Addr.Compare)
	return slices.Compact(l)
}

// joinCNI gives containers the addresses that CNI has of them, and returns those of CNI's
// that nobody else knows. A sandbox, which the others of its pod share, is no container.
func joinCNI(containers, cni []found) (joined, alone []found) {
	bySandbox := map[string]found{}
	for _, f := range cni {
		bySandbox[f.sandbox] = f
	}
	taken := map[string]bool{}
	for i := range containers {
		c := &containers[i]
		f, ok := bySandbox[c.sandbox]
		if !ok {
			continue
		}
		taken[c.sandbox] = true
		if c.State == protocol.ContainerRunning && len(c.Addresses) == 0 {
			c.Addresses = f.Addresses
		}
	}
	for _, f := range cni {
		if !taken[f.sandbox] {
			alone = append(alone, f)
		}
	}
	return slices.DeleteFunc(containers, func(f found) bool { return f.Runtime == "containerd" && f.Labels[criType] == "sandbox" }), alone
}
