package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// An operator on another host works with a context file over mutual TLS, within his
// role; a revocation shuts him out while he works; his key is on no disk but his own.
func TestAdminFromElsewhere(t *testing.T) {
	needRoot(t)
	t.Parallel()
	l := lab.New(t)
	inet := l.Switch("inet")
	host := l.Host("hub").Link("eth0", inet, HubAddr+"/24")
	desk := l.Host("desk").Link("eth0", inet, "203.0.113.30/24")
	n1 := l.Host("n1").Link("eth0", inet, "203.0.113.21/24")
	s, err := NewSystem(step(t), l, binaries(t), host, HubAddr, "--listen-admin", ":7443")
	require.NoError(t, err)
	require.NoError(t, desk.Settle(step(t)))
	require.NoError(t, n1.Settle(step(t)))
	require.NoError(t, s.CreateSite(step(t), "s1"))
	_, err = s.Join(step(t), NodeSpec{Name: "n1", Site: "s1", Host: n1, TokenRoutes: []string{"10.1.1.0/24"}})
	require.NoError(t, err)
	require.NoError(t, s.WaitReady(step(t), "n1"))

	dir := t.TempDir()
	file := filepath.Join(dir, "olga.pem")
	_, err = s.CLI(step(t), "admin", "create", "olga", "--role", "operator", "--file", file)
	require.NoError(t, err)
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	cli := func(args ...string) (string, error) {
		return desk.Run(step(t), append([]string{"env", "HOME=" + dir, "XDG_CONFIG_HOME=" + filepath.Join(dir, "config"), s.Bin.CLI}, args...)...)
	}
	_, err = cli("context", "import", file, "--name", "prod")
	require.NoError(t, err)
	_, err = cli("context", "use", "prod")
	require.NoError(t, err)
	out, err := cli("node", "list", "-o", "name")
	require.NoError(t, err)
	require.Equal(t, "n1", strings.TrimSpace(out))
	_, err = cli("node", "label", "n1", "rack=r12")
	require.NoError(t, err)
	_, err = cli("diag", "ping", "n1", s.Node("n1").Name)
	require.NoError(t, err)
	status, debug := rawGet(t, desk, text, "/v1/nodes/n1/debug/v1/status")
	require.Equal(t, 200, status, debug)
	require.Contains(t, debug, "n1")
	_, err = cli("admin", "create", "mallory", "--role", "admin")
	requireOneLine(t, err, "your role does not allow this")
	_, err = cli("node", "revoke", "n1", "--yes")
	requireOneLine(t, err, "your role does not allow this")
	_, err = cli("backup", filepath.Join(dir, "b"), "--passphrase-file", file)
	requireOneLine(t, err, "your role does not allow this")

	var audit []api.AuditEntry
	require.NoError(t, s.Ask(step(t), &audit, "audit"))
	require.Equal(t, "admin:olga", audit[0].Who)
	require.Equal(t, "node label n1", audit[0].Why)

	// A viewer may not look into agents.
	_, err = s.CLI(step(t), "admin", "create", "vic", "--role", "viewer", "--file", filepath.Join(dir, "vic.pem"))
	require.NoError(t, err)
	vic, err := os.ReadFile(filepath.Join(dir, "vic.pem"))
	require.NoError(t, err)
	status, debug = rawGet(t, desk, vic, "/v1/nodes/n1/debug/v1/status")
	require.Equal(t, 403, status)
	require.Contains(t, debug, "your role does not allow this")

	// Cut while a request is under way: nobody answers these pings for 20 s.
	cut := make(chan error, 1)
	go func() {
		_, err := cli("diag", "ping", "n1", "198.18.7.7", "--count", "20")
		cut <- err
	}()
	require.NoError(t, lab.Wait(step(t), "the connections of olga", func(ctx context.Context) error {
		out, err := host.Run(ctx, "ss", "-Htn", "state", "established", "sport", "=", ":7443")
		if err == nil && strings.TrimSpace(out) == "" {
			err = errors.New("none")
		}
		return err
	}))
	start := time.Now()
	_, err = s.CLI(step(t), "admin", "revoke", "olga", "--yes")
	require.NoError(t, err)
	requireOneLine(t, <-cut, "the hub at 203.0.113.1:7443 refuses admin olga: the certificate was revoked", "what was asked may be done or not")
	measured(t, "revoked admin cut", time.Since(start).Seconds(), 2)
	_, err = cli("node", "list")
	requireOneLine(t, err, "refuses admin olga: the certificate was revoked")

	key := strings.Split(string(text[strings.Index(string(text), "PRIVATE KEY-----"):]), "\n")[1]
	require.NoError(t, filepath.WalkDir(filepath.Dir(s.Hub.Dir), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		require.NotContains(t, string(b), key, path)
		if filepath.Base(path) == "admin-ca.pem" {
			fi, serr := d.Info()
			require.NoError(t, serr)
			require.Equal(t, os.FileMode(0o600), fi.Mode().Perm())
		}
		return err
	}))
	require.NotContains(t, s.Hub.Proc.Output(), key)
}

// rawGet asks the hub's admin API from host as any TLS client can: a context's text is
// certificate, key and CA in PEM.
func rawGet(t *testing.T, host *lab.Host, text []byte, path string) (status int, body string) {
	t.Helper()
	pair, err := tls.X509KeyPair(text, text)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(text))
	at := net.JoinHostPort(HubAddr, "7443")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}},
		DialContext: func(context.Context, string, string) (c net.Conn, err error) {
			derr := host.Do(func() error { c, err = net.Dial("tcp", at); return err })
			return c, derr
		}}}
	req, err := http.NewRequestWithContext(step(t), http.MethodGet, "https://"+at+path, nil)
	require.NoError(t, err)
	res, err := client.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, string(b)
}
