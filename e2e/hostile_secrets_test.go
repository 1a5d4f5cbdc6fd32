package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// writtenForms are the forms in which a secret of 30 bytes or more may be written down.
func writtenForms(name string, raw []byte) []secret {
	return []secret{{name + ", raw", raw[:30]}, {name + ", hex", []byte(hex.EncodeToString(raw))[:60]},
		{name + ", base64", []byte(base64.StdEncoding.EncodeToString(raw))[:40]}, {name + ", base64url", []byte(base64.URLEncoding.EncodeToString(raw))[:40]}}
}

// writtenSecrets are all secrets made in a run of s, each as it is written down,
// as raw bytes, in hex and in both alphabets of base64.
func writtenSecrets(t *testing.T, s *System, tokens []string, nodes ...*smallNode) (out []secret) {
	t.Helper()
	add := func(name string, raw []byte) { out = append(out, writtenForms(name, raw)...) }
	for _, text := range tokens {
		tok, err := protocol.ParseToken(text)
		require.NoError(t, err)
		add("token", tok.Secret[:])
	}
	text := func(path string) string {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		return strings.TrimSpace(string(b))
	}
	cluster, err := protocol.ParseClusterPrivateKey(text(filepath.Join(s.Hub.Dir, "cluster.key")))
	require.NoError(t, err)
	add("cluster key", cluster[:])
	hub, err := protocol.ParseWireGuardPrivateKey(text(filepath.Join(s.Hub.Dir, "hub.key")))
	require.NoError(t, err)
	add("hub key", hub[:])
	pair, err := tls.LoadX509KeyPair(filepath.Join(s.Hub.Dir, "tls.pem"), filepath.Join(s.Hub.Dir, "tls.pem"))
	require.NoError(t, err)
	scalar, err := pair.PrivateKey.(*ecdsa.PrivateKey).Bytes()
	require.NoError(t, err)
	add("https key", scalar)
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	require.NoError(t, err)
	out = append(out, secret{"https key, PEM", []byte(base64.StdEncoding.EncodeToString(der))[len("MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg"):][:40]})
	for _, n := range nodes {
		var fields map[string]any
		require.NoError(t, json.Unmarshal([]byte(text(filepath.Join(n.StateDir, "identity.json"))), &fields))
		found := 0
		for _, v := range fields {
			v, _ := v.(string)
			if k, err := protocol.ParseWireGuardPrivateKey(v); err == nil {
				add(n.Name+"'s WireGuard key", k[:])
				found++
			} else if k, err := protocol.ParseIdentityPrivateKey(v); err == nil {
				add(n.Name+"'s identity key", k[:])
				found++
			}
		}
		require.Equal(t, 2, found)
	}
	return out
}

// wgShows returns all that wg(8) shows of a node's tunnel, checks that its peers
// are in it, and that wg can set nothing.
func wgShows(t *testing.T, n *Node) (said string) {
	t.Helper()
	wg := func(args ...string) (string, error) {
		return n.Host.Run(step(t), withRun(n.Run, append([]string{"wg"}, args...)...)...)
	}
	for _, what := range [][]string{{"show", "cw0"}, {"show", "cw0", "dump"}, {"show", "cw0", "private-key"}, {"show", "cw0", "preshared-keys"}, {"showconf", "cw0"}} {
		out, err := wg(what...)
		require.NoError(t, err)
		said += out
	}
	dump, err := wg("show", "cw0", "dump")
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(dump), "\n")
	require.Greater(t, len(lines), 1, dump)
	own := strings.Split(lines[0], "\t")
	require.Equal(t, "(none)", own[0], "the private key")
	require.NotEqual(t, "0", own[2], "the port")
	for _, l := range lines[1:] {
		f := strings.Split(l, "\t")
		require.Len(t, f, 8, l)
		require.Equal(t, "(none)", f[1], "the preshared key")
	}
	peer := strings.Split(lines[1], "\t")[0]
	for _, set := range [][]string{{"set", "cw0", "listen-port", "1"}, {"set", "cw0", "peer", peer, "remove"}} {
		_, err := wg(set...)
		require.Error(t, err)
		require.Contains(t, failed(t, err).Stderr, "Operation not permitted")
	}
	again, err := wg("show", "cw0", "allowed-ips")
	require.NoError(t, err)
	require.Contains(t, again, peer)
	return said
}

// read returns the body of a GET over a unix socket.
func read(t *testing.T, socket, path string) []byte {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(step(t), http.MethodGet, "http://hub"+path, nil)
	require.NoError(t, err)
	r, err := c.Do(req)
	require.NoError(t, err)
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, r.StatusCode, "%s: %s", path, b)
	return b
}

// requirePrivate checks that all below dir is its owner's alone.
func requirePrivate(t *testing.T, dir string) (files int) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a file on its way to another name
		}
		require.NoError(t, err)
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		require.NoError(t, err)
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		} else {
			files++
		}
		require.Equal(t, want, info.Mode().Perm(), p)
		return nil
	}))
	require.Positive(t, files)
	return files
}

// No secret that a run makes stands anywhere but in its own file: not in the
// store, a log, an answer of the API, the CLI, the debug endpoints, asked on the host
// or through the hub, metrics, an inventory, a backup, or what passes on the network
// and through the tunnel. Nobody but the owner can read a file of hub or agent.
func TestSecretsAreNowhereElse(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	outside, err := s.Hub.Host.Capture("any", "")
	require.NoError(t, err)
	var tokens []string
	for i, n := range nodes {
		var err error
		n.Node, err = s.Prepare(NodeSpec{Name: n.Host.Name, Site: "s" + string(rune('1'+i)), Host: n.Host, Run: t.TempDir()})
		require.NoError(t, err)
		tok, err := s.Token(step(t), n.Site)
		require.NoError(t, err)
		tokens = append(tokens, tok)
		out, err := n.Redeem(step(t), tok)
		require.NoError(t, err)
		require.NotContains(t, out, tok)
		_, err = n.Redeem(step(t), tok+"x") // an error may quote no secret either
		require.Error(t, err)
		require.NotContains(t, failed(t, err).Stderr, tok)
		require.NoError(t, n.Start())
	}
	open, err := s.Token(step(t), "s1")
	require.NoError(t, err)
	tokens = append(tokens, open)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), nodes[0].Host, "198.18.0.3"))
	inside, err := nodes[0].Host.Capture("cw0", "") // control, without WireGuard around it
	require.NoError(t, err)
	err = lab.Wait(step(t), "n1's inventory", func(ctx context.Context) error {
		_, err := s.CLI(ctx, "inventory", "show", "n1")
		return err
	})
	require.NoError(t, err)
	secrets := writtenSecrets(t, s, tokens, nodes...)

	var said bytes.Buffer
	for _, args := range []string{"status", "site list", "token list", "node list", "node show n1", "route list", "inventory list", "inventory show n1", "events", "audit", "diag ping n1 n2"} {
		for _, format := range []string{"table", "json"} {
			out, err := s.CLI(step(t), append(strings.Fields(args), "-o", format)...)
			require.NoError(t, err)
			said.WriteString(out)
		}
	}
	for _, n := range nodes {
		for _, args := range []string{"status", "paths", "routes", "netmap", "health"} {
			out, err := n.Agent(step(t), args, "-o", "json")
			require.NoError(t, err)
			said.WriteString(out)
		}
		said.WriteString(wgShows(t, n.Node))
	}
	for _, n := range nodes {
		for _, path := range []string{"/metrics", "/v1/health", "/v1/status", "/v1/peers", "/v1/paths", "/v1/netmap", "/v1/routes"} {
			said.Write(read(t, n.Socket, path))
			said.Write(read(t, s.Hub.Socket, "/v1/nodes/"+n.Name+"/debug"+path))
		}
	}
	for _, path := range []string{"/v1/audit?limit=1000", "/v1/events?limit=1000"} {
		said.Write(read(t, s.Hub.Socket, path))
	}
	require.NoError(t, os.WriteFile(filepath.Join(s.Lab.Dir, "pass"), []byte("correct horse\n"), 0o600))
	_, err = s.CLI(step(t), "backup", filepath.Join(s.Lab.Dir, "backup"), "--passphrase-file", filepath.Join(s.Lab.Dir, "pass"))
	require.NoError(t, err)
	// Before it is encrypted a backup has the hub's key, and nothing else.
	plain := map[string]bool{}
	scan(bytes.NewReader(read(t, s.Hub.Socket, "/v1/backup")), secrets, plain)
	require.NotEmpty(t, plain)
	for name := range plain {
		require.True(t, strings.HasPrefix(name, "hub key"), name)
	}
	require.NoError(t, outside.Stop())
	require.NoError(t, inside.Stop())
	hit := map[string]bool{}
	scan(&said, secrets, hit)
	captured := int64(0)
	for _, file := range []string{outside.File, inside.File} {
		f, err := os.Open(file)
		require.NoError(t, err)
		n := scan(f, secrets, hit)
		f.Close()
		require.Greater(t, n, int64(10<<10), file)
		captured += n
	}
	private := requirePrivate(t, s.Hub.Dir)
	for _, n := range nodes {
		private += requirePrivate(t, n.StateDir)
	}
	require.Empty(t, hit, "in what is printed, answered and captured")

	own := map[string]bool{"cluster.key": true, "tls.pem": true, "hub.key": true, "identity.json": true, "identity.json.copy": true}
	files, size, control := 0, int64(0), map[string]bool{}
	require.NoError(t, filepath.WalkDir(s.Lab.Dir, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !d.Type().IsRegular() {
			return nil
		}
		require.NoError(t, err)
		f, err := os.Open(p)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a file on its way to another name
		}
		require.NoError(t, err)
		defer f.Close()
		into := hit
		if own[d.Name()] {
			into = control
		}
		n := scan(f, secrets, into)
		require.Empty(t, hit, p)
		files, size = files+1, size+n
		return nil
	}))
	require.NotEmpty(t, control, "the search finds secrets where they belong")
	t.Logf("%d secrets in 4 spellings looked for in %d files of %d KB, %d KB of captures, and all that commands and endpoints say: found in their own files alone", len(secrets)/4, files, size>>10, captured>>10)
	t.Logf("%d files of hub and agents are 0600, their directories 0700", private)
}
