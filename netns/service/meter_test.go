package service

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/netns/lab"
)

// Each connection counts once, also when it is over by the next look, and what it carried where the kernel counts that.
func TestMeter(t *testing.T) {
	w := newWorld(t)
	w.serve("a")
	w.set(services(64, "a"))
	of := Of{netip.MustParseAddrPort(at(false, 80)).Addr(), tcp, 80, backend("a", false)}
	count := func() (n Count) {
		w.on(func() error {
			l, err := w.table.Flows(t.Context())
			n = l[of]
			return err
		})
		return n
	}
	require.Zero(t, count())
	for range 3 {
		_, _, err := ask(w.pc, "tcp", at(false, 80))
		require.NoError(t, err)
	}
	n := count()
	require.EqualValues(t, 3, n.Begun)
	require.EqualValues(t, 3, count().Begun, "they are still listed")
	require.Zero(t, n.Bytes)
	require.False(t, n.Counted)
	w.n.Sysctl("net.netfilter.nf_conntrack_acct=1")
	f := w.open("pc", false, "idle")
	require.EqualValues(t, 4, count().Begun)
	before := count()
	require.True(t, before.Counted)
	require.NotZero(t, before.Bytes)
	require.Equal(t, 1, before.Open)
	_, _, err := ask(w.pc, "tcp", at(false, 80))
	require.NoError(t, err)
	after := count()
	require.Greater(t, after.Bytes, before.Bytes+100)
	require.Less(t, after.Bytes, before.Bytes+5000)
	require.NoError(t, f.conn.Close())

	// After a while in which nobody asked nothing is made of what is there.
	w.table.meter.at = time.Now().Add(-2 * meterGap)
	_, _, err = ask(w.pc, "tcp", at(false, 80))
	require.NoError(t, err)
	require.EqualValues(t, 5, count().Begun)
}

// What a look costs beside many connections.
func TestMeterCost(t *testing.T) {
	n := 1000
	if soak() {
		n = 10_000
	}
	w := newWorld(t)
	w.set(services(64, "a"))
	self, err := os.Executable()
	require.NoError(t, err)
	for _, v6 := range []bool{false, true} {
		what := "serve " + backend("a", v6).String()
		p, err := w.a.Start(lab.Program{Name: "ends-" + strings.NewReplacer(" ", "-", ":", "-").Replace(what), Args: []string{self, "-test.run=^TestEnds$", "-test.v"}, Env: []string{endEnv + "=" + what}})
		require.NoError(t, err)
		require.NoError(t, p.WaitOutput(within(t), "serves"))
		p, err = w.pc.Start(lab.Program{Name: fmt.Sprint("dials-", v6), Args: []string{self, "-test.run=^TestEnds$", "-test.v"}, Env: []string{endEnv + "=" + fmt.Sprintf("dial %s %d", at(v6, 80), n)}})
		require.NoError(t, err)
		require.NoError(t, p.WaitOutput(t.Context(), "opened"))
	}
	w.on(func() error {
		_, err := w.table.Flows(t.Context())
		return err
	})
	cpu, begun := processorTime(), time.Now()
	const looks = 10
	for range looks {
		w.on(func() error {
			l, err := w.table.Flows(t.Context())
			open := 0
			for _, x := range l {
				open += x.Open
			}
			require.Equal(t, 2*n, open)
			return err
		})
	}
	t.Logf("%d connections: a look takes %s by the clock, %s of processors", 2*n, (time.Since(begun) / looks).Round(100*time.Microsecond), ((processorTime() - cpu) / looks).Round(100*time.Microsecond))
}

func processorTime() time.Duration {
	var r unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
