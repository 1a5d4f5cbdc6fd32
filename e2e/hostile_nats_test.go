package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/agent/identity"
	"causeway/hub/api"
	"causeway/hub/bus"
	"causeway/netns/lab"
	"causeway/protocol"
)

// One node publishes as fast as it can, on as many streams as it is let have, to its own
// subjects and to made-up ones; eight readers take nothing of it. The hub holds half as much
// memory again at most, and what another node tells is there as before: its changes within
// the same time, its whole history, its incidents.
func TestHostileNATS(t *testing.T) {
	t.Parallel()
	length := time.Duration(repeat(8, 600)) * time.Second
	l, hub, nodes := smallHosts(t, 2)
	s := startSmall(t, l, hub, nodes, "--listen-nats", ":4222")
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	good, bad := nodes[0], nodes[1]
	var node api.Node
	require.NoError(t, s.Ask(step(t), &node, "node", "show", "n1"))

	// An incident of the good node, before.
	_, err := good.Host.Run(step(t), "ip", "link", "set", "cw0", "down")
	require.NoError(t, err)
	incidents := func() (l []api.Incident) {
		require.NoError(t, s.Ask(step(t), &l, "incidents", "--node", "n1"))
		return l
	}
	require.NoError(t, lab.Wait(step(t), "an incident", func(context.Context) error {
		if len(incidents()) == 0 {
			return context.DeadlineExceeded
		}
		return nil
	}))
	require.NoError(t, s.WaitReady(step(t), "n1"))
	// tell has n1 tell something new and returns how long the hub takes to know it.
	told := 0
	tell := func() time.Duration {
		at := func(n int) string { return fmt.Sprintf("172.30.%d.%d", n>>8, n&255) }
		if told > 0 {
			_, err := good.Host.Run(step(t), "ip", "addr", "del", at(told)+"/32", "dev", "pods0")
			require.NoError(t, err)
		}
		told++
		addr := at(told)
		begin := time.Now()
		_, err := good.Host.Run(step(t), "ip", "addr", "add", addr+"/32", "dev", "pods0")
		require.NoError(t, err)
		require.NoError(t, lab.Wait(step(t), "n1's address at the hub", func(context.Context) error {
			out, err := s.CLI(step(t), "inventory", "show", "n1", "-o", "json")
			if err == nil && !strings.Contains(out, addr) {
				err = fmt.Errorf("no %s", addr)
			}
			return err
		}))
		return time.Since(begin)
	}
	change := func() time.Duration {
		begin := time.Now()
		_, err := s.CLI(step(t), "node", "label", "n1", fmt.Sprintf("try=%d", time.Now().UnixNano()))
		require.NoError(t, err)
		return time.Since(begin)
	}
	for range 3 { // the hub has done all that it does
		tell()
		change()
	}
	worst := func(f func() time.Duration) (w time.Duration) {
		for range 3 {
			w = max(w, f())
		}
		return w
	}
	dir := t.TempDir()
	creds, ca := filepath.Join(dir, "deaf.creds"), filepath.Join(dir, "ca.pem")
	_, err = s.CLI(step(t), "nats", "user", "create", "deaf", "--role", "reader", "--file", creds, "--ca-file", ca)
	require.NoError(t, err)
	id, err := identity.Peek(bad.StateDir)
	require.NoError(t, err)
	a := &attacker{t: t, n: bad.Node}

	// What the hub has of what is good: readers that read, and a snapshot.
	honest, read := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() { follower(honest, good.Host, creds, ca, true) })
	}
	// Its agent takes the session back: it is tried until it is through. A try that was cut off has spent the
	// node's budget of bytes, and the next one is to find it whole.
	whole := time.Duration(bus.NodeBudget.BytesAtOnce/bus.NodeBudget.Bytes+1) * time.Second
	var next time.Time
	require.NoError(t, lab.Wait(step(t), "a snapshot as large as it may be", func(context.Context) error {
		if time.Now().Before(next) {
			return errors.New("the budget is not whole again")
		}
		next = time.Now().Add(whole)
		if err := a.hello(id, nil); err != nil {
			return err
		}
		st, err := a.m.Open(step(t), protocol.StreamHeader{Kind: protocol.StreamNATS})
		if err != nil {
			return err
		}
		defer st.Close()
		st.SetDeadline(next)
		fmt.Fprintf(st, "CONNECT {}\r\nPUB %s %d\r\n", protocol.InventorySubject(id.Site, id.Number), protocol.MaxInventory)
		st.Write(make([]byte, protocol.MaxInventory))
		fmt.Fprintf(st, "\r\nPING\r\n")
		for line := ""; !strings.HasPrefix(line, "PONG"); {
			if line, err = greeting(st); err != nil {
				return err
			}
		}
		return nil
	}))
	tellBefore, changeBefore := worst(tell), worst(change)
	pid := s.Hub.Proc.PID()
	before := rss(t, pid)
	read()
	readers.Wait()

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	defer stop()
	for range 8 {
		wg.Go(func() { follower(ctx, good.Host, creds, ca, false) })
	}
	var sent atomic.Int64
	wg.Go(func() { floodAgain(ctx, a, id, &sent) })
	most := before
	begin := time.Now()
	var tellDuring, changeDuring time.Duration
	for time.Since(begin) < length {
		tellDuring, changeDuring = max(tellDuring, tell()), max(changeDuring, change())
		most = max(most, rss(t, pid))
	}
	out, err := s.CLI(step(t), "status")
	require.NoError(t, err)
	stop()
	t.Logf("%d KiB taken in %s; the hub held %d MB before, %d at most; a node's news %s at most before, %s meanwhile; a change %s before, %s meanwhile",
		sent.Load()>>10, time.Since(begin).Round(time.Second), before, most, tellBefore.Round(time.Millisecond), tellDuring.Round(time.Millisecond),
		changeBefore.Round(time.Millisecond), changeDuring.Round(time.Millisecond))
	require.LessOrEqual(t, most, before*3/2, out)
	require.Less(t, tellDuring, tellBefore+2*time.Second)
	require.Less(t, changeDuring, changeBefore+2*time.Second)
	require.NotEmpty(t, incidents())

	// The history, as it lies on the disk.
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	srv, err := bus.Start(step(t), bus.Config{Dir: filepath.Join(s.Hub.Dir, "nats"), Log: zerolog.Nop()})
	require.NoError(t, err)
	defer srv.Close()
	nc, err := srv.AgentsConn()
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	st, err := js.Stream(step(t), protocol.InventoryStream)
	require.NoError(t, err)
	history := map[uint64]bool{}
	var last uint64
	cons, err := st.CreateConsumer(step(t), jetstream.ConsumerConfig{FilterSubjects: []string{protocol.InventorySubject("s1", node.Number), protocol.DeltaSubject("s1", node.Number)},
		AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true})
	require.NoError(t, err)
	batch, err := cons.Fetch(int(cons.CachedInfo().NumPending), jetstream.FetchMaxWait(stepTimeout))
	require.NoError(t, err)
	for m := range batch.Messages() {
		var head struct {
			Sequence uint64 `json:"seq"`
		}
		require.NoError(t, json.Unmarshal(m.Data(), &head))
		history[head.Sequence], last = true, max(last, head.Sequence)
	}
	require.Len(t, history, int(last), "n1's whole history, from 1 on")
	require.GreaterOrEqual(t, int(last), told)
	i, err := st.Info(step(t), jetstream.WithSubjectFilter(">"))
	require.NoError(t, err)
	require.LessOrEqual(t, len(i.State.Subjects), 6, "three subjects for each node: %v", i.State.Subjects)
}

// floodAgain floods as node id on eight streams of a session, and of the next one when that ends.
func floodAgain(ctx context.Context, a *attacker, id identity.Identity, sent *atomic.Int64) {
	pace := time.NewTicker(200 * time.Millisecond) // its agent takes the session back, and both have a budget of hellos
	defer pace.Stop()
	for ctx.Err() == nil {
		if a.hello(id, nil) != nil {
			select {
			case <-pace.C:
			case <-ctx.Done():
			}
			continue
		}
		var streams sync.WaitGroup
		for i := range 8 {
			st, err := a.m.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamNATS})
			if err != nil {
				break
			}
			streams.Go(func() { flood(ctx, st, id, i, sent) })
		}
		streams.Wait()
	}
}

// flood publishes on one nats stream of a node until it ends, and never reads.
func flood(ctx context.Context, st net.Conn, id identity.Identity, i int, sent *atomic.Int64) {
	stop := context.AfterFunc(ctx, func() { st.Close() })
	defer stop()
	defer st.Close()
	large, containers := make([]byte, protocol.MaxInventory), manyContainers()
	inbox := protocol.InboxPrefix(id.Number)
	fmt.Fprintf(st, "CONNECT {}\r\nSUB %s.> 1\r\n", inbox)
	for n := 0; ; n++ {
		subject, body := protocol.InventorySubject(id.Site, id.Number), large
		switch n % 4 {
		case 0:
			if n%8 == 0 { // facts that make sense, and change
				body = fmt.Appendf(nil, `{"v":1,"seq":%d,"boot_id":"0100000000000000","hostname":"h","containers":%s}`, time.Now().UnixNano(), containers)
			}
		case 1:
			subject = protocol.DeltaSubject(id.Site, id.Number)
		case 2:
			subject, body = fmt.Sprintf("causeway.v1.inventory.%s.%d.%d-%d", id.Site, id.Number, i, n), large[:100]
		case 3:
			subject, body = protocol.IncidentSubject(id.Site, id.Number), fmt.Appendf(nil, `{"v":1,"incident":%d,"revision":1,"state":"open","subject":"x","since":"2026-01-01T00:00:00Z"}`, n+1)
		}
		if _, err := fmt.Fprintf(st, "PUB %s %s.r %d\r\n", subject, inbox, len(body)); err != nil {
			return
		}
		if _, err := st.Write(append(body[:len(body):len(body)], '\r', '\n')); err != nil {
			return
		}
		sent.Add(int64(len(body)))
	}
}

// manyContainers are the facts of about as many containers as fit into a snapshot.
func manyContainers() string {
	var b strings.Builder
	for i := range 900 {
		fmt.Fprintf(&b, `,"podman/%d":{"id":"%d","runtime":"podman","name":"c%d","state":"running","addresses":["10.1.2.3"],"labels":{`, i, i, i)
		for j := range 10 {
			fmt.Fprintf(&b, `,"label-%d":"%s"`[min(1-min(j, 1), 1):], j, strings.Repeat("x", 80))
		}
		b.WriteString("}}")
	}
	return "{" + b.String()[1:] + "}"
}

// follower follows everything as a NATS user and, unless read, takes nothing of it; cut off, it
// comes back.
func follower(ctx context.Context, host *lab.Host, creds, ca string, read bool) {
	text, err := os.ReadFile(creds)
	if err != nil {
		return
	}
	token, err := jwt.ParseDecoratedJWT(text)
	if err != nil {
		return
	}
	kp, err := jwt.ParseDecoratedUserNKey(text)
	if err != nil {
		return
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	once := func() error {
		c, err := hostDialer{host}.DialContext(ctx, "tcp", HubAddr+":4222")
		if err != nil {
			return err
		}
		defer c.Close()
		stop := context.AfterFunc(ctx, func() { c.Close() })
		defer stop()
		c.SetDeadline(time.Now().Add(stepTimeout))
		line, err := greeting(c)
		if err != nil {
			return err
		}
		var info struct {
			Nonce string `json:"nonce"`
		}
		if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "INFO ")), &info); err != nil {
			return err
		}
		sig, err := kp.Sign([]byte(info.Nonce))
		if err != nil {
			return err
		}
		tc := tls.Client(c, &tls.Config{RootCAs: roots, ServerName: HubAddr})
		fmt.Fprintf(tc, "CONNECT {\"jwt\":%q,\"sig\":%q}\r\nSUB causeway.v1.inventory.> 1\r\n", token, base64.RawURLEncoding.EncodeToString(sig))
		c.SetDeadline(time.Time{})
		if read {
			_, err := io.Copy(io.Discard, tc)
			return err
		}
		// Closed by the hub, writing fails before long.
		for ctx.Err() == nil {
			if _, err := io.WriteString(tc, "PING\r\n"); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
		return nil
	}
	for ctx.Err() == nil {
		once()
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// greeting reads one line and nothing of what comes after it.
func greeting(r io.Reader) (string, error) {
	var b []byte
	for len(b) < 4096 {
		var c [1]byte
		if _, err := io.ReadFull(r, c[:]); err != nil {
			return "", err
		}
		if b = append(b, c[0]); c[0] == '\n' {
			return string(b), nil
		}
	}
	return "", io.ErrShortBuffer
}
