package probe

import (
	"cmp"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/crypto/blake2s"

	"causeway/protocol"
)

// What a hub keeps of addresses.
const (
	BindingFor   = 60 * time.Second
	MaxBindings  = 8
	cookieFor    = 10 * time.Second // from challenge to confirmation
	secretChange = 2 * time.Minute
)

// Node is a node as a hub knows it.
type Node struct {
	Number protocol.NodeNumber
	Key    protocol.WireGuardPublicKey
}

// Place is where to send to a node, and from which of the hub's addresses:
// agents take answers from no other than the one they asked.
type Place struct {
	To   netip.AddrPort
	From netip.Addr // invalid if the hub has but one
	// Tally is where what comes from To and goes there is counted.
	Tally *Tally
}

type binding struct {
	addr    netip.AddrPort
	local   netip.Addr // that the confirmation with the counter came to
	counter uint64     // the highest is sent to
	stamp   uint64     // of the cookie that proved it last
	expires time.Time
	tally   *Tally
}

type node struct {
	Node
	keys
	since     uint64 // cookies made before are another state's
	boot      protocol.BootID
	known     bool
	bootStamp uint64 // of the cookie that boot was last proven by
	bindings  []binding
	answers   bucket
	strangers bucket
	seen      seen
}

// Binder decides which addresses belong to which node, at a hub.
type Binder struct {
	cfg     Config
	own     ring
	nodes   map[protocol.NodeNumber]*node
	addrs   map[netip.AddrPort]*node
	secrets [2][32]byte // newest first
	changed time.Time
	start   time.Time
	stamp   uint64
	overruns
}

// NewBinder returns a Binder that knows no node yet.
func NewBinder(cfg Config, now time.Time) *Binder {
	cfg.fill()
	b := &Binder{cfg: cfg, nodes: map[protocol.NodeNumber]*node{}, addrs: map[netip.AddrPort]*node{}, start: now, changed: now}
	b.SetKeys([]OwnKey{{cfg.PrivateKey, cfg.KeyEpoch}})
	rand.Read(b.secrets[0][:])
	rand.Read(b.secrets[1][:])
	return b
}

// SetKeys replaces the hub's own static keys: all of them are good, and an
// answer is under the one that was asked.
func (b *Binder) SetKeys(keys []OwnKey) { b.own.set(keys) }

// next is the time by the hub's own clock, never twice the same.
func (b *Binder) next(now time.Time) uint64 {
	b.stamp = max(b.stamp+1, uint64(now.Sub(b.start)))
	return b.stamp
}

// SetNodes replaces the nodes. One that is left out loses its bindings at once.
// One that has another key has rotated it: it keeps them while they last, but
// whatever it proves under the new key goes before them. It fails, changing nothing, if a number is there twice.
func (b *Binder) SetNodes(now time.Time, nodes []Node, out *Output) error {
	numbers := map[protocol.NodeNumber]bool{}
	for _, n := range nodes {
		if !n.Number.Valid() || n.Number == b.cfg.Self || numbers[n.Number] {
			return fmt.Errorf("set nodes: node number %d is not valid, our own, or there twice", n.Number)
		}
		numbers[n.Number] = true
	}
	old := b.nodes
	b.nodes = make(map[protocol.NodeNumber]*node, len(nodes))
	since := b.next(now)
	for _, c := range nodes {
		n := old[c.Number]
		if n == nil {
			n = &node{since: since}
		}
		if n.Key != c.Key {
			n.keys, n.since = keys{}, since
			for i := range n.bindings {
				n.bindings[i].counter = 0
			}
		}
		n.Node = c
		b.nodes[c.Number] = n
	}
	for a, n := range b.addrs {
		if b.nodes[n.Number] != n {
			delete(b.addrs, a)
			b.change(n, out)
		}
	}
	return nil
}

// cookie binds address, number, nonce and time to us, without keeping any of them.
func (b *Binder) cookie(secret *[32]byte, src netip.AddrPort, n protocol.NodeNumber, nonce, stamp uint64) (c [16]byte) {
	var m [38]byte
	a := src.Addr().As16()
	copy(m[:], a[:])
	be := binary.BigEndian
	be.PutUint16(m[16:], src.Port())
	be.PutUint32(m[18:], uint32(n))
	be.PutUint64(m[22:], nonce)
	be.PutUint64(m[30:], stamp)
	h, err := blake2s.New128(secret[:])
	if err != nil { // only for a key longer than 32 bytes
		panic(err)
	}
	h.Write(m[:])
	h.Write([]byte(src.Addr().Zone())) // a stream's is nobody else's
	h.Sum(c[:0])
	return c
}

// Receive takes a probe that came from src to local, one of the hub's
// addresses if it has several. It keeps nothing of data.
func (b *Binder) Receive(now time.Time, src netip.AddrPort, local netip.Addr, data []byte, out *Output) Reason {
	m, err := protocol.ParseProbe(data)
	if err != nil {
		return Malformed
	}
	if m.To != b.cfg.Self || m.Number != 0 || m.Kind != protocol.ProbeHubQuestion && m.Kind != protocol.ProbeConfirm {
		return Misaddressed
	}
	n := b.nodes[m.From]
	if n == nil {
		return UnknownSender
	}
	if !n.keys.verify(now, &b.own, n.Key, data) {
		return Unauthenticated
	}
	limit := &n.answers
	if n.known && m.Boot != n.boot {
		limit = &n.strangers
	}
	k, epoch := n.keys.sender(&b.own, n.Key)
	r := protocol.Probe{From: b.cfg.Self, To: n.Number, KeyEpoch: epoch, PathID: m.PathID, Boot: b.cfg.Boot, Nonce: m.Nonce}
	if m.Kind == protocol.ProbeHubQuestion {
		if !n.seen.add(m.Nonce) {
			return Replayed
		}
		if !limit.take(now) {
			return Limited
		}
		b.rotate(now)
		r.Kind, r.Stamp = protocol.ProbeChallenge, b.next(now)
		r.Cookie = b.cookie(&b.secrets[0], src, n.Number, m.Nonce, r.Stamp)
	} else {
		if !b.cookieValid(now, n, src, m) || n.known && m.Boot != n.boot && m.Stamp <= n.bootStamp {
			return Replayed
		}
		if !limit.take(now) {
			return Limited
		}
		if !b.bind(now, n, src, local, m, out) {
			return Replayed
		}
		r.Kind, r.Counter = protocol.ProbeAcknowledge, m.Counter
		r.Flags |= protocol.ProbeCounts
		for _, x := range n.bindings {
			if x.addr == src {
				r.Counts = x.tally.Counts()
			}
		}
		if b.blind(now) {
			r.Flags |= protocol.ProbeOverrun
		}
	}
	if !protocol.IsStream(src) {
		r.Observed = src // of a challenge too: 'causeway-agent doctor' binds nothing
	}
	out.Sends = append(out.Sends, Send{To: src, From: local, Data: r.Append(nil, &k.Send)})
	return OK
}

func (b *Binder) rotate(now time.Time) {
	if now.Sub(b.changed) >= secretChange {
		b.secrets[1], b.changed = b.secrets[0], now
		rand.Read(b.secrets[0][:])
	}
}

func (b *Binder) cookieValid(now time.Time, n *node, src netip.AddrPort, m protocol.Probe) bool {
	if m.Stamp <= n.since || m.Stamp > b.stamp {
		return false
	}
	if made := b.start.Add(time.Duration(m.Stamp)); now.Sub(made) > cookieFor {
		return false
	}
	for i := range b.secrets {
		c := b.cookie(&b.secrets[i], src, n.Number, m.Nonce, m.Stamp)
		if subtle.ConstantTimeCompare(c[:], m.Cookie[:]) == 1 {
			return true
		}
	}
	return false
}

// bind takes a confirmation with a valid cookie.
func (b *Binder) bind(now time.Time, n *node, src netip.AddrPort, local netip.Addr, m protocol.Probe, out *Output) bool {
	i := slices.IndexFunc(n.bindings, func(x binding) bool { return x.addr == src })
	if i >= 0 && m.Stamp <= n.bindings[i].stamp {
		return false
	}
	if n.known && m.Boot != n.boot {
		// Addresses and counters of the old run mean nothing to the new one.
		for _, x := range n.bindings {
			delete(b.addrs, x.addr)
		}
		n.bindings, i = nil, -1
		out.Restarted = append(out.Restarted, n.Number)
		b.change(n, out)
	}
	n.boot, n.known, n.bootStamp = m.Boot, true, max(n.bootStamp, m.Stamp)
	before, _ := n.first()
	if i < 0 {
		if o := b.addrs[src]; o != nil && o != n { // a NAT gave the port to another node
			o.bindings = slices.DeleteFunc(o.bindings, func(x binding) bool { return x.addr == src })
			b.change(o, out)
		}
		if len(n.bindings) >= MaxBindings {
			n.sort()
			// The least wanted one goes, whoever it is: the node proved more than it may have.
			last := len(n.bindings) - 1
			delete(b.addrs, n.bindings[last].addr)
			n.bindings = n.bindings[:last]
		}
		n.bindings = append(n.bindings, binding{addr: src, tally: new(Tally)})
		i = len(n.bindings) - 1
		b.addrs[src] = n
		b.change(n, out)
	}
	x := &n.bindings[i]
	if m.Counter >= x.counter && x.local != local {
		x.local = local
		b.change(n, out)
	}
	x.counter, x.stamp, x.expires = max(x.counter, m.Counter), m.Stamp, now.Add(BindingFor)
	if after, _ := n.first(); after != before {
		b.change(n, out)
	}
	return true
}

// Unbind forgets an address that leads nowhere any more: of a stream that ended.
func (b *Binder) Unbind(a netip.AddrPort, out *Output) {
	n := b.addrs[a]
	if n == nil {
		return
	}
	delete(b.addrs, a)
	n.bindings = slices.DeleteFunc(n.bindings, func(x binding) bool { return x.addr == a })
	b.change(n, out)
}

func (b *Binder) change(n *node, out *Output) {
	out.Changed = true
	if !slices.Contains(out.Routes, n.Number) {
		out.Routes = append(out.Routes, n.Number)
	}
}

// sort puts the address to send to first.
func (n *node) sort() {
	slices.SortFunc(n.bindings, func(x, y binding) int {
		return cmp.Or(cmp.Compare(y.counter, x.counter), cmp.Compare(y.stamp, x.stamp))
	})
}

func (n *node) first() (netip.AddrPort, bool) {
	if len(n.bindings) == 0 {
		return netip.AddrPort{}, false
	}
	best := slices.MinFunc(n.bindings, func(x, y binding) int {
		return cmp.Or(cmp.Compare(y.counter, x.counter), cmp.Compare(y.stamp, x.stamp))
	})
	return best.addr, true
}

// Tick drops bindings that have expired. Call it every few seconds.
func (b *Binder) Tick(now time.Time, out *Output) {
	b.rotate(now)
	for a, n := range b.addrs {
		i := slices.IndexFunc(n.bindings, func(x binding) bool { return x.addr == a })
		if i >= 0 && now.Before(n.bindings[i].expires) {
			continue
		}
		delete(b.addrs, a)
		if i >= 0 {
			n.bindings = slices.Delete(n.bindings, i, i+1)
		}
		b.change(n, out)
	}
}

// Places lists where n is, the one to send to first.
func (b *Binder) Places(number protocol.NodeNumber) []Place {
	n := b.nodes[number]
	if n == nil {
		return nil
	}
	n.sort()
	l := make([]Place, len(n.bindings))
	for i, x := range n.bindings {
		l[i] = Place{x.addr, x.local, x.tally}
	}
	return l
}

// Bound lists n's addresses, the one to send to first.
func (b *Binder) Bound(number protocol.NodeNumber) []netip.AddrPort {
	var l []netip.AddrPort
	for _, r := range b.Places(number) {
		l = append(l, r.To)
	}
	return l
}

// Proven is when n last proved one of the addresses that it is bound at; zero: it is
// bound nowhere.
func (b *Binder) Proven(number protocol.NodeNumber) (at time.Time) {
	if n := b.nodes[number]; n != nil {
		for _, x := range n.bindings {
			if t := x.expires.Add(-BindingFor); t.After(at) {
				at = t
			}
		}
	}
	return at
}

// Boot is the boot id that n has proven.
func (b *Binder) Boot(number protocol.NodeNumber) (protocol.BootID, bool) {
	if n := b.nodes[number]; n != nil {
		return n.boot, n.known
	}
	return protocol.BootID{}, false
}
