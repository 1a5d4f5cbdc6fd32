package config

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/agent/inventory"
	"causeway/internal/docpage"
	"causeway/internal/strictyaml"
)

func TestReference(t *testing.T) {
	var b strings.Builder
	b.WriteString("| key | type | meaning | on SIGHUP |\n|---|---|---|---|\n")
	taken := liveKeys()
	for _, k := range strictyaml.Reference(file{}) {
		require.NotEmpty(t, k.Doc, k.Path)
		reload := "needs a restart"
		if slices.Contains(taken, k.Path) {
			reload = "taken"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.Path, k.Type, k.Doc, reload)
	}
	docpage.Check(t, "../../docs/CONFIG.md", "agent", b.String())
}

func liveKeys() (out []string) {
	settings(func(path string, live bool, _ []string) {
		if live {
			out = append(out, path)
		}
	})
	return out
}

// Each key is either reloadable or named as one that is not.
func TestNeedsRestart(t *testing.T) {
	var n Config
	n.Tunnel = Tunnel{Interface: "x", ListenPort: 1, MTU: 1300, Engine: "inline", Queues: 2, UAPI: true, PrivateCandidates: "off"}
	n.Proxy, n.Debug = &url.URL{Scheme: "http", Host: "p"}, Debug{Socket: "/x", Metrics: "127.0.0.1:9464", Allow: []string{"logs"}, Deny: []string{"bench"}}
	n.Inventory = inventory.Config{Docker: "/x", Podman: "/x", Containerd: "/x", CNI: "/x"}
	got := append(Config{}.NeedsRestart(n), liveKeys()...)
	var all []string
	for _, k := range strictyaml.Reference(file{}) {
		all = append(all, k.Path)
	}
	require.ElementsMatch(t, all, got)
	require.Empty(t, n.NeedsRestart(n))
	require.Empty(t, Config{Debug: Debug{Allow: []string{}}}.NeedsRestart(Config{}), "nothing is nothing")
}
