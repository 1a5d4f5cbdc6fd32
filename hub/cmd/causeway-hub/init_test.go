package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestInit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "causeway", "hub.yaml")
	initHub := func(args ...string) (string, error) {
		var out bytes.Buffer
		c := command()
		c.SetOut(&out)
		c.SetArgs(append([]string{"init", "--config", file}, args...))
		err := c.Execute()
		return out.String(), err
	}
	for range 2 { // it can be run again
		_, err := initHub("--public-host", "hub.example.org")
		require.NoError(t, err)
	}
	s, err := readSettings(file, true)
	require.NoError(t, err)
	require.Equal(t, map[string]any{"public-host": "hub.example.org"}, s)
	_, err = initHub("--public-host", "other.example.org")
	require.ErrorContains(t, err, "change it there")
	require.NoError(t, os.WriteFile(file, []byte("# an example\ndata_dir: /srv"), 0o600))
	_, err = initHub("--public-host", "hub.example.org")
	require.NoError(t, err)
	s, err = readSettings(file, true)
	require.NoError(t, err)
	require.Equal(t, map[string]any{"public-host": "hub.example.org", "data-dir": "/srv"}, s)
	require.NoError(t, os.WriteFile(file, []byte("{data_dir: /srv}\n"), 0o600))
	_, err = initHub("--public-host", "hub.example.org")
	require.ErrorContains(t, err, "add to it: public_host: \"hub.example.org\"")
	require.NoError(t, os.Remove(file))
	_, err = initHub("--public-host", "not a host")
	require.ErrorContains(t, err, "public-host")
	require.NoFileExists(t, file)

	out, err := initHub("--public-host", "192.0.2.1")
	require.NoError(t, err)
	for _, next := range []string{"1. start the hub:            causeway-hub run --config " + file, "causeway site create SITE", "causeway token create --site SITE", "192.0.2.1"} {
		require.Contains(t, out, next)
	}
}

func TestCheck(t *testing.T) {
	check := func(args ...string) (string, error) {
		var out bytes.Buffer
		c := command()
		c.SetOut(&out)
		c.SetArgs(append([]string{"run", "--check"}, args...))
		err := c.Execute()
		return out.String(), err
	}
	file := filepath.Join(t.TempDir(), "hub.yaml")
	require.NoError(t, os.WriteFile(file, []byte("public_host: a\nlisten_udp: nowhere\n"), 0o600))
	_, err := check("--config", file)
	require.ErrorContains(t, err, "listen-udp")
	t.Setenv("CAUSEWAY_HUB_LISTEN_UDP", ":51821")
	out, err := check("--config", file)
	require.NoError(t, err, "the environment wins over the file")
	require.Equal(t, "the configuration is good\n", out)
	t.Setenv("CAUSEWAY_HUB_PUBLIC_UDP_PORT", "many")
	_, err = check("--config", file)
	require.ErrorContains(t, err, "CAUSEWAY_HUB_PUBLIC_UDP_PORT")
}
