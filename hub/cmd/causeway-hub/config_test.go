package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"causeway/hub"
	"causeway/tunnel"
)

func parse(t *testing.T, file string, args ...string) (hub.Config, error) {
	t.Helper()
	var f flags
	set := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.register(set)
	path := filepath.Join(t.TempDir(), "hub.yaml")
	require.NoError(t, os.WriteFile(path, []byte(file), 0o600))
	require.NoError(t, set.Parse(append([]string{"--config", path}, args...)))
	return f.config(set)
}

func TestFlagsWinOverTheFile(t *testing.T) {
	c, err := parse(t, "data_dir: /srv/hub\npublic_host: hub.example.org\noverlay: [198.18.0.0/16]\npublic_udp_port: 7000\n", "--data-dir", "/tmp/x", "--listen-udp", ":7001")
	require.NoError(t, err)
	require.Equal(t, "/tmp/x", c.DataDir)
	require.Equal(t, "hub.example.org", c.PublicHost)
	require.Equal(t, ":7001", c.ListenUDP)
	require.Equal(t, uint16(7000), c.PublicUDPPort)
	require.Len(t, c.Overlay, 1)
	c, err = parse(t, "relay_node_packets: 1000\nrelay_node_bytes: 2000000\nrelay_pair_bytes: 5\n", "--relay-pair-bytes", "1000000")
	require.NoError(t, err)
	require.Equal(t, tunnel.RelayLimits{Node: tunnel.RelayRate{Packets: 1000, Bytes: 2000000}, Pair: tunnel.RelayRate{Bytes: 1000000}}, c.RelayLimits)
	c, err = parse(t, "")
	require.NoError(t, err)
	require.Equal(t, hub.DefaultDataDir, c.DataDir)
	require.Len(t, c.Overlay, 2)
}

func TestBadConfigIsOneLine(t *testing.T) {
	for file, says := range map[string]string{
		"frobnicate: 1\n":                "frobnicate",
		"data_dir: [\n":                  "hub.yaml",
		"public_udp_port: many\n":        "hub.yaml:1:",
		"socket_buffer: many\n":          "hub.yaml:1:",
		"join_rate: fast\n":              "hub.yaml:1:",
		"overlay: [banana]\n":            "no CIDR",
		"relay_node_bytes: -1\n":         "hub.yaml:1:",
		"relay_pair_packets: 10k\n":      "hub.yaml:1:",
		"data_dir: a\ndata_dir: b\n":     "data_dir",
		"public_udp_port: 100000000\n":   "hub.yaml:1:",
		"data_dir: {a: " + "b}\n":        "hub.yaml",
		"- 1\n":                          "hub.yaml",
		strings.Repeat("a: ", 10) + "\n": "hub.yaml",
	} {
		_, err := parse(t, file)
		require.ErrorContains(t, err, says, file)
		require.NotContains(t, err.Error(), "\n", file)
	}
	var f flags
	set := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.register(set)
	require.NoError(t, set.Parse([]string{"--config", "/nonexistent/hub.yaml"}))
	_, err := f.config(set)
	require.ErrorContains(t, err, "no such file")
}
