package look

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/netns"
	"causeway/netns/internal/kernel"
	"causeway/netns/lab"
	"causeway/protocol"
)

// What the kernel would do with a packet is found in a ruleset that nft itself printed.
func TestDrops(t *testing.T) {
	const rules = `
table inet fw {
	set bad { type ipv4_addr; flags interval; elements = { 10.9.0.0/16, 10.8.0.7 } }
	chain f {
		type filter hook forward priority 0; policy drop
		ct state established,related accept
		iifname "cw0" tcp dport { 80, 443 } drop comment "web"
		ip saddr @bad accept
		ip daddr 10.7.0.0/16 reject
		meta l4proto udp jump u
		udp dport 5353 drop
		iifname { "eth*", "cw0" } accept
	}
	chain u {
		udp dport 1000-1999 drop
		oifname "pods0" return
		udp dport 53 drop
	}
	chain in {
		type filter hook input priority 0
		meta mark 0x1 limit rate 5/second drop
		udp sport 51820 drop
	}
}
table ip six { chain f { type filter hook forward priority 10; ip daddr 10.6.6.6 drop
}
}
table inet causeway { chain forward { type filter hook forward priority -150; policy drop
}
}
`
	l := lab.New(t)
	h := l.Host("h").Nft(rules)
	var parsed *nftRules
	require.NoError(t, h.Do(func() error {
		text, err := kernel.Run(t.Context(), "", "nft", "-j", "list", "ruleset")
		if err == nil {
			parsed, err = parseRules([]byte(text))
		}
		return err
	}))
	a := netip.MustParseAddr
	base := packet{way: "in", hook: "forward", iif: "cw0", oif: "pods0", src: a("10.1.1.11"), dst: a("10.2.1.11"), proto: "tcp", dport: 7000, state: "new"}
	with := func(f func(*packet)) packet {
		k := base
		f(&k)
		return k
	}
	for name, c := range map[string]struct {
		k       packet
		chain   string // empty: passes
		certain bool
	}{
		"accepted at the end":     {base, "", false},
		"a set of ports":          {with(func(k *packet) { k.dport = 443 }), "inet fw f", true},
		"an answer":               {with(func(k *packet) { k.dport, k.state = 443, "established" }), "", false},
		"a named set accepts":     {with(func(k *packet) { k.src = a("10.9.3.3") }), "", false},
		"another prefix":          {with(func(k *packet) { k.dst = a("10.7.3.3") }), "inet fw f", true},
		"policy":                  {with(func(k *packet) { k.iif = "wlan0" }), "inet fw f", true},
		"a name with a star":      {with(func(k *packet) { k.iif = "eth3" }), "", false},
		"a range in a jump":       {with(func(k *packet) { k.proto, k.dport = "udp", 1500 }), "inet fw u", true},
		"return, then on":         {with(func(k *packet) { k.proto, k.dport = "udp", 5353 }), "inet fw f", true},
		"return before":           {with(func(k *packet) { k.proto, k.dport = "udp", 53 }), "", false},
		"a later table":           {with(func(k *packet) { k.dst = a("10.6.6.6") }), "ip six f", true},
		"IPv6 has not that table": {with(func(k *packet) { k.src, k.dst = a("fd00::1"), a("fd00::2") }), "", false},
		"any port may be meant":   {with(func(k *packet) { k.dport = 0 }), "inet fw f", false},
		"a limit is not certain":  {with(func(k *packet) { k.hook, k.mark = "input", 1 }), "inet fw in", false},
		"input":                   {with(func(k *packet) { k.hook, k.proto, k.sport = "input", "udp", 51820 }), "inet fw in", true},
		"no chain at that hook":   {with(func(k *packet) { k.hook = "output" }), "", false},
	} {
		d, dropped := parsed.follow(c.k)
		require.Equal(t, c.chain != "", dropped, name)
		require.Equal(t, []any{c.chain, c.certain}, []any{d.Chain, d.Certain}, name)
	}

	// The rule is named as nft prints it, with what deletes it.
	h.Sysctl("net.ipv4.ip_forward=1").Sh("ip link add cw0 type bridge; ip link set cw0 up; ip link add pods0 type bridge; ip link set pods0 up; ip addr add 10.2.1.1/24 dev pods0; ip route add 10.1.0.0/16 dev cw0")
	p, err := netns.NewPlan(netns.Config{Interface: "cw0", MTU: 1380, Mark: netns.DefaultMark, Table: netns.DefaultTable, Overlay: []netip.Addr{a("198.18.0.3")}})
	require.NoError(t, err)
	var e protocol.FlowEvidence
	require.NoError(t, h.Do(func() error {
		e = At(netns.NewHost(t.TempDir(), zerolog.Nop())).Flow(context.Background(), p, Flow{Local: a("10.2.1.11"), Remote: a("10.1.1.11"), Proto: "tcp", Port: 443, Serves: true})
		return nil
	}))
	require.Empty(t, e.Error)
	i := slices.IndexFunc(e.Drops, func(d protocol.Drop) bool { return d.Hook == "forward" })
	require.GreaterOrEqual(t, i, 0, e.Drops)
	require.Equal(t, `iifname "cw0" tcp dport { 80, 443 } drop comment "web"`, e.Drops[i].Rule)
	h.Sh(fmt.Sprintf("nft delete rule %s handle %d", e.Drops[i].Chain, e.Drops[i].Handle))
	require.Equal(t, "cw0", e.Out.To)
	require.Equal(t, "pods0", e.Out.From)
	require.False(t, e.HasRule)
}

// FuzzRules: whoever may write the host's rules may write anything there. Following them
// ends, and a drop is certain only of a chain that is there.
func FuzzRules(f *testing.F) {
	f.Add([]byte(`{"nftables":[{"chain":{"family":"ip","table":"t","name":"a","hook":"forward","policy":"drop"}},{"chain":{"family":"ip","table":"t","name":"b"}},
		{"rule":{"family":"ip","table":"t","chain":"a","handle":2,"expr":[{"match":{"op":"!=","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":{"prefix":{"addr":"10.0.0.0","len":8}}}},{"jump":{"target":"b"}}]}},
		{"rule":{"family":"ip","table":"t","chain":"b","handle":3,"expr":[{"jump":{"target":"b"}},{"goto":{"target":"b"}}]}}]}`))
	f.Add([]byte(`{"nftables":[{"chain":{"family":"inet","table":"t","name":"a","hook":"forward"}},{"set":{"family":"inet","table":"t","name":"s","elem":[{"range":[1,5]},"@s"]}},
		{"rule":{"family":"inet","table":"t","chain":"a","handle":2,"expr":[{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":"@s"}},{"xt":{"type":"target","name":"DROP"}}]}}]}`))
	k := packet{hook: "forward", iif: "cw0", oif: "pods0", src: netip.MustParseAddr("10.1.1.11"), dst: netip.MustParseAddr("10.2.1.11"), proto: "tcp", dport: 443, state: "new"}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRules(b)
		if err != nil {
			return
		}
		d, ok := r.follow(k)
		if base := slices.ContainsFunc(r.base, func(c baseChain) bool { return c.key == d.Chain }); ok && d.Certain && !base && r.chains[d.Chain] == nil {
			t.Fatalf("%+v", d)
		}
	})
}
