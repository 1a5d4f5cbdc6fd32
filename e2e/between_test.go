package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// Load balancers and proxies between agents and hub.

const (
	balancerAddr = "203.0.113.2"
	balancerPort = "8443"
	proxyAddr    = "203.0.113.3"
	proxyPort    = "8888"
)

// onlyTCPTo lets a host reach one TCP port and nothing else.
func onlyTCPTo(h *lab.Host, addr, port string) {
	h.Nft(fmt.Sprintf(`table inet only {
	chain out { type filter hook output priority 0; oifname "eth0" ip daddr %s tcp dport %s accept; oifname "eth0" meta l4proto { tcp, udp } drop; }
}
`, addr, port))
}

// selfSigned writes a certificate, its key, and both in one file.
func selfSigned(t *testing.T, dir string) (cert, key, both string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	x := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), DNSNames: []string{"lb.example"}}
	der, err := x509.CreateCertificate(rand.Reader, x, x, k.Public(), k)
	require.NoError(t, err)
	kd, err := x509.MarshalECPrivateKey(k)
	require.NoError(t, err)
	c, p := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kd})
	cert, key, both = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "both.pem")
	for f, b := range map[string][]byte{cert: c, key: p, both: append(append([]byte{}, c...), p...)} {
		require.NoError(t, os.WriteFile(f, b, 0o600))
	}
	return cert, key, both
}

// nginx ends TLS and speaks to the hub by TLS of its own, as its documentation
// says for WebSockets.
func nginx(t *testing.T, h *lab.Host) lab.Program {
	t.Helper()
	d := h.Dir()
	cert, key, _ := selfSigned(t, d)
	file := filepath.Join(d, "nginx.conf")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `
daemon off; user root; worker_processes 1; pid %[1]s/nginx.pid; error_log stderr notice;
events { worker_connections 256; }
http {
	access_log off;
	client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
	map $http_upgrade $connection_upgrade { default upgrade; '' close; }
	server {
		listen %[2]s ssl http2; ssl_certificate %[3]s; ssl_certificate_key %[4]s;
		location / {
			proxy_pass https://%[5]s:443; proxy_http_version 1.1; proxy_read_timeout 1h; proxy_set_header Host $host;
			proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
		}
	}
}
`, d, balancerPort, cert, key, HubAddr), 0o644))
	return lab.Program{Name: "nginx", Args: []string{"nginx", "-c", file, "-e", "stderr"}}
}

func haproxy(t *testing.T, h *lab.Host) lab.Program {
	t.Helper()
	d := h.Dir()
	_, _, both := selfSigned(t, d)
	file := filepath.Join(d, "haproxy.cfg")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `
global
	maxconn 256
	ssl-server-verify none
defaults
	mode http
	timeout connect 5s
	timeout client 30s
	timeout server 30s
	timeout tunnel 1h
frontend in
	bind :%s ssl crt %s alpn h2,http/1.1
	default_backend hub
backend hub
	server hub %s:443 ssl alpn http/1.1
`, balancerPort, both, HubAddr), 0o644))
	return lab.Program{Name: "haproxy", Args: []string{"haproxy", "-db", "-f", file}}
}

// The hub's HTTPS port is behind a load balancer that ends TLS and reads HTTP;
// nothing else of it can be reached.
func TestStreamBehindLoadBalancer(t *testing.T) {
	t.Parallel()
	var lb *lab.Host
	s, n := newSmallBehind(t, 2, balancerAddr, func(l *lab.Lab, inet *lab.Host) {
		lb = l.Host("lb").Link("eth0", inet, balancerAddr+"/24")
	}, "--public-https-port", balancerPort)
	for _, x := range n {
		onlyTCPTo(x.Host, balancerAddr, balancerPort)
	}
	p, err := lb.Start(nginx(t, lb))
	require.NoError(t, err)
	listening(t, lb, balancerPort, p)
	joinSmall(t, s, n, 1)
	joinSmall(t, s, n, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	_, err = s.Serve(step(t), n[1].Pod.Host)
	require.NoError(t, err)
	works := func(by string) {
		require.NoError(t, Ping(step(t), n[0].Pod.Host, n[1].Pod.V4))
		require.NoError(t, s.WaitPath(step(t), "n1", "n2", protocol.PathStream))
		require.NoError(t, s.WaitPath(step(t), "n2", "n1", protocol.PathStream))
		got, err := s.Send(step(t), "tcp", n[0].Pod.Host, n[1].Pod.V4, 20<<20)
		require.NoError(t, err)
		t.Logf("TCP over streams through %s, twice: %.0f Mbit/s", by, got.Mbits)
	}
	works("nginx")
	require.NoError(t, p.Stop(step(t)))
	p, err = lb.Start(haproxy(t, lb))
	require.NoError(t, err)
	listening(t, lb, balancerPort, p)
	works("haproxy")
}

// listening waits until a program accepts connections on a host's port.
func listening(t *testing.T, h *lab.Host, port string, p *lab.Process) {
	t.Helper()
	require.NoError(t, lab.Wait(step(t), "port "+port+" of "+h.Name, func(ctx context.Context) error {
		if !p.Running() {
			return lab.Permanent(errors.New(p.Output()))
		}
		out, err := h.Run(ctx, "ss", "-Hltn", "sport = :"+port)
		if err == nil && out == "" {
			err = errors.New("nobody listens")
		}
		return err
	}))
}

func tinyproxy(t *testing.T, h *lab.Host, password string) *lab.Process {
	t.Helper()
	file := filepath.Join(h.Dir(), "tinyproxy.conf")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, "Port %s\nListen %s\nTimeout 600\nMaxClients 50\nAllow 203.0.113.0/24\nConnectPort 443\nBasicAuth causeway %s\n",
		proxyPort, proxyAddr, password), 0o600))
	p, err := h.Start(lab.Program{Name: "tinyproxy", Args: []string{"tinyproxy", "-d", "-c", file}})
	require.NoError(t, err)
	listening(t, h, proxyPort, p)
	return p
}

// An HTTP proxy that wants a password is the only way out; one agent has it
// from its environment, the other from its config.
func TestStreamThroughHTTPProxy(t *testing.T) {
	t.Parallel()
	const password = "S3cret-of-the-Proxy"
	var ph *lab.Host
	s, n := newSmallBehind(t, 2, HubAddr, func(l *lab.Lab, inet *lab.Host) {
		ph = l.Host("proxy").Link("eth0", inet, proxyAddr+"/24")
	})
	p := tinyproxy(t, ph, password)
	proxy := "http://causeway:" + password + "@" + proxyAddr + ":" + proxyPort
	for i, x := range n {
		onlyTCPTo(x.Host, proxyAddr, proxyPort)
		spec := NodeSpec{Name: fmt.Sprintf("n%d", i+1), Site: fmt.Sprintf("s%d", i+1), Host: x.Host, TokenRoutes: PodRoutes(i+1, 1)}
		if i == 0 {
			spec.Env = []string{"HTTPS_PROXY=" + proxy}
		} else {
			spec.Proxy = proxy
		}
		var err error
		x.Node, err = s.Join(step(t), spec)
		require.NoError(t, err)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), n[0].Pod.Host, n[1].Pod.V4))
	require.NoError(t, s.WaitPath(step(t), "n1", "n2", protocol.PathStream))
	require.NoError(t, s.WaitPath(step(t), "n2", "n1", protocol.PathStream))

	// What an operator would be told, and no password in it.
	require.NoError(t, p.Stop(step(t)))
	require.NoError(t, n[0].Proc.WaitOutput(step(t), "connection refused"))
	p = tinyproxy(t, ph, "another")
	for _, x := range n {
		require.NoError(t, x.Proc.WaitOutput(step(t), "wants a user and password"))
	}
	require.NoError(t, p.Stop(step(t)))
	tinyproxy(t, ph, password)
	for _, x := range n { // it would ask again in a while
		require.NoError(t, x.Proc.Stop(step(t)))
		require.NoError(t, x.Start())
	}
	require.NoError(t, Ping(step(t), n[0].Pod.Host, n[1].Pod.V4))

	for _, x := range n {
		require.Equal(t, 1, strings.Count(x.Proc.Output(), "wants a user and password"), "said once")
		for _, c := range []string{"status", "health", "paths", "netmap"} {
			out, err := x.Agent(step(t), c, "-o", "json")
			require.NoError(t, err)
			require.NotContains(t, out, password)
		}
	}
	files := 0
	require.NoError(t, filepath.WalkDir(s.Lab.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !d.Type().IsRegular() || strings.HasSuffix(path, "tinyproxy.conf") || path == n[1].Config {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		require.NotContains(t, string(b), password, path)
		return nil
	}))
	require.Greater(t, files, 10)
}

// Real frames get lost and take time: the TCP inside stays alive. Not parallel: a
// time limit.
func TestTCPOverLossyStream(t *testing.T) {
	needRoot(t)
	bin := binaries(t)
	l := lab.New(t)
	inet, lan := l.Switch("inet"), l.Switch("lan")
	hub := l.Host("hub").Link("eth0", inet, HubAddr+"/24")
	r := l.Router("r", lab.EndpointIndependent).Link("wan", inet, "203.0.113.11/24").Link("lan", lan, "192.168.1.1/24")
	hosts := []*lab.Host{l.Host("n1").Link("eth0", lan, "192.168.1.11/24").Default("192.168.1.1"), l.Host("n2").Link("eth0", inet, "203.0.113.22/24")}
	r.Block("meta l4proto udp")
	for _, off := range []struct {
		h   *lab.Host
		dev string
	}{{hub, "eth0"}, {r, "wan"}, {r, "lan"}, {hosts[0], "eth0"}, {hosts[1], "eth0"}} {
		off.h.Sh("ethtool -K " + off.dev + " tso off gso off gro off tx-udp-segmentation off >/dev/null 2>&1")
	}
	s, err := NewSystem(step(t), l, bin, hub, HubAddr)
	require.NoError(t, err)
	_, err = r.DelayBoth(step(t), bin.Labtool, "lan", "wan", lab.Slow{Delay: 25 * time.Millisecond, Loss: 1})
	require.NoError(t, err)
	var pods []*lab.Host
	var at []string
	for i, h := range hosts {
		at = append(at, fmt.Sprintf("10.%d.1.11", i+1))
		pods = append(pods, h.PodNet("pods0", fmt.Sprintf("10.%d.1.1/24", i+1)).Pod(fmt.Sprintf("p%d", i+1), at[i]+"/24"))
		require.NoError(t, h.Settle(step(t)))
		site := fmt.Sprintf("s%d", i+1)
		require.NoError(t, s.CreateSite(step(t), site))
		_, err := s.Join(step(t), NodeSpec{Name: fmt.Sprintf("n%d", i+1), Site: site, Host: h, TokenRoutes: []string{fmt.Sprintf("10.%d.1.0/24", i+1)}})
		require.NoError(t, err)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	for _, h := range []*lab.Host{pods[1], hub} {
		_, err := s.Serve(step(t), h)
		require.NoError(t, err)
	}
	require.NoError(t, Ping(step(t), pods[0], at[1]))
	require.NoError(t, s.WaitPath(step(t), "n1", "n2", protocol.PathStream))

	flood := func(from *lab.Host, addr string) float64 {
		out, err := from.Run(within(t, 30*time.Second), bin.Labtool, "flood", addr, "-streams", "1", "-for", "4s")
		require.NoError(t, err)
		var f struct {
			Bytes, Seconds float64
		}
		require.NoError(t, json.Unmarshal([]byte(out), &f))
		return f.Bytes * 8 / f.Seconds / 1e6
	}
	plain := flood(hosts[0], HubAddr)
	hold, err := s.Hold(step(t), pods[0], at[1])
	require.NoError(t, err)
	inside := flood(pods[0], at[1])
	lines, gap, err := hold.End(step(t))
	require.NoError(t, err)
	t.Logf("50 ms and 1 %% loss each way: plain TCP %.0f Mbit/s, TCP over the stream %.0f; beside it a line every 50 ms: %d, at most %.2f s apart", plain, inside, lines, gap)
	require.Less(t, gap, 3.0)
	require.Greater(t, inside, plain/10)
	require.NoError(t, s.WaitPath(step(t), "n1", "n2", protocol.PathStream))
	require.NotContains(t, s.Node("n1").Proc.Output(), "stream to the hub has ended")
}
