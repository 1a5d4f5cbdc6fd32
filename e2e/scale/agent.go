package scale

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"causeway/agent/control"
	"causeway/hub/join/jointest"
	"causeway/protocol"
	"causeway/tunnel/mux"
)

// carrier is how an agent's control connection reaches the hub.
type carrier interface {
	// dial waits until the hub can be dialled.
	dial(ctx context.Context) (net.Conn, error)
	// lost is closed when the connection dialled last is of no use any more.
	lost() <-chan struct{}
}

// agent speaks what an agent speaks to its hub, and does nothing with what it
// hears but to check and acknowledge it: a real one also verifies signatures and
// sets up its host, which is not the hub's work, and here all share two processors.
type agent struct {
	index  int
	world  *world
	name   string
	wg     protocol.WireGuardPrivateKey
	id     protocol.IdentityPrivateKey
	boot   protocol.BootID
	number protocol.NodeNumber
	site   string
	overly netip.Addr // the first overlay address
	routes []netip.Prefix
	via    carrier

	peers []protocol.PeersSum // of the netmap held, by node number; the zero value: not in it
	sum   protocol.PeersSum
	have  protocol.NetmapVersion

	connected atomic.Bool
	inventory inventory
}

// join redeems a token, over HTTPS.
func (a *agent) join(c *http.Client, text string) (protocol.JoinAnswer, protocol.HubList, error) {
	tok, err := protocol.ParseToken(text)
	if err != nil {
		return protocol.JoinAnswer{}, protocol.HubList{}, err
	}
	if a.wg, err = protocol.NewWireGuardPrivateKey(); err == nil {
		a.id, err = protocol.NewIdentityPrivateKey()
	}
	if err == nil {
		a.boot, err = protocol.NewBootID()
	}
	if err != nil {
		return protocol.JoinAnswer{}, protocol.HubList{}, err
	}
	list, err := jointest.HubList(c, tok)
	if err != nil {
		return protocol.JoinAnswer{}, list, err
	}
	ans, err := jointest.Redeem(c, tok, list.Hubs[0].WireGuardKey, a.wg, protocol.JoinRequest{Version: protocol.Version, TokenID: tok.ID, Secret: tok.Secret[:], Name: a.name, IdentityKey: a.id.Public()})
	if err == nil && ans.Refused != nil {
		err = errors.New(ans.Refused.Message)
	}
	if err != nil {
		return ans, list, fmt.Errorf("join: %w", err)
	}
	a.number, a.site, a.overly = ans.Number, ans.Site, ans.Overlay[0]
	return ans, list, nil
}

// run holds control sessions, one after the other, until ctx ends.
func (a *agent) run(ctx context.Context) {
	b := control.Redial()
	for ctx.Err() == nil {
		start := time.Now()
		err := a.session(ctx)
		a.connected.Store(false)
		if ctx.Err() != nil {
			return
		}
		a.world.ended(a, err)
		if time.Since(start) > 10*time.Second {
			b.Reset()
		}
		select {
		case <-ctx.Done():
		case <-time.After(b.NextBackOff()):
		}
	}
}

// session dials and serves one control session.
func (a *agent) session(ctx context.Context) error {
	conn, err := a.via.dial(ctx)
	if err != nil {
		return err
	}
	m, err := mux.Client(conn)
	if err != nil {
		conn.Close()
		return err
	}
	defer m.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { m.Close() })
	defer stop()
	lost := a.via.lost()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		select {
		case <-lost:
			m.Close()
		case <-ctx.Done():
		}
	})
	st, err := m.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamControl})
	if err != nil {
		return err
	}
	s := &stream{c: st}
	hub := a.world.list.Hubs[0].Number
	hello := protocol.Hello{Vouch: protocol.Vouch(hub, a.number, a.boot, a.id), AgentVersion: "scale", Engine: "scale", BootID: a.boot, Have: a.have, Routes: a.routes,
		Statement: protocol.NodeStatement{Number: a.number, WireGuardKey: a.wg.Public(), Epoch: protocol.FirstKeyEpoch}.Sign(a.id)}
	if a.have != (protocol.NetmapVersion{}) {
		hello.HaveSum = a.sum[:]
	}
	said, err := protocol.NewMessage(protocol.KindHello, hello)
	if err != nil {
		return err
	}
	if err := s.write(said); err != nil {
		return err
	}
	st.SetReadDeadline(time.Now().Add(30 * time.Second))
	kind, body, err := a.read(st)
	if err != nil {
		return err
	}
	if kind == protocol.KindChallenge {
		ch, err := protocol.ParseChallenge(body)
		if err != nil {
			return err
		}
		if err := s.send(protocol.KindProof, ch.Prove(a.number, said.Body, a.id)); err != nil {
			return err
		}
		if kind, body, err = a.read(st); err != nil {
			return err
		}
	}
	if kind != protocol.KindWelcome {
		return fmt.Errorf("no welcome but %s: %.200s", kind, body)
	}
	st.SetReadDeadline(time.Time{})
	a.connected.Store(true)
	a.world.welcomed(a)
	wg.Go(func() {
		t := time.NewTicker(protocol.StatusInterval)
		defer t.Stop()
		for s.send(protocol.KindStatus, a.status()) == nil {
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
		}
		m.Close()
	})
	wg.Go(func() {
		a.inventory.run(ctx, a, func(ctx context.Context) (net.Conn, error) {
			return m.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamNATS})
		})
	})
	for {
		kind, body, err := a.read(st)
		if err != nil {
			return err
		}
		switch kind {
		case protocol.KindNetmap:
			var ack protocol.NetmapAck
			if err := json.Unmarshal(body, &ack); err != nil {
				return err
			}
			if err := s.send(protocol.KindNetmapAck, ack); err != nil {
				return err
			}
			if !ack.Full {
				a.world.acked(a, ack.NetmapVersion)
			}
		case protocol.KindError:
			return fmt.Errorf("the hub says: %.200s", body)
		}
	}
}

// status is that of an agent with two addresses that nobody ever sends to: peers
// are told of them, and no agent here has any traffic for another.
func (a *agent) status() protocol.Status {
	n := uint32(a.number)
	at := func(b0 byte) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{b0, byte(n >> 16), byte(n >> 8), byte(n)}), 51820)
	}
	conditions := make([]protocol.Condition, 0, 8)
	for _, name := range []string{"tunnel", "hub", "control", "nats", "netmap", "routes", "firewall", "state"} {
		conditions = append(conditions, protocol.Condition{Name: name, OK: true, Since: a.world.started})
	}
	return protocol.Status{Candidates: []netip.AddrPort{at(10), at(100)}, Conditions: conditions,
		Paths: []protocol.PathStatus{{Peer: a.world.list.Hubs[0].Number, Path: protocol.PathDirect, Addr: a.world.list.udp(), MTU: 1420, Since: a.world.started}}}
}

// stream writes frames from several goroutines.
type stream struct {
	mu sync.Mutex
	c  net.Conn
}

func (s *stream) send(k protocol.MessageKind, body any) error {
	m, err := protocol.NewMessage(k, body)
	if err != nil {
		return err
	}
	return s.write(m)
}

func (s *stream) write(m protocol.Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.c.SetWriteDeadline(time.Now().Add(30 * time.Second))
	return protocol.WriteFrame(s.c, m, protocol.MaxToHub)
}

var peersKey = []byte(`"peers":[`)

// maxHead bounds what is before the peers in a netmap.
const maxHead = 64 << 10

// read reads a message. Of a netmap, which may be of megabytes, it takes the peers one
// by one and keeps their digests; the body returned is that of the answer.
func (a *agent) read(c net.Conn) (protocol.MessageKind, []byte, error) {
	var l [4]byte
	if _, err := io.ReadFull(c, l[:]); err != nil {
		return "", nil, err
	}
	n := int64(binary.BigEndian.Uint32(l[:]))
	if n > protocol.MaxToAgent {
		return "", nil, protocol.ErrFrameTooLarge
	}
	frame := &io.LimitedReader{R: c, N: n}
	head := make([]byte, 0, min(n, 4096))
	for len(head) < maxHead && frame.N > 0 {
		head = slices.Grow(head, 512)
		k, err := frame.Read(head[len(head):cap(head)])
		head = head[:len(head)+k]
		if err != nil {
			return "", nil, err
		}
		if bytes.Contains(head, peersKey) {
			return a.netmap(head, frame)
		}
	}
	if frame.N > 0 {
		return "", nil, errors.New("long message without peers")
	}
	var m protocol.Message
	err := json.Unmarshal(head, &m)
	return m.Kind, m.Body, err
}

// netmap reads a netmap whose beginning is head.
func (a *agent) netmap(head []byte, rest io.Reader) (protocol.MessageKind, []byte, error) {
	i := bytes.Index(head, peersKey)
	var m struct {
		Kind protocol.MessageKind `json:"kind"`
		Body struct {
			protocol.NetmapVersion
			Base *protocol.NetmapVersion `json:"base"`
		} `json:"body"`
	}
	if err := json.Unmarshal(slices.Concat(head[:i], []byte(`"peers":[]}}`)), &m); err != nil {
		return "", nil, fmt.Errorf("netmap: %w", err)
	}
	peers, sum := a.peers, a.sum
	known := m.Body.Base == nil || *m.Body.Base == a.have
	if m.Body.Base == nil {
		peers, sum = make([]protocol.PeersSum, len(a.peers)), protocol.PeersSum{}
	}
	set := func(n protocol.NodeNumber, s protocol.PeersSum) {
		for int(n) >= len(peers) {
			peers = append(peers, protocol.PeersSum{})
		}
		sum.Add(peers[n])
		sum.Add(s)
		peers[n] = s
	}
	p := &peerReader{r: rest, buf: head[i+len(peersKey):]}
	for {
		peer, err := p.next()
		if err != nil {
			return "", nil, err
		}
		if peer == nil {
			break
		}
		n, err := peerNumber(peer)
		if err != nil {
			return "", nil, err
		}
		if known {
			set(n, protocol.SumPeer(peer))
		}
	}
	tail, err := p.rest() // ],"removed":[…],"max_age_ns":…}}
	if err != nil {
		return "", nil, err
	}
	var t struct {
		Removed []protocol.NodeNumber `json:"removed"`
	}
	if err := json.Unmarshal(slices.Concat([]byte(`{"peers":[`), tail[:len(tail)-1]), &t); err != nil {
		return "", nil, fmt.Errorf("netmap: %w", err)
	}
	ack := protocol.NetmapAck{NetmapVersion: m.Body.NetmapVersion, Full: !known}
	if known {
		for _, n := range t.Removed {
			set(n, protocol.PeersSum{})
		}
		a.peers, a.sum, a.have = peers, sum, m.Body.NetmapVersion
	}
	b, err := json.Marshal(ack)
	return m.Kind, b, err
}

// peerNumber reads a peer's number from its JSON, of which the statement comes first.
func peerNumber(peer []byte) (n protocol.NodeNumber, err error) {
	digits, ok := bytes.CutPrefix(peer, []byte(`{"statement":{"number":`))
	if !ok {
		return 0, fmt.Errorf("peer begins with %.60q", peer)
	}
	for _, d := range digits {
		if d < '0' || d > '9' {
			break
		}
		n = n*10 + protocol.NodeNumber(d-'0')
	}
	return n, nil
}

// peerReader cuts a JSON array of objects into its elements.
type peerReader struct {
	r   io.Reader
	buf []byte
	at  int
}

// more reads more into buf, behind what is not done with yet.
func (p *peerReader) more() error {
	p.buf = p.buf[:copy(p.buf, p.buf[p.at:])]
	p.at = 0
	p.buf = slices.Grow(p.buf, 16<<10)
	k, err := p.r.Read(p.buf[len(p.buf):cap(p.buf)])
	p.buf = p.buf[:len(p.buf)+k]
	if k > 0 {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// next returns the next element, nil at the array's end. It is valid until the next call.
func (p *peerReader) next() ([]byte, error) {
	depth, quoted := 0, false
	for i := p.at; ; i++ {
		for i >= len(p.buf) {
			i -= p.at
			if err := p.more(); err != nil {
				return nil, err
			}
		}
		switch c := p.buf[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{':
			depth++
		case c == '}':
			if depth--; depth == 0 {
				e := p.buf[p.at : i+1]
				p.at = i + 1
				return e, nil
			}
		case depth == 0 && c == ',':
			p.at = i + 1
		case depth == 0 && c == ']':
			p.at = i
			return nil, nil
		}
	}
}

// rest returns what is behind the elements, to the end of the frame.
func (p *peerReader) rest() ([]byte, error) {
	b, err := io.ReadAll(p.r)
	return append(slices.Clone(p.buf[p.at:]), b...), err
}
