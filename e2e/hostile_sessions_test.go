package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/agent/identity"
	"causeway/netns/lab"
	"causeway/protocol"
	"causeway/tunnel/mux"
)

// What root of a member has the hub log, in sessions of his own, fills no disk and pushes out
// nobody else's lines.
func TestHostileSessions(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	bad := nodes[1]
	id, err := identity.Peek(bad.StateDir)
	require.NoError(t, err)

	a := &attacker{t: t, n: bad.Node}
	lines := func() int { return strings.Count(s.Hub.Proc.Output(), `"message":"node reports an error"`) }
	m, err := protocol.NewMessage(protocol.KindError, protocol.Error{Code: "x", Message: strings.Repeat("x", 400)})
	require.NoError(t, err)
	sent := 0
	for begin := time.Now(); sent < 250 && time.Since(begin) < stepTimeout; {
		if a.m == nil || protocol.WriteFrame(a.control, m, protocol.MaxToHub) != nil {
			if err := a.hello(id, nil); err != nil { // its agent takes the session back
				t.Log(err)
			}
			continue
		}
		sent++
	}
	require.NoError(t, a.hello(id, nil)) // so all before was read
	require.Less(t, lines(), 80, "of %d", sent)
	t.Logf("%d lines of %d errors", lines(), sent)
}

// deafMark marks what a host of TestHostileUnanswered drops on its way out.
const deafMark = 0xdeaf

// deaf opens a control connection, says hello, hears what the hub answers, and from then on
// nothing of the connection leaves the host: no word, no acknowledgement, no end. It
// returns what was heard.
func deaf(ctx context.Context, n *Node, hello protocol.Hello) (protocol.MessageKind, error) {
	var c net.Conn
	err := n.Host.Do(func() (err error) {
		c, err = net.DialTimeout("tcp6", "[fd63:7761:7900::1]:4710", 5*time.Second)
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	m, err := mux.Client(c)
	if err != nil {
		return "", err
	}
	defer m.Close()
	defer func() { // before the two above
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err == nil {
			raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, deafMark) })
		}
	}()
	st, err := m.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamControl})
	if err != nil {
		return "", err
	}
	said, err := protocol.NewMessage(protocol.KindHello, hello)
	if err != nil {
		return "", err
	}
	if err := protocol.WriteFrame(st, said, protocol.MaxToHub); err != nil {
		return "", err
	}
	st.SetReadDeadline(time.Now().Add(5 * time.Second))
	var answer protocol.Message
	err = protocol.ReadFrame(st, &answer, protocol.MaxToAgent)
	return answer.Kind, err
}

// A member opens control connections, hears the answer to his hello and never acknowledges
// anything again, the end least of all. Whether he holds the node's key or not, the hub keeps
// little of what is over: half as much memory again at most, however many there were.
// His own agent and the other's keep their sessions.
func TestHostileUnanswered(t *testing.T) {
	t.Parallel()
	wanted := int64(repeat(3000, 30000))
	s, nodes := newSmall(t, 2)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	bad := nodes[1]
	id, err := identity.Peek(bad.StateDir)
	require.NoError(t, err)
	bad.Host.Sh(fmt.Sprintf(`nft add table inet deaf
nft 'add chain inet deaf out { type filter hook output priority 0; }'
nft add rule inet deaf out meta mark %#x counter drop
nft add rule inet deaf out tcp dport 4710 tcp flags '&' rst == rst drop`, deafMark))
	vouched := protocol.Hello{AgentVersion: "deaf", Statement: id.Statement(), Vouch: protocol.Vouch(1, id.Number, protocol.BootID{}, id.IdentityKey)}
	stranger := protocol.Hello{AgentVersion: "deaf", Statement: id.Statement()}

	pid := s.Hub.Proc.PID()
	for _, h := range []protocol.Hello{vouched, stranger} {
		_, err := deaf(step(t), bad.Node, h)
		require.NoError(t, err)
	}
	before := rss(t, pid)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	var heard, failed atomic.Int64
	begin := time.Now()
	for i := range 8 {
		h, want := vouched, protocol.KindChallenge
		if i%2 == 1 {
			h, want = stranger, protocol.KindError
		}
		wg.Go(func() {
			for ctx.Err() == nil && heard.Load() < wanted {
				if kind, err := deaf(ctx, bad.Node, h); err == nil && kind == want {
					heard.Add(1)
				} else {
					failed.Add(1)
				}
			}
		})
	}
	most := before
	require.NoError(t, lab.Wait(ctx, "the hellos to be answered", func(context.Context) error {
		most = max(most, rss(t, pid))
		if n := heard.Load(); n < wanted {
			return fmt.Errorf("%d of %d, %d others", n, wanted, failed.Load())
		}
		return nil
	}))
	wg.Wait()
	took := time.Since(begin)
	t.Logf("%d connections whose hello was answered, %d others, in %.0f s; the hub held %d MB before, %d at most", heard.Load(), failed.Load(), took.Seconds(), before, most)
	require.NotContains(t, bad.Host.Sh("nft list chain inet deaf out"), "counter packets 0 ", "nothing of them was kept back")
	require.LessOrEqual(t, most, before*3/2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
}
