package look

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDockerUserIsOpened(t *testing.T) {
	for prog, list := range map[string]string{
		"iptables-nft":    "nft list chain ip filter DOCKER-USER",
		"iptables-legacy": "iptables-legacy -S DOCKER-USER",
	} {
		t.Run(prog, func(t *testing.T) {
			set, h := host(t)
			p := plan(t, testConfig())
			sh(t, prog+" -P FORWARD DROP; "+prog+" -N DOCKER-USER; "+prog+" -I FORWARD -j DOCKER-USER; "+prog+" -A DOCKER-USER -j RETURN")
			before := sh(t, prog+"-save | grep -v '^#' | sed 's/\\[.*//'")
			ctx := context.Background()
			require.NoError(t, set.Apply(ctx, p))
			require.NoError(t, set.Apply(ctx, p))
			out := sh(t, list)
			require.Equal(t, 2, strings.Count(out, "cw0"), out)
			why, err := h.ForwardBlockedBy(ctx)
			require.NoError(t, err)
			require.Empty(t, why)
			require.NoError(t, set.Remove(ctx, p.Config))
			require.Equal(t, before, sh(t, prog+"-save | grep -v '^#' | sed 's/\\[.*//'"))
		})
	}
}

// What drops is named, with a command for what is behind the host that opens that and takes nothing
// away: firewalld's and ufw's are applied where these are, in e2e.
func TestForwardBlockedBy(t *testing.T) {
	const between = "iifname cw0 oifname pods accept && nft %s iifname pods oifname cw0 accept'"
	for prepare, want := range map[string]string{
		"true": "",
		"iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -p tcp --dport 22 -j DROP":                        "nftables chain ip filter FORWARD drops forwarded traffic and has no rule that accepts interface cw0: run 'nft add rule ip filter FORWARD " + fmt.Sprintf(between, "add rule ip filter FORWARD"),
		"iptables-legacy -P FORWARD DROP":                                                                        "iptables-legacy chain FORWARD has the policy DROP and no rule that accepts interface cw0: run 'iptables-legacy -A FORWARD -i cw0 -o pods -j ACCEPT && iptables-legacy -A FORWARD -i pods -o cw0 -j ACCEPT'",
		"nft add table inet fw; nft 'add chain inet fw f { type filter hook forward priority 0; policy drop; }'": "chain inet fw f drops forwarded traffic and has no rule that accepts interface cw0: run 'nft add rule inet fw f " + fmt.Sprintf(between, "add rule inet fw f"),
		"nft add table inet fw; nft 'add chain inet fw f { type filter hook forward priority 0; }'; nft add rule inet fw f tcp dport 22 drop; nft add rule inet fw f counter reject": "chain inet fw f drops forwarded traffic and has no rule that accepts interface cw0: run 'nft insert rule inet fw f handle 3 " + fmt.Sprintf(between, "insert rule inet fw f handle 3"),
		`nft add table inet firewalld; nft 'add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }'
			nft add rule inet firewalld filter_FORWARD ct state established,related accept
			nft add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited`: "firewalld, which rejects what comes in by cw0: run 'firewall-cmd --permanent --zone=trusted --add-interface=cw0 --add-interface=pods && firewall-cmd --reload'",
		"iptables-nft -N ufw-user-forward; iptables-nft -P FORWARD DROP": "ufw, which drops what it is not told to forward: run 'ufw route allow in on cw0 out on pods && ufw route allow in on pods out on cw0'",
		`nft add table inet fw; nft 'add chain inet fw f { type filter hook forward priority 0; policy drop; }'
			nft add rule inet fw f iifname cw0 accept; nft add rule inet fw f oifname cw0 accept`: "",
	} {
		t.Run(want, func(t *testing.T) {
			set, h := host(t)
			p := plan(t, testConfig())
			sh(t, prepare)
			require.NoError(t, set.Apply(context.Background(), p))
			blocked := func() string {
				why, err := h.ForwardBlockedBy(context.Background())
				require.NoError(t, err)
				return why
			}
			why := blocked()
			if want == "" {
				require.Empty(t, why)
			}
			require.True(t, strings.HasSuffix(why, want), why)
			_, mend, _ := strings.Cut(why, ": run '")
			if mend = strings.TrimSuffix(mend, "'"); strings.HasPrefix(mend, "nft ") || strings.HasPrefix(mend, "iptables-legacy ") {
				rules := func() string { return sh(t, "nft -s list ruleset; iptables-legacy -S 2>/dev/null || :") }
				before := rules()
				sh(t, mend)
				require.Empty(t, blocked(), "after what was printed")
				require.Equal(t, 2, added(t, before, rules()))
			}
			// Who does not know what is behind names no command, and no placeholder.
			if why != "" {
				sh(t, "nft flush ruleset; iptables-legacy -F 2>/dev/null || :; iptables-legacy -P FORWARD ACCEPT 2>/dev/null || :")
				sh(t, prepare)
				bare, err := ForwardBlocked(context.Background(), "cw0", nil)
				require.NoError(t, err)
				require.NotEmpty(t, bare)
				require.NotContains(t, bare, "run '")
			}
		})
	}
}
