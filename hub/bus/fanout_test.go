package bus

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// followingFor returns what a reader has who said CONNECT with these options.
func followingFor(options string) (r *following, cut *int) {
	cut = new(int)
	return newFollowing("_INBOX.user.graf.", []byte("CONNECT "+options+"\r\n"), func() {}, func() { *cut++ }), cut
}

// What readers follow lies in memory once, and what each has not taken is bounded.
func TestFollowersShareAndAreBounded(t *testing.T) {
	f := &fanout{up: true, to: map[*following]bool{}}
	var all []*following
	var cuts []*int
	for range 8 {
		r, cut := followingFor(`{}`)
		r.take(words([]byte("SUB causeway.v1.inventory.> 1")), nil)
		require.True(t, f.add(r))
		all, cuts = append(all, r), append(cuts, cut)
	}
	large := make([]byte, protocol.MaxInventory)
	for n := range maxPending/protocol.MaxInventory + 2 {
		f.pass(&news{subject: protocol.InventorySubject("idc", 7), body: large})
		d, ok := all[0].next() // he alone takes them
		require.True(t, ok)
		require.Same(t, &large[0], &d.body[0])
		all[0].done(d)
		require.Zero(t, all[0].behind())
		require.LessOrEqual(t, all[1].behind(), maxPending, n)
	}
	require.Zero(t, *cuts[0])
	for i, r := range all[1:] {
		require.Equal(t, 1, *cuts[i+1])
		_, ok := r.next()
		require.False(t, ok, "what waited for him is gone")
	}
	f.up = false
	require.False(t, f.add(all[0]), "while nothing is followed")

	// Small messages have their weight.
	r, cut := followingFor(`{}`)
	r.take(words([]byte("SUB causeway.v1.event.> 1")), nil)
	for n := 0; *cut == 0; n++ {
		require.Less(t, n, maxPending/64)
		r.offer(&news{subject: "causeway.v1.event.x"})
	}
}

// The fan-out has what it may have, and the server the rest.
func TestFollowingTakesLines(t *testing.T) {
	r, _ := followingFor(`{}`)
	take := func(line, want string) {
		t.Helper()
		line += "\r\n"
		if want == "same" {
			want = line
		}
		require.Equal(t, want, string(r.take(words([]byte(line)), []byte(line))), line)
	}
	had := func() (l []string) {
		for d, ok := r.next(); ok; d, ok = r.next() {
			l = append(l, d.sid+" "+string(d.body))
			r.done(d)
		}
		return l
	}
	say := func(subject, body string) { r.offer(&news{subject: subject, body: []byte(body)}) }
	const nowhere = "SUB _INBOX.user.graf.followed "
	take("SUB causeway.v1.event.* 1", nowhere+"1\r\n")
	take("sub\tcauseway.v1.event.node_up  2", nowhere+"2\r\n")
	for _, line := range []string{"PING", "SUB causeway.v1.event.node_up workers 3", "SUB _INBOX.user.graf.> 4", "SUB causeway.v1.> 5", "SUB causeway.*.event.> 6", "SUB causeway.v1.event.> 1",
		"SUB causeway.v1.event. 7", "SUB causeway.v1.event..x 8", "SUB causeway.v1.event 9", "SUB", "SUB x", "UNSUB", "UNSUB 4 1", "PUB x 0"} {
		take(line, "same")
	}
	say("causeway.v1.event.node_down", "a")
	say("causeway.v1.event.x.y", "b")
	say("causeway.v1.inventory.idc.7.delta", "c")
	require.Equal(t, []string{"1 a"}, had())
	say("causeway.v1.event.node_up", "d")
	require.ElementsMatch(t, []string{"1 d", "2 d"}, had())
	take("UNSUB 2", "same")
	say("causeway.v1.event.node_up", "e")
	require.Equal(t, []string{"1 e"}, had())

	// So many and no more, those before included; the server forgets it with the next line.
	take("UNSUB 1 5", "")
	for _, b := range []string{"f", "g", "h"} {
		say("causeway.v1.event.node_up", b)
	}
	require.Equal(t, []string{"1 f", "1 g"}, had())
	take("SUB causeway.v1.event.> 1", "UNSUB 1\r\n"+nowhere+"1\r\n")
	say("causeway.v1.event.node_up", "i")
	take("UNSUB 1 1", "UNSUB 1\r\n")
	take("PING", "same")

	// More than a connection may have is the server's to refuse.
	for n := range 2 * maxReaderSubs {
		r.take(words(fmt.Appendf(nil, "SUB causeway.v1.event.> x%d", n)), nil)
	}
	require.Len(t, r.sids, maxReaderSubs)
	for _, options := range []string{`{"verbose":true}`, `{"pedantic":true}`, `nonsense`} {
		r, _ := followingFor(options)
		require.Nil(t, r, "the server answers each line of his")
		require.Zero(t, r.behind())
	}
}

// A message is written as the server would.
func TestDeliveryIsWritten(t *testing.T) {
	for _, c := range []struct {
		d       delivery
		headers bool
		want    string
	}{
		{delivery{&news{subject: "a.b", body: []byte("xyz")}, "9"}, true, "MSG a.b 9 3\r\nxyz\r\n"},
		{delivery{&news{subject: "a.b", reply: "r", body: nil}, "9"}, false, "MSG a.b 9 r 0\r\n\r\n"},
		{delivery{&news{subject: "a.b", reply: "r", header: 2, body: []byte("hhxyz")}, "9"}, true, "HMSG a.b 9 r 2 5\r\nhhxyz\r\n"},
		{delivery{&news{subject: "a.b", header: 2, body: []byte("hhxyz")}, "9"}, false, "MSG a.b 9 3\r\nxyz\r\n"},
	} {
		var b bytes.Buffer
		require.NoError(t, c.d.writeTo(&b, c.headers))
		require.Equal(t, c.want, b.String())
	}
	for _, line := range []string{"MSG a 1", "MSG a 1 x", "MSG a 1 -1", "MSG a 1 r r 5", "HMSG a 1 5", "HMSG a 1 6 5", "HMSG a 1 -1 5", fmt.Sprintf("MSG a 1 %d", maxPayload+1)} {
		_, _, err := parseMsg(words([]byte(line)))
		require.ErrorIs(t, err, ErrProtocol, line)
	}
}

// Readers with and without a wish for headers, with a count, and with large messages among what
// they asked for.
func TestReadersFollowTogether(t *testing.T) {
	s := start(t)
	facts(t, s)
	d := openDoor(t, s)
	hub, err := s.AgentsConn()
	require.NoError(t, err)
	defer hub.Close()
	subject := protocol.InventorySubject("idc", 7)
	var subs, counted []*nats.Subscription
	var conns []*nats.Conn
	for i := range 4 {
		nc := d.reader(fmt.Sprintf("graf-%d", i))
		sub, err := nc.SubscribeSync(protocol.SubjectInventoryAll)
		require.NoError(t, err)
		few, err := nc.SubscribeSync(subject)
		require.NoError(t, err)
		require.NoError(t, few.AutoUnsubscribe(2))
		require.NoError(t, nc.FlushTimeout(patience))
		subs, counted, conns = append(subs, sub), append(counted, few), append(conns, nc)
	}
	js, err := conns[0].JetStream()
	require.NoError(t, err)
	bucket, err := js.KeyValue(protocol.FactsBucket)
	require.NoError(t, err)
	const many = 20
	go func() {
		for n := range many {
			m := nats.NewMsg(subject)
			m.Header.Set("Nats-Msg-Id", fmt.Sprint(n))
			m.Data = bytes.Repeat([]byte{byte(n)}, n*n*1000)
			hub.PublishMsg(m)
			hub.Flush()
		}
	}()
	for i, sub := range subs {
		for n := range many {
			m, err := sub.NextMsg(patience)
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(n), m.Header.Get("Nats-Msg-Id"))
			require.Equal(t, bytes.Repeat([]byte{byte(n)}, n*n*1000), m.Data)
			if i == 0 { // answers come between
				e, err := bucket.Get(protocol.FactsKey("idc", 7))
				require.NoError(t, err)
				require.Equal(t, "facts of 7", string(e.Value()))
			}
		}
		for range 2 {
			_, err := counted[i].NextMsg(patience)
			require.NoError(t, err)
		}
		_, err := counted[i].NextMsg(patience)
		require.ErrorIs(t, err, nats.ErrMaxMessages)
	}
}

// When what readers follow is interrupted they are cut off, so that they know, and may come back.
func TestFollowingInterrupted(t *testing.T) {
	s := start(t)
	d := openDoor(t, s)
	_, creds := d.user("graf")
	closed := make(chan struct{})
	nc, err := d.dial("graf", creds, nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	require.NoError(t, err)
	_, err = nc.SubscribeSync(protocol.SubjectEventsAll)
	require.NoError(t, err)
	require.NoError(t, nc.FlushTimeout(patience))
	z, err := s.ns.Connz(nil)
	require.NoError(t, err)
	for _, c := range z.Conns {
		if strings.HasPrefix(c.Name, "causeway-hub readers") {
			require.NoError(t, s.ns.DisconnectClientByID(c.Cid))
		}
	}
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("the connection stays")
	}
	hub, err := s.AgentsConn()
	require.NoError(t, err)
	defer hub.Close()
	require.Eventually(t, func() bool {
		nc, err := d.dial("graf", creds)
		if err != nil {
			return false
		}
		defer nc.Close()
		sub, err := nc.SubscribeSync(protocol.SubjectEventsAll)
		if err != nil || nc.FlushTimeout(patience) != nil || hub.Publish(protocol.EventSubject("x"), nil) != nil {
			return false
		}
		_, err = sub.NextMsg(patience)
		return err == nil
	}, patience, 20*time.Millisecond)
}
