package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// What backends do with connections is counted by client and backend: who takes them, who refuses them by a reset or by ICMP, and who
// does not answer. What is in an open connection counts for nothing, nor does what a wall of this host keeps.
func TestSigns(t *testing.T) {
	w := newWorld(t)
	w.serve("a")
	signs := func(client, to string, proto uint8, v6 bool) Signs {
		t.Helper()
		var all map[Sign]Signs
		w.on(func() (err error) { all, err = w.table.Signs(t.Context()); return err })
		return all[Sign{Backend{proto, backend(to, v6)}, netip.MustParseAddr(addrs[client][second(v6)])}]
	}
	for _, v6 := range []bool{false, true} {
		for _, from := range []string{"pc", "lan", "n"} {
			w.set(services(64, "a"))
			for range 3 {
				name, _, err := ask(w.host(from), "tcp", at(v6, 80))
				require.NoError(t, err)
				require.Equal(t, "a", name)
			}
			_, _, err := ask(w.host(from), "udp", at(v6, 80))
			require.NoError(t, err)
			w.set(services(64, "b")) // whose port is closed
			for range 4 {
				_, _, err := ask(w.host(from), "tcp", at(v6, 80))
				require.ErrorIs(t, err, syscall.ECONNREFUSED)
			}
			_, _, err = ask(w.host(from), "udp", at(v6, 80))
			require.True(t, refused(err), "%v", err)
			require.Equal(t, Signs{Tried: 3, Answered: 3}, signs(from, "a", tcp, v6))
			require.Equal(t, Signs{Answered: 1}, signs(from, "a", udp, v6))
			require.Equal(t, Signs{Tried: 4, Refused: 4}, signs(from, "b", tcp, v6))
			require.Equal(t, Signs{Refused: 1}, signs(from, "b", udp, v6))
		}
	}
	// An open connection that its backend resets is none that it refused.
	w.set(services(64, "a"))
	f := w.open("pc", false, "idle")
	for _, c := range w.servers["a"].all() {
		_ = c.(*net.TCPConn).SetLinger(0) // of those that are open yet
		c.Close()
	}
	f.goes()
	f.reset(t, time.Now())
	require.Equal(t, Signs{Tried: 4, Answered: 4}, signs("pc", "a", tcp, false))
	// Silence: one connection, however often its SYN is sent.
	silent(w.a)
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	require.NoError(t, w.pc.Do(func() error {
		if _, err := (&net.Dialer{}).DialContext(ctx, "tcp", at(false, 80)); err == nil {
			return errors.New("somebody answered")
		}
		return nil
	}))
	require.Equal(t, Signs{Tried: 5, Answered: 4}, signs("pc", "a", tcp, false))
	// What this host keeps back was never tried.
	w.n.Sh("nft 'table inet wall { chain f { type filter hook forward priority 0; ip saddr 10.1.0.11 reject; }; }'")
	_, _, err := ask(w.pc, "tcp", at(false, 80))
	require.Error(t, err)
	require.Equal(t, Signs{Tried: 5, Answered: 4}, signs("pc", "a", tcp, false))
	w.n.Sh("nft delete table inet wall")
	heal(w.a)
	// A firewall beside the backend that says so.
	w.a.Sh("nft 'table inet wall { chain i { type filter hook input priority 0; tcp dport 8080 reject with icmpx admin-prohibited; }; }'")
	require.NoError(t, lab.Wait(within(t), "a refusal by ICMP", func(context.Context) error {
		_, _, err := ask(w.lan, "tcp", at(false, 80))
		if s := signs("lan", "a", tcp, false); err == nil || s.Refused == 0 {
			return fmt.Errorf("%v: %+v", err, s)
		}
		return nil
	}))
	require.NotEmpty(t, w.n.Sh("nft list set inet causeway-service "+w.table.have.epoch.set(setRefused, false)))
}
