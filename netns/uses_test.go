package netns

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/netns/internal/kernel"
)

// settings are all of the namespace's, by name.
func settings(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, l := range strings.Split(sh(t, "sysctl -a 2>/dev/null | grep '^net\\.ipv[46]\\.' | grep -v stable_secret"), "\n") {
		if k, v, ok := strings.Cut(l, " = "); ok {
			out[k] = v
		}
	}
	return out
}

// changed are the settings that differ, as 'name was now'.
func changed(before, after map[string]string) (out []string) {
	for k, v := range after {
		if was := before[k]; was != v && !strings.Contains(k, ".conf.cw0.") {
			out = append(out, k+" "+was+" "+v)
		}
	}
	return out
}

// What the agent turns on is what the plan needs and nothing beside it; where it is needed no
// more it is taken back at once.
func TestUsesAreBounded(t *testing.T) {
	h := host(t)
	ctx := context.Background()
	// A management network, and a LAN of an approved route with the host's own router behind it.
	sh(t, `for i in mgmt lan.5; do ip link add $i type veth peer name far-$i; ip link set $i up; ip link set far-$i up; done
		ip addr add 172.16.0.2/24 dev mgmt; ip addr add 10.66.0.2/24 dev lan.5; ip route add 10.67.0.0/16 via 10.66.0.1
		sysctl -qw net.ipv4.conf.mgmt.rp_filter=1`)
	before := settings(t)
	c := testConfig()
	c.Local = append(c.Local, prefixes("10.67.3.0/24")...)
	require.NoError(t, h.Apply(ctx, used(t, h, plan(t, c))))
	require.ElementsMatch(t, []string{"net.ipv4.conf.pods.forwarding 0 51806", "net.ipv4.conf.lan/5.forwarding 0 51806",
		"net.ipv6.conf.all.forwarding 0 51806", "net.ipv4.conf.mgmt.src_valid_mark 0 1"}, changed(before, settings(t)))
	d, err := h.Drift(ctx, Kinds...)
	require.NoError(t, err)
	require.Empty(t, d)

	// The route is withdrawn, sources are not checked any more, nothing has IPv6.
	sh(t, "sysctl -qw net.ipv4.conf.mgmt.rp_filter=0")
	before["net.ipv4.conf.mgmt.rp_filter"] = "0"
	c.Local = prefixes("10.1.0.0/16")
	require.NoError(t, h.Apply(ctx, used(t, h, plan(t, c))))
	require.Equal(t, []string{"net.ipv4.conf.pods.forwarding 0 51806"}, changed(before, settings(t)))

	// The pods' interface is another one by now, with the setting of before; the record is lost.
	sh(t, "ip link set pods down; ip link set pods name pods9; ip link set pods9 up; ip addr del 10.1.0.1/16 dev pods9; ip addr add 10.1.0.1/16 dev mgmt")
	require.Equal(t, forwardMark+"\n", sh(t, "sysctl -n net.ipv4.conf.pods9.forwarding"))
	d, err = h.Drift(ctx, Kinds...)
	require.NoError(t, err)
	require.Empty(t, d, "what went is no drift")
	require.NoError(t, h.Apply(ctx, used(t, h, plan(t, c))))
	require.Equal(t, "0\n"+forwardMark+"\n", sh(t, "sysctl -n net.ipv4.conf.pods9.forwarding net.ipv4.conf.mgmt.forwarding"))
	require.NoError(t, os.RemoveAll(h.stateDir))
	require.NoError(t, os.Mkdir(h.stateDir, 0o700))
	require.NoError(t, NewHost(h.stateDir, zerolog.Nop()).Remove(ctx, c))
	require.Equal(t, "0\n0\n", sh(t, "sysctl -n net.ipv4.conf.pods9.forwarding net.ipv4.conf.mgmt.forwarding"))
}

// Whoever else turns forwarding on, before or after, has it: nothing of ours drops his packets,
// and nothing is taken back when we leave. Whoever turns it off turns off what is his.
func TestForwardingOfOthers(t *testing.T) {
	const on = "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
	bound := func() bool { return strings.Contains(sh(t, "nft list table inet causeway"), "chain bound") }
	for _, before := range []bool{true, false} {
		h := host(t)
		ctx := context.Background()
		p := plan(t, testConfig())
		if before {
			sh(t, on)
		}
		require.NoError(t, h.Apply(ctx, used(t, h, p)))
		require.Equal(t, before, !bound())
		if !before {
			u := used(t, h, p).Uses
			require.True(t, u.Equal(h.last.Uses))
			sh(t, on)
			require.False(t, used(t, h, p).Equal(u), "it is seen")
			d, err := h.Drift(ctx, Sysctls, Nftables)
			require.NoError(t, err)
			require.Empty(t, d, "it is nothing to mend")
			require.NoError(t, h.Apply(ctx, h.last), "a plan of before it")
			require.Equal(t, "1\n1\n1\n", sh(t, "sysctl -n net.ipv4.ip_forward net.ipv4.conf.pods.forwarding net.ipv6.conf.all.forwarding"))
			require.NoError(t, h.Apply(ctx, used(t, h, p)))
			require.False(t, bound())
		}
		if !before { // off and on again: it is ours meanwhile
			sh(t, "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
			require.NoError(t, h.Apply(ctx, used(t, h, p)))
			require.True(t, bound())
			require.Equal(t, "0\n51806\n51806\n0\n", sh(t, "sysctl -n net.ipv4.ip_forward net.ipv4.conf.pods.forwarding net.ipv6.conf.all.forwarding net.ipv4.conf.eth0.forwarding"))
			sh(t, on)
			require.NoError(t, h.Apply(ctx, used(t, h, p)))
		}
		require.NoError(t, h.Remove(ctx, p.Config))
		require.Equal(t, "1\n1\n1\n1\n", sh(t, "sysctl -n net.ipv4.ip_forward net.ipv4.conf.pods.forwarding net.ipv6.conf.all.forwarding net.ipv6.conf.eth0.forwarding"))
	}
}

// An agent of before had the whole host forward, and recorded that. What it did is taken back
// when this one takes over, unless containers need it by now.
func TestForwardingOfTheAgentBefore(t *testing.T) {
	for name, want := range map[string]string{
		"true": "0\n51806\n51806\n0\n0\n1\n0\n",
		"iptables-nft -N DOCKER-USER; iptables-nft -A DOCKER-USER -j RETURN": "1\n1\n51806\n0\n0\n1\n0\n",
	} {
		h := host(t)
		ctx := context.Background()
		sh(t, name)
		before := dump(t)
		p := plan(t, testConfig())
		rec := record{Version: recordVersion, Interface: "cw0", Table: DefaultTable}
		for _, s := range []sysctl{{forward4, "1"}, {"net.ipv4.conf.all.src_valid_mark", "1"}, {forward6, "1"}} {
			rec.Sysctls = append(rec.Sysctls, savedSysctl{Key: s.key, Was: "0", Set: s.value})
			for _, proto := range map[string][]string{forward4: {"ipv4"}, forward6: {"ipv6"}}[s.key] {
				for _, k := range kernel.PerInterface(proto, "forwarding") {
					if k != forward6 {
						rec.Sysctls = append(rec.Sysctls, savedSysctl{Key: k, Was: "0", Beside: s.key})
					}
				}
			}
		}
		rec.Sysctls = append(rec.Sysctls, routerAdvertisements()...)
		b, err := json.Marshal(rec)
		require.NoError(t, err)
		require.NotEmpty(t, b)
		require.NoError(t, h.writeRecord(&rec))
		sh(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.src_valid_mark=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.eth0.accept_ra=2 net.ipv6.conf.pods.accept_ra=2")
		require.NoError(t, h.Apply(ctx, used(t, h, p)))
		require.Equal(t, want, sh(t, "sysctl -n net.ipv4.ip_forward net.ipv4.conf.pods.forwarding net.ipv6.conf.all.forwarding net.ipv6.conf.eth0.forwarding net.ipv6.conf.default.forwarding net.ipv6.conf.eth0.accept_ra net.ipv4.conf.all.src_valid_mark"), name)
		require.True(t, used(t, h, p).Equal(h.last.Uses))
		require.NoError(t, h.Remove(ctx, p.Config))
		tun(t)
		if name == "true" {
			require.Empty(t, cmp.Diff(links(before), links(dump(t))))
		}
	}
}

// What one interface learns of its router it keeps, whatever is written for the others, and
// also where the writing stops halfway.
func TestForward6KeepsRouters(t *testing.T) {
	if _, err := exec.LookPath("radvd"); err != nil {
		t.Log("no radvd: routes of its kind are set by hand")
	}
	h := host(t)
	ctx := context.Background()
	sh(t, "ip -6 route add default via fe80::1 dev eth0 proto ra metric 1024 expires 600")
	p := plan(t, testConfig())
	before := sh(t, "ip -6 route show proto ra | sed 's/expires.*//'")
	require.NotEmpty(t, before)
	require.NoError(t, h.Apply(ctx, used(t, h, p)))
	require.Equal(t, before, sh(t, "ip -6 route show proto ra | sed 's/expires.*//'"))
	sh(t, "sysctl -qw net.ipv6.conf.all.forwarding=0")
	require.NoError(t, h.Apply(ctx, used(t, h, p)))
	require.NoError(t, h.Remove(ctx, p.Config))
	require.Equal(t, before, sh(t, "ip -6 route show proto ra | sed 's/expires.*//'"))
	require.Equal(t, "1\n0\n", sh(t, "sysctl -n net.ipv6.conf.eth0.accept_ra net.ipv6.conf.eth0.forwarding"))
}

// What leads out is told by routes, whatever its name.
func TestLeadsOut(t *testing.T) {
	host(t)
	sh(t, "ip link add br-ex type bridge; ip link set br-ex up; ip addr add 198.51.100.2/24 dev br-ex; ip route add 0.0.0.0/0 via 198.51.100.1 table 77")
	for name, want := range map[string]bool{"eth0": true, "br-ex": true, "pods": false, "lo": false, "gone": false} {
		require.Equal(t, want, LeadsOut(name), name)
	}
}
