package service

import (
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/stretchr/testify/require"

	"causeway/netns/internal/nf"
	"causeway/netns/netnstest"
)

// What is tried leaves nothing behind, and what a kernel does not take is an error.
func TestTry(t *testing.T) {
	netnstest.Namespace(t)
	require.Equal(t, lacking{}, findLacks(), "of this kernel")
	require.Error(t, try(func(b *nf.Batch) { tryReject(b, nftables.ChainHookPostrouting) }), "which no kernel does")
	require.Empty(t, netnstest.Sh(t, "nft list tables"))
}

// On a kernel that lacks all that one may lack, the rest works: new connections, those that are begun, UDP, and resets of what is dead.
func TestLacking(t *testing.T) {
	w := newWorld(t)
	w.n.NoBridgeFilter()
	w.serve("a", "b")
	w.table.lacks = &lacking{true, true, true}
	require.Len(t, w.table.Lacks(), int(lacks))
	for _, v6 := range []bool{false, true} {
		for _, from := range []string{"pc", "lan", "far", "n"} {
			w.set(services(64, "a"))
			name, _, err := ask(w.host(from), "tcp", at(v6, 80))
			require.NoError(t, err)
			require.Equal(t, "a", name)
			f := w.open(from, v6, "idle")
			udp, err := dial(w.host(from), "udp", at(v6, 80))
			require.NoError(t, err)
			_, _, err = answer(udp)
			require.NoError(t, err)
			w.set(services(64, "b"), backends("a")...)
			dead := time.Now()
			f.goes()
			w.on(func() error {
				if _, err := w.table.Release(t.Context(), backends("a")); err != nil {
					return err
				}
				_, err := w.table.Prod(t.Context(), backends("a"))
				return err
			})
			f.reset(t, dead)
			name, _, err = answer(udp)
			require.NoError(t, err)
			require.Equal(t, "b", name)
			require.NoError(t, udp.Close())
			w.set(services(64))
			_, _, err = ask(w.host(from), "tcp", at(v6, 80))
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
		}
	}
	var signs map[Sign]Signs
	w.on(func() (err error) { signs, err = w.table.Signs(t.Context()); return err })
	require.Empty(t, signs)
	require.NotContains(t, w.n.Sh("nft list table inet causeway-service"), "hook prerouting priority -170")
}
