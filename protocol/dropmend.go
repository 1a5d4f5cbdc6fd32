package protocol

import (
	"fmt"
	"strings"
)

// Mend is who writes the rules that d is of, and what has them let packets pass both ways
// between the tunnel's interface and the one that pods are behind, for good; empty: it is none
// of the programs that write their rules anew, or the rule is not theirs to set. A mend of
// Docker's is a text, all others are command lines.
func (d Drop) Mend(tunnel, pods string) (who, mend string) {
	_, table, _ := strings.Cut(d.Chain, " ")
	switch {
	case strings.HasPrefix(table, DockerTable+" "):
		return "Docker", DockerMend()
	case d.Hook != "forward" || tunnel == "" || pods == "":
	case d.Owner == OwnerUfw:
		return "ufw", ufwMend(tunnel, pods)
	case strings.HasPrefix(d.Chain, FirewalldTable+" "):
		return "firewalld", firewalldMend(tunnel, pods)
	}
	return "", ""
}

// Let is the command line that lets what match says, as nft has it, pass before d drops it. Whoever
// calls it sees to it that the chain's name means nothing to a shell.
func (d Drop) Let(match string) string {
	if d.Handle == 0 { // a policy, which is asked last
		return fmt.Sprintf("nft 'add rule %s %s accept'", d.Chain, match)
	}
	return fmt.Sprintf("nft 'insert rule %s handle %d %s accept'", d.Chain, d.Handle, match)
}

// FirewalldTable is the nftables table of firewalld, with its family.
const FirewalldTable = "inet firewalld"

// firewalldMend is the command that has firewalld let packets pass between interfaces, for
// good. What zone an interface is in is for the operator to say: no agent runs it.
func firewalldMend(interfaces ...string) string {
	return "firewall-cmd --permanent --zone=trusted --add-interface=" + strings.Join(interfaces, " --add-interface=") + " && firewall-cmd --reload"
}

// OwnerUfw is the Owner of a Drop in a table that ufw writes.
const OwnerUfw = "ufw"

// ufwMend is the command that has ufw let packets pass both ways between two interfaces, for
// good. It is the operator's to run: ufw writes its chains anew at each reload.
func ufwMend(a, b string) string {
	return fmt.Sprintf("ufw route allow in on %s out on %s && ufw route allow in on %s out on %s", a, b, b, a)
}

// DockerTable is the name of the nftables tables of Docker's own, in families ip and ip6.
const DockerTable = "docker-bridges"

// DockerMark is the bit of a packet's mark by which Docker's nftables rules let through what
// comes out of the tunnel, once its configuration says so: see DockerMend.
const DockerMark = 0x1000

// DockerMend has a Docker that writes nftables of its own let what comes out of the tunnel
// pass to its containers. It goes on dropping all else that is not for a published port.
func DockerMend() string {
	return fmt.Sprintf(`add "allow-direct-routing": true, "bridge-accept-fwmark": "0x%x/0x%x" to /etc/docker/daemon.json and run 'systemctl restart docker'`, DockerMark, DockerMark)
}
