package service

import (
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/netns/lab/beside"
)

// Beside each of others' firewalls a service switches as where it is alone, their own translations work on, and what is no business
// of services is on the wire, and in others' counters, what it is without the table. In a soak all of them, else one of each
// mechanism; firewalld and ufw take a machine.
func TestBeside(t *testing.T) {
	for _, p := range beside.Programs {
		if (p.Soak || p.Machine != nil) && os.Getenv("CAUSEWAY_SOAK") == "" || p.Name == "nothing" || p.Stateless {
			continue
		}
		t.Run(p.Name, func(t *testing.T) {
			lab.Counts(t)
			w := newWorld(t)
			w.serve("a", "b", "pc", "far")
			w.answers80("a", "pc")
			w.n.Sh("ip route add default via " + addrs["far"][0])
			require.NoError(t, p.Start(t.Context(), w.n, "../.."))
			around := beside.Around{Host: w.n, Pod: w.pc, Outside: w.far, HostAddr: "172.16.9.1", PodAddr: addrs["pc"][0], OutsideAddr: addrs["far"][0], Port: 8080, Table: "causeway-service"}
			without := around.Foreign(t)
			w.set(services(64, "a"))
			require.Equal(t, without, around.Foreign(t), "what is no service's")
			w.theirs(p)
			if p.OneFamily {
				w.switches(1, false)
			} else {
				w.switches(1, false, true)
			}
			w.theirs(p)
		})
	}
}

// answers80 answers hello on port 80 of hosts.
func (w *world) answers80(names ...string) {
	for _, name := range names {
		var l net.Listener
		require.NoError(w.t, w.host(name).Do(func() (err error) { l, err = net.Listen("tcp4", ":80"); return err }))
		w.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.SetDeadline(time.Now().Add(time.Second))
				c.Read(make([]byte, 100))
				c.Write([]byte(name + " " + seenAs(c.RemoteAddr()) + "\n"))
				c.Close()
			}
		}()
	}
}

// theirs tries what others translate.
func (w *world) theirs(p beside.Program) {
	w.t.Helper()
	if p.Service != "" {
		for _, from := range []string{"pc", "n"} {
			name, _, err := ask(w.host(from), "tcp", net.JoinHostPort(p.Service, "80"))
			require.NoError(w.t, err, from)
			require.Equal(w.t, "a", name)
		}
	}
	if p.Published != "" {
		name, seen, err := ask(w.far, "tcp", net.JoinHostPort("172.16.9.1", p.Published))
		require.NoError(w.t, err)
		require.Equal(w.t, "pc", name)
		require.Equal(w.t, addrs["far"][0], seen)
	}
}

// Where conntrack does not see pods' packets nothing is translated for them: they are refused. Who is seen on the way there is not on
// the way back, so that the backend is not heard.
func TestBesideNotrack(t *testing.T) {
	w := newWorld(t)
	w.serve("a")
	i := 0
	for beside.Programs[i].Name != "CNI with notrack" {
		i++
	}
	require.NoError(t, beside.Programs[i].Start(t.Context(), w.n, "../.."))
	w.set(services(64, "a"))
	_, _, err := ask(w.pc, "tcp", at(false, 80))
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	_, _, err = ask(w.lan, "udp", at(false, 80))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}
