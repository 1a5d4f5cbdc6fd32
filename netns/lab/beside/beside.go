// Package beside has what other programs filter and translate on hosts: rules as they write them, and the programs themselves on a
// machine. Tests put them beside what the agent does.
package beside

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"causeway/netns/lab"
)

// Program is what else filters on a host, which has the pod 10.1.0.11 behind bridge pods0 and the tunnel's device cw0;
// its other links are eth0, or lan0 and far0.
type Program struct {
	Name      string
	Service   string   // an address whose ports 80 and 443 are those of 10.2.0.11, for the host and its pods
	Published string   // port of the host that is the pod's port 80, for other hosts
	OneFamily bool     // its rules know IPv4 alone
	Stateless bool     // conntrack does not see pods' packets
	Machine   []string // what is done with Debian's packages, on a machine that is the host
	Soak      bool     // what it does differs little from another's

	load string   // what takes the rules
	file string   // its rules, in the source tree
	more []string // what the agent opens of them, by commands
}

// What the agent opens of Docker's rules for the tunnel: netns, firewall.go and docker.go.
var dockerOpened = []string{"IPT -t raw -I PREROUTING -i cw0 -d 10.1.0.0/24 -j ACCEPT", "IPT -I DOCKER-USER -i cw0 -j ACCEPT", "IPT -I DOCKER-USER -o cw0 -j ACCEPT"}

func opened(program string) (out []string) {
	for _, l := range dockerOpened {
		out = append(out, strings.Replace(l, "IPT", program, 1))
	}
	return out
}

const (
	docker = "netns/look/testdata/docker29/"
	ours   = "netns/lab/beside/testdata/"
)

// Programs are those that are tried, nothing first.
var Programs = []Program{
	{Name: "nothing"},
	{Name: "Docker 29, iptables-nft", load: "iptables-nft-restore", file: docker + "iptables", more: opened("iptables-nft"), Published: "8080"},
	{Name: "Docker 29, iptables-legacy", load: "iptables-legacy-restore", file: docker + "iptables", more: opened("iptables-legacy"), Published: "8080", Soak: true},
	// As with trusted_host_interfaces=cw0: no other rule lets anything by this backend's drop.
	{Name: "Docker 29, nftables", load: "nft -f -", file: docker + "nftables", OneFamily: true, Soak: true, more: []string{"nft insert rule ip docker-bridges filter-FORWARD iifname cw0 accept",
		`nft 'flush chain ip docker-bridges raw-PREROUTING; add rule ip docker-bridges raw-PREROUTING ip daddr 10.1.0.11 iifname != { "pods0", "cw0" } counter drop'`}},
	{Name: "kube-proxy, iptables", load: "iptables-nft-restore", file: ours + "kube-proxy-iptables", Service: "10.96.0.1", Soak: true},
	{Name: "kube-proxy, iptables-legacy", load: "iptables-legacy-restore", file: ours + "kube-proxy-iptables", Service: "10.96.0.1", Soak: true},
	{Name: "kube-proxy, nftables", load: "nft -f -", file: ours + "kube-proxy-nftables", Service: "10.96.0.1"},
	{Name: "CNI with notrack", load: "iptables-nft-restore", file: ours + "cni-notrack", Stateless: true},
	{Name: "firewalld", Machine: []string{"systemctl start firewalld", "firewall-cmd -q --zone=trusted --add-interface=cw0 --add-interface=pods0 --add-interface=eth0 --add-interface=lan0 --add-interface=far0"}},
	{Name: "ufw", Machine: []string{"ufw --force enable", "ufw route allow in on cw0 out on pods0", "ufw route allow in on pods0 out on cw0", "ufw allow in on cw0", "ufw route allow in on eth0 out on pods0", "ufw route allow in on pods0 out on eth0", "ufw allow in on eth0",
		"ufw route allow in on lan0 out on cw0", "ufw route allow in on far0 out on cw0"}},
}

// Start puts it in place on a host. source is the source tree.
func (p Program) Start(ctx context.Context, h *lab.Host, source string) error {
	// As the agent's main table has it, ahead of others' masquerade.
	commands := []string{"nft 'add table inet causeway; add chain inet causeway identity { type nat hook postrouting priority 90; }; " +
		"add rule inet causeway identity oifname cw0 ip saddr 10.1.0.0/24 snat ip to ip saddr'"}
	if p.file != "" {
		file, err := filepath.Abs(filepath.Join(source, p.file))
		if err != nil {
			return err
		}
		commands = append(append(commands, p.load+" <"+file), p.more...)
	}
	for _, c := range commands {
		if _, err := h.Run(ctx, "sh", "-ec", c); err != nil {
			return err
		}
	}
	if p.Machine == nil {
		return nil
	}
	m, err := h.Machine(source, "firewalld", "ufw")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if err := m.Boot(ctx); err != nil {
		return err
	}
	for _, l := range p.Machine {
		if _, err := m.Run(ctx, "sh", "-ec", l); err != nil {
			return err
		}
	}
	return nil
}
