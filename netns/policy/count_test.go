package policy

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/netns/lab"
)

// What reading the counters costs, with few and with many rules, beside 30,000 prefixes.
func BenchmarkCounted(b *testing.B) {
	for _, rules := range []int{64, 2000} {
		h := lab.New(b).Host("h")
		c := large(30000, 500)
		for i := range rules {
			c.Allows = append(c.Allows, Allow{From: 1, To: 1000, Proto: TCP, First: uint16(10000 + i), Last: uint16(10000 + i), Rule: fmt.Sprintf("main.rule-%d", i)})
		}
		t := NewTable()
		require.NoError(b, h.Do(func() error { return t.Set(c) }))
		b.Run(fmt.Sprint(rules), func(b *testing.B) {
			defer processor(b)()
			for range b.N {
				require.NoError(b, h.Do(func() error {
					got, err := Counted()
					if err == nil && len(got.Rules) < rules {
						err = fmt.Errorf("%d rules", len(got.Rules))
					}
					return err
				}))
			}
		})
	}
}

// Packets and bytes are counted by rule, and what is refused or kept from conntrack by itself.
func TestCounted(t *testing.T) {
	lab.Counts(t)
	w := newWorld(t)
	count := func() (c Counts, err error) {
		return c, w.a.Do(func() (err error) { c, err = Counted(); return err })
	}
	_, err := count()
	require.ErrorIs(t, err, unix.ENOENT)
	require.True(t, NoTable(err))
	w.serve(w.pa, 443, 80)
	w.allow(Allow{From: podsB, To: podsA, Proto: TCP, First: 443, Last: 443, Rule: "main.web"}, Allow{From: podsB, To: podsA, Proto: UDP, First: 443, Last: 443, Rule: "main.quic"})
	require.Equal(t, passed, try(w.pb, "tcp", "10.1.0.11:443"))
	before, err := count()
	require.NoError(t, err)
	require.Equal(t, refused, try(w.pb, "tcp", "10.1.0.11:80"))
	c, err := count()
	require.NoError(t, err)
	require.Greater(t, c.Rules["main.web"].Packets, uint64(5), "handshake, question, answer, end")
	require.Greater(t, c.Rules["main.web"].Bytes, 40*c.Rules["main.web"].Packets-1)
	require.Equal(t, Count{}, c.Rules["main.quic"])
	// This lab's link is no tunnel: its groups' reports (MLD) are refused as well, whenever they come.
	require.Greater(t, c.Refused.Packets, before.Refused.Packets, "a SYN")
	require.GreaterOrEqual(t, c.Refused.Bytes, before.Refused.Bytes+60)
	require.Zero(t, c.Dropped)
	require.Zero(t, c.Untracked)
	w.a.Sh("nft 'add table inet other; add chain inet other p { type filter hook prerouting priority -300; }; add rule inet other p udp dport 443 notrack; add rule inet other p udp sport 443 notrack'")
	require.Equal(t, passed, try(w.pb, "udp", "10.1.0.11:443"))
	c, err = count()
	require.NoError(t, err)
	require.Equal(t, uint64(3), c.Untracked.Packets, "the question, and the answer, which goes out by two chains")
	require.Zero(t, c.Invalid)
}
