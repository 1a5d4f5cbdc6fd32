package main

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"causeway/e2e"
	"causeway/netns/lab"
)

const (
	wgModule = "golang.zx2c4.com/wireguard"
	wgName   = "wireguard-go"
	wgPort   = 51820
	wgDevice = "wg0"
	wgMTU    = 1420
)

// buildWireGuard builds wireguard-go's daemon from the module that go.mod
// names.
func buildWireGuard(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, wgName), wgModule)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", wgModule, err, out)
	}
	return nil
}

// wgNode is a host with a wireguard-go.
type wgNode struct {
	host *lab.Host
	addr string
	key  *ecdh.PrivateKey
	proc *lab.Process
	sock string
}

// wgPeer is what a node knows of another one.
type wgPeer struct {
	node    *wgNode
	dial    bool // it knows the other's address
	allowed []string
}

func startWireGuard(ctx context.Context, w *world, h *lab.Host, addr string) (*wgNode, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	// The daemon's socket has a fixed place under /var/run; in a mount
	// namespace of its own that is a directory of the lab's.
	run := filepath.Join(h.Dir(), "run")
	if err := os.Mkdir(run, 0o755); err != nil {
		return nil, err
	}
	n := &wgNode{host: h, addr: addr, key: key, sock: filepath.Join(run, "wireguard", wgDevice+".sock")}
	n.proc, err = h.Start(lab.Program{Name: wgName, Dir: "/", Args: []string{
		"unshare", "-m", "sh", "-ec", `mount --bind "$1" /run; mkdir /run/wireguard; exec "$2" -f "$3"`,
		"sh", run, filepath.Join(w.bin.Dir, wgName), wgDevice,
	}})
	if err != nil {
		return nil, err
	}
	return n, lab.Wait(ctx, "the socket of "+wgName, func(context.Context) error {
		if !n.proc.Running() {
			return lab.Permanent(fmt.Errorf("%s ended:\n%s", wgName, n.proc.Output()))
		}
		c, err := net.Dial("unix", n.sock)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// configure sets the node's key and peers by the UAPI
// (https://www.wireguard.com/xplatform/), and its routes.
func (n *wgNode) configure(peers ...wgPeer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "set=1\nprivate_key=%s\nlisten_port=%d\nreplace_peers=true\n", hex.EncodeToString(n.key.Bytes()), wgPort)
	routes := fmt.Sprintf("ip link set %s mtu %d up\n", wgDevice, wgMTU)
	for _, p := range peers {
		fmt.Fprintf(&b, "public_key=%s\n", hex.EncodeToString(p.node.key.PublicKey().Bytes()))
		if p.dial {
			fmt.Fprintf(&b, "endpoint=%s:%d\n", p.node.addr, wgPort)
		}
		for _, a := range p.allowed {
			fmt.Fprintf(&b, "allowed_ip=%s\n", a)
			routes += fmt.Sprintf("ip route add %s dev %s\n", a, wgDevice)
		}
	}
	c, err := net.Dial("unix", n.sock)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte(b.String() + "\n")); err != nil {
		return fmt.Errorf("configure %s: %w", wgName, err)
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && answer != "errno=0\n" {
		err = errors.New(strings.TrimSpace(answer))
	}
	if err != nil {
		return fmt.Errorf("configure %s: %w", wgName, err)
	}
	n.host.Sh(routes)
	return nil
}

// startSites starts wireguard-go at every site.
func startSites(ctx context.Context, w *world) (out []*wgNode, err error) {
	for _, s := range w.sites {
		n, err := startWireGuard(ctx, w, s.host, s.addr)
		if err != nil {
			return nil, err
		}
		s.proc = n.proc
		out = append(out, n)
	}
	return out, nil
}

// connectWireGuardDirect joins the first site with each of the others.
func connectWireGuardDirect(ctx context.Context, w *world) error {
	ctx, cancel := e2e.Step(ctx)
	defer cancel()
	n, err := startSites(ctx, w)
	if err != nil {
		return err
	}
	var others []wgPeer
	for i := 1; i < len(n); i++ {
		others = append(others, wgPeer{n[i], true, []string{w.sites[i].pods}})
		if err := n[i].configure(wgPeer{n[0], true, []string{w.sites[0].pods}}); err != nil {
			return err
		}
	}
	return n[0].configure(others...)
}

// connectWireGuardHub joins each site with the hub, whose kernel forwards
// between the tunnels.
func connectWireGuardHub(ctx context.Context, w *world) error {
	ctx, cancel := e2e.Step(ctx)
	defer cancel()
	n, err := startSites(ctx, w)
	if err != nil {
		return err
	}
	w.hub.Sysctl("net.ipv4.ip_forward=1")
	hub, err := startWireGuard(ctx, w, w.hub, e2e.HubAddr)
	if err != nil {
		return err
	}
	w.relay = hub.proc
	// The hub as well knows the sites' addresses: whoever has a packet first
	// begins.
	if err := hub.configure(wgPeer{n[0], true, []string{w.sites[0].pods}}, wgPeer{n[1], true, []string{w.sites[1].pods}}); err != nil {
		return err
	}
	for i := range n {
		if err := n[i].configure(wgPeer{hub, true, []string{w.sites[1-i].pods}}); err != nil {
			return err
		}
	}
	return nil
}
