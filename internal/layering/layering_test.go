package layering

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "causeway/"

// rule says what no package below from may depend on, directly or not.
type rule struct {
	from []string // packages with all below them
	// never lists what must not be among the dependencies, with all below it.
	never []string
	// onlyOurs, if not nil, lists all of our own packages that may be.
	onlyOurs []string
	why      string
}

var rules = []rule{
	{from: []string{"causeway/protocol"}, onlyOurs: []string{},
		why: "what crosses the wire is read by every side and must compile without any of them"},
	{from: []string{"causeway/agent"}, never: []string{"causeway/hub"},
		why: "an agent trusts what the wire says and no type of the hub; versions of both differ in the field"},
	{from: []string{"causeway/hub"}, never: []string{"causeway/agent", "causeway/netns"},
		why: "the hub runs without privileges and touches no host network"},
	{from: []string{"causeway/tunnel"}, never: []string{"causeway/netns", "causeway/agent", "causeway/hub"},
		why: "the tunnel carries packets; which routes lead into it is decided elsewhere"},
	{from: []string{"causeway/netns"}, never: []string{"causeway/tunnel", "causeway/agent", "causeway/hub"},
		why: "a host must be put back as it was without any tunnel"},
	{from: []string{"causeway/netns"}, never: []string{"causeway/netns/look"},
		why: "what is put on a host does not hang on what is read of others' things there; look reads, netns writes"},
	{from: []string{"causeway/tunnel/underlay"}, never: []string{"causeway/tunnel/engine", "causeway/tunnel/relay"},
		why: "paths and probes know nothing of sessions and their keys"},
	{from: []string{"causeway/tunnel/engine"}, never: []string{"causeway/tunnel/relay"},
		why: "an engine sees peers, never how their datagrams travel"},
	{from: []string{"causeway/tunnel/relay"}, never: []string{"causeway/tunnel/engine"},
		why: "the relay is blind: it cannot open what it forwards"},
	{from: []string{"causeway/agent/desired"}, never: []string{"causeway/tunnel", "causeway/agent/onhost", "causeway/agent/hublink", "causeway/agent/control"},
		why: "what is wanted of a node knows neither how its host is nor by which way it came"},
	{from: []string{"causeway/agent/onhost"}, never: []string{"causeway/agent/hublink", "causeway/agent/control"},
		why: "what is kept on a host follows from what is wanted; whoever has a hub reads what became of it"},
	{from: []string{"causeway/agent/dns"}, onlyOurs: []string{"causeway/protocol"},
		why: "names are answered from a view alone; who knows what there is sets it"},
	{from: []string{"causeway/hub/dns"}, onlyOurs: []string{"causeway/hub/conns", "causeway/internal/retry", "causeway/internal/shortage", "causeway/protocol", "causeway/tunnel/underlay/sock", "causeway/tunnel/underlay/stream"},
		why: "public names are answered from a view alone; who knows who serves sets it"},
	{from: []string{"causeway/hub/plan"}, never: []string{"causeway/tunnel", "causeway/hub/fleet", "causeway/hub/reconcile", "causeway/hub/session"},
		why: "netmaps are computed from values alone"},
	{from: []string{"causeway/hub/service"}, onlyOurs: []string{"causeway/protocol"},
		why: "who serves what is worked out from values alone"},
	{from: []string{"causeway/hub/fleet"}, never: []string{"causeway/tunnel", "causeway/hub/reconcile", "causeway/hub/session"},
		why: "what is known of nodes does not know by which way it came, nor what is decided on it"},
	{from: []string{"causeway/hub/reconcile"}, never: []string{"causeway/hub/session"},
		why: "what the hub does by itself follows from the state and the fleet; sessions are told"},
	{from: []string{"causeway/hub/session"}, never: []string{"causeway/hub/reconcile"},
		why: "a session tells the fleet what it hears, and decides nothing"},
	{from: []string{"causeway/hub/api"}, onlyOurs: []string{"causeway/internal/retry", "causeway/protocol"},
		why: "clients of the admin API need nothing of the hub"},
	{from: []string{"causeway/hub/cmd/causeway"}, onlyOurs: []string{"causeway/hub/api", "causeway/internal/exitstatus", "causeway/internal/flagenv", "causeway/internal/manpages", "causeway/internal/retry", "causeway/protocol"},
		never: []string{"github.com/nats-io/nats.go", "github.com/nats-io/nats-server", "gvisor.dev/gvisor", "golang.zx2c4.com/wireguard", "github.com/danielgtaylor/huma"},
		why:   "the admin CLI is small and installed on its own"},
	{from: []string{"causeway/agent", "causeway/tunnel", "causeway/netns", "causeway/protocol"}, never: []string{"github.com/nats-io/nats-server"},
		why: "the NATS server belongs in the hub alone"},
	// The agent links gvisor all the same: package tunnel has both sides, and the hub's side needs the netstack.
	{from: []string{"causeway/protocol", "causeway/netns", "causeway/agent/inventory", "causeway/tunnel/underlay", "causeway/tunnel/engine", "causeway/tunnel/relay", "causeway/tunnel/mux", "causeway/tunnel/tundev"},
		never: []string{"gvisor.dev/gvisor"},
		why:   "the userspace network stack is the hub's and sits behind tunnel/netstack"},
	{from: []string{"causeway/agent/cmd", "causeway/hub/cmd"}, never: []string{"causeway/netns/lab", "causeway/netns/netnstest", "causeway/e2e", "github.com/stretchr/testify"},
		why: "what serves tests stays out of what is shipped"},
}

// pkg is what go list says of a package.
type pkg struct {
	ImportPath string
	Deps       []string
}

func TestLayering(t *testing.T) {
	ours := listOurs(t)
	for _, r := range rules {
		for _, p := range ours {
			if !within(p.ImportPath, r.from) {
				continue
			}
			for _, d := range p.Deps {
				if within(d, r.from) && !within(d, r.never) {
					continue // a package may know those below and beside it
				}
				switch {
				case within(d, r.never):
					t.Errorf("%s depends on %s (%s):\n  %s", p.ImportPath, d, r.why, strings.Join(chain(ours, p.ImportPath, d), "\n  -> "))
				case r.onlyOurs != nil && strings.HasPrefix(d, module) && !slices.Contains(r.onlyOurs, d):
					t.Errorf("%s depends on %s (%s)", p.ImportPath, d, r.why)
				}
			}
		}
	}
}

// TestRulesApply keeps a renamed package from leaving its rules without effect.
func TestRulesApply(t *testing.T) {
	ours := listOurs(t)
	for _, r := range rules {
		for _, f := range r.from {
			require.True(t, slices.ContainsFunc(ours, func(p pkg) bool { return within(p.ImportPath, []string{f}) }),
				"no package matches %s: was it renamed? (%s)", f, r.why)
		}
	}
}

// within reports whether path is one of these packages or below one. The three
// programs are not below the packages that hold their folders' names: the
// admin CLI is no part of causeway/hub/cmd/causeway-hub.
func within(path string, of []string) bool {
	return slices.ContainsFunc(of, func(o string) bool { return path == o || strings.HasPrefix(path, o+"/") })
}

// chain is one way along our own packages from a to d, for whoever has to cut it.
func chain(ours []pkg, a, d string) []string {
	for _, p := range ours {
		if p.ImportPath != a && p.ImportPath != d && slices.Contains(depsOf(ours, a), p.ImportPath) && slices.Contains(p.Deps, d) {
			return append([]string{a}, chain(ours, p.ImportPath, d)...)
		}
	}
	return []string{a, d}
}

func depsOf(ours []pkg, path string) []string {
	for _, p := range ours {
		if p.ImportPath == path {
			return p.Deps
		}
	}
	return nil
}

func listOurs(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Deps", module+"...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, stderr.String())
	var ours []pkg
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return ours
		} else {
			require.NoError(t, err)
		}
		if strings.HasPrefix(p.ImportPath, module) {
			ours = append(ours, p)
		}
	}
}
