package session

import (
	"crypto/rand"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"causeway/hub/facts/event"
	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
)

// A connection from a node's overlay address may be anybody's on the node's host. Until it
// has proven the node's identity key it is in a small pool of its node, apart from
// what the node's own session has, and whoever fills the pool pushes out his own
// oldest connection first. Those that vouch for the key (protocol.Vouch) have places
// that nobody else can take.
const (
	unprovenTimeout = 5 * time.Second // from its start to the proof
	maxUnproven     = 128             // of one node, that have not vouched
	maxVouched      = 4               // of one node, that were asked to prove
	maxUnprovenRead = 1 << 20         // bytes that one may send before its proof: a hello and frames
	maxUnprovenNode = 4 << 20         // and those of one node together: the oldest goes that sent no little
	unheardFor      = time.Second     // for an agent that was refused to hear why
)

// abort ends a connection that became nobody's session, so that nothing of it is kept: who
// opens them one after the other and never answers the end of one would have the hub keep
// them all.
func abort(c net.Conn) {
	if a, ok := c.(interface{ Abort() }); ok {
		a.Abort()
	}
	c.Close()
}

// door is where connections wait for their proof.
type door struct {
	mu    sync.Mutex
	nodes map[protocol.NodeNumber][]*knock // oldest first
}

// knock is a connection that waits.
type knock struct {
	door    *door
	node    protocol.NodeNumber
	conn    net.Conn
	read    int
	vouched bool
	in      bool // it waits
}

// knock lets c wait as one of node n.
func (d *door) knock(n protocol.NodeNumber, c net.Conn) *knock {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.nodes == nil {
		d.nodes = map[protocol.NodeNumber][]*knock{}
	}
	d.oldestGoes(n, false, maxUnproven)
	k := &knock{door: d, node: n, conn: c, in: true}
	d.nodes[n] = append(d.nodes[n], k)
	return k
}

// oldestGoes makes room for one more of n. d.mu is held.
func (d *door) oldestGoes(n protocol.NodeNumber, vouched bool, most int) {
	var oldest *knock
	count := 0
	for _, k := range d.nodes[n] {
		if k.vouched != vouched {
			continue
		}
		if count++; oldest == nil {
			oldest = k
		}
	}
	if count >= most {
		d.out(oldest)
		abort(oldest.conn)
	}
}

// out takes k out. d.mu is held.
func (d *door) out(k *knock) {
	if !k.in {
		return
	}
	k.in = false
	l := slices.DeleteFunc(d.nodes[k.node], func(x *knock) bool { return x == k })
	if d.nodes[k.node] = l; len(l) == 0 {
		delete(d.nodes, k.node)
	}
}

// end says that k waits no more. It reports whether it still did.
func (k *knock) end() bool {
	k.door.mu.Lock()
	defer k.door.mu.Unlock()
	was := k.in
	k.door.out(k)
	return was
}

// vouch gives k one of the places of those who hold the node's key.
func (k *knock) vouch() {
	k.door.mu.Lock()
	defer k.door.mu.Unlock()
	if k.in && !k.vouched {
		k.door.oldestGoes(k.node, true, maxVouched)
		k.vouched = true
	}
}

// took counts what was read; what is too much ends the connection, or another of the same node: the oldest that sent
// more than half of what they sent on average and did not vouch. The one that sent most it is not, or
// strangers who send as much as they may would have that be the agent's own, with its long hello.
func (k *knock) took(n int) {
	k.door.mu.Lock()
	defer k.door.mu.Unlock()
	if !k.in {
		return
	}
	k.read += n
	if k.read > maxUnprovenRead {
		k.door.out(k)
		abort(k.conn)
		return
	}
	all, sum := k.door.nodes[k.node], 0
	for _, x := range all {
		sum += x.read
	}
	if sum <= maxUnprovenNode {
		return
	}
	if i := slices.IndexFunc(all, func(x *knock) bool { return !x.vouched && x.read > sum/len(all)/2 }); i >= 0 {
		goes := all[i]
		k.door.out(goes)
		abort(goes.conn)
	}
}

// prove has whoever said hello prove that he holds the node's identity key. It reports whether he
// did: an agent of the version before cannot, and is taken all the same until its node has
// proven itself once, unless the hub asks for proof of all.
func (ses *session) prove(st net.Conn, node state.Node, h protocol.Hello, body []byte) (bool, error) {
	cfg := ses.s.cfg
	if len(h.Vouch) == 0 {
		switch {
		case !node.Proven.IsZero():
			return false, state.Errorf(state.Refused, "node %s has proven its identity before, and this session does not: whoever speaks is not its agent, or an older one; upgrade causeway-agent there", node.Name)
		case cfg.RequireProof:
			return false, state.Errorf(state.Refused, "this hub takes no session that does not prove its node's identity (require-proof), and the agent of node %s cannot: upgrade causeway-agent there", node.Name)
		case ses.s.fleet.ProvenNow(node.Number):
			return false, state.Errorf(state.Refused, "node %s has a session that proves its identity, and this one does not: whoever speaks is not its agent", node.Name)
		}
		return false, nil
	}
	if !protocol.Vouched(h.Vouch, cfg.Number, node.Number, h.BootID, node.IdentityKey) {
		return false, state.Errorf(state.Refused, "a session of node %s is not vouched for by the node's identity key", node.Name)
	}
	ses.knock.vouch()
	c := protocol.Challenge{Nonce: make([]byte, protocol.ChallengeNonce), Hub: cfg.Number, Boot: ses.s.boot}
	rand.Read(c.Nonce)
	if err := ses.send(protocol.KindChallenge, c); err != nil {
		return false, err
	}
	var m protocol.Message
	if err := protocol.ReadFrame(st, &m, protocol.MaxProof); err != nil {
		return false, fmt.Errorf("wait for the proof: %w", err)
	}
	if m.Kind != protocol.KindProof {
		return false, state.Errorf(state.Refused, "the proof comes after the challenge, not %.40q", m.Kind)
	}
	p, err := protocol.ParseProof(m.Body)
	if err != nil {
		return false, state.Errorf(state.Refused, "%s", err)
	}
	if !p.Proves(c, node.Number, body, node.IdentityKey) {
		return false, state.Errorf(state.Refused, "a session of node %s does not prove the node's identity", node.Name)
	}
	return true, nil
}

// admit ends the wait of a connection that may be the node's session now, and charges the
// node for it; leave ends that.
func (ses *session) admit(proven bool) (leave func(), err error) {
	if !ses.knock.end() {
		return nil, net.ErrClosed
	}
	leave, ok := ses.s.fleet.Enter(fleet.Comer{Node: ses.node, Proven: proven})
	if !ok {
		return nil, state.Errorf(state.Refused, "too many control connections of this node; the next may come in %s", fleet.ConnEvery)
	}
	ses.patience.Reset(helloTimeout)
	return leave, nil
}

// refused tells operators of a session that did not become the node's, not more often than
// they want to hear.
func (ses *session) refused(err error) {
	name := ses.name()
	n, tell := ses.s.fleet.Refused(ses.node)
	if !tell {
		return
	}
	text := err.Error()
	if n > 1 {
		text = fmt.Sprintf("%s (%d sessions refused since the last word of it)", text, n)
	}
	ses.s.cfg.Events.Add(event.NodeRefused, name, protocol.OneLine(text, fleet.MaxText))
	ses.log.Warn().Err(err).Int("count", n).Msg("hello refused")
}
