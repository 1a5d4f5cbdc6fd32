package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"causeway/protocol"
)

// pages are all words of this node, in answers.
type pages struct {
	digest uint64
	of     [][]protocol.ServiceWord
}

func newPages(words []protocol.ServiceWord) *pages {
	slices.SortFunc(words, func(a, b protocol.ServiceWord) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), a.Addr.Compare(b.Addr))
	})
	p := &pages{digest: protocol.ServiceDigest(words)}
	for l := range slices.Chunk(words, protocol.MaxServiceWords) {
		if len(p.of) < protocol.MaxServicePages {
			p.of = append(p.of, l)
		}
	}
	return p
}

// answer is that to a question. Without news it has no words.
func (p *pages) answer(q protocol.ServiceAsk) protocol.ServiceAnswer {
	a := protocol.ServiceAnswer{Seq: q.Seq, Digest: p.digest, Page: q.Page, Pages: uint16(len(p.of))}
	if int(q.Page) >= len(p.of) {
		a.Page = 0
	}
	if (q.Page > 0 || q.Digest != p.digest) && int(q.Page) < len(p.of) {
		a.Words = p.of[q.Page]
	}
	return a
}

// heardWords are what one node said.
type heardWords struct {
	digest uint64
	words  map[wordKey]protocol.Readiness

	coming uint64 // digest of pages under way
	have   map[uint16][]protocol.ServiceWord
}

type wordKey struct {
	service uint64
	addr    netip.Addr
}

// take takes an answer; more are the pages that are still to be asked for.
func (h *heardWords) take(a protocol.ServiceAnswer) (changed bool, more []uint16) {
	if a.Digest == h.digest && h.words != nil {
		return false, nil
	}
	if a.Pages == 0 {
		h.digest, h.words, h.have = a.Digest, map[wordKey]protocol.Readiness{}, nil
		return true, nil
	}
	if h.have == nil || h.coming != a.Digest {
		h.coming, h.have = a.Digest, map[uint16][]protocol.ServiceWord{}
	}
	if len(a.Words) > 0 {
		h.have[a.Page] = a.Words
	}
	if len(h.have) < int(a.Pages) {
		if a.Page == 0 { // those after it come one after the other with the questions of page 0
			for n := range a.Pages {
				if h.have[n] == nil {
					more = append(more, n)
				}
			}
		}
		return false, more
	}
	h.digest, h.words = a.Digest, map[wordKey]protocol.Readiness{}
	for _, l := range h.have {
		for _, w := range l {
			h.words[wordKey{w.Service, w.Addr}] = w.Ready
		}
	}
	h.have = nil
	return true, nil
}

// Each node may ask so many questions a second.
const (
	askRate  = 100
	askBurst = 2 * protocol.MaxServicePages
	// maxAskers bounds the nodes whose questions are counted; all are peers.
	maxAskers = 1 << 14
)

// talker is the UDP side: it asks, and answers other nodes' questions. Its methods may be called concurrently.
type talker struct {
	peers   atomic.Pointer[map[netip.Addr]protocol.NodeNumber] // by overlay address: who may ask and answer
	words   atomic.Pointer[pages]
	answers chan heard

	mu     sync.Mutex
	conns  map[netip.Addr]*net.UDPConn // by own address
	budget map[protocol.NodeNumber]*rate.Limiter
}

// heard is an answer of a node.
type heard struct {
	node   protocol.NodeNumber
	at     time.Time
	answer protocol.ServiceAnswer
}

func newTalker() *talker {
	t := &talker{answers: make(chan heard, 1024), conns: map[netip.Addr]*net.UDPConn{}, budget: map[protocol.NodeNumber]*rate.Limiter{}}
	t.words.Store(newPages(nil))
	t.peers.Store(&map[netip.Addr]protocol.NodeNumber{})
	return t
}

// open listens at the node's own addresses and at no other, until close.
func (t *talker) open(ctx context.Context, own []netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for a, c := range t.conns {
		if !slices.Contains(own, a) {
			c.Close()
			delete(t.conns, a)
		}
	}
	var errs []error
	for _, a := range own {
		if t.conns[a] != nil {
			continue
		}
		// The address may come later than this, as after an interface was made anew.
		l := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			level, opt := unix.SOL_IP, unix.IP_FREEBIND
			if a.Is6() {
				level, opt = unix.SOL_IPV6, unix.IPV6_FREEBIND
			}
			if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, opt, 1) }); e != nil {
				return e
			}
			return err
		}}
		c, err := l.ListenPacket(ctx, "udp", netip.AddrPortFrom(a, protocol.ServiceWordPort).String())
		if err != nil {
			errs = append(errs, fmt.Errorf("listen for other nodes' questions of services: %w", err))
			continue
		}
		t.conns[a] = c.(*net.UDPConn)
		go t.read(t.conns[a])
	}
	return errors.Join(errs...)
}

func (t *talker) close() { _ = t.open(context.Background(), nil) }

// ask sends a question to a node's address. What cannot be sent counts as lost.
func (t *talker) ask(to netip.Addr, q protocol.ServiceAsk) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for a, c := range t.conns {
		if a.Is4() == to.Is4() {
			_, _ = c.WriteToUDPAddrPort(q.Append(nil), netip.AddrPortFrom(to, protocol.ServiceWordPort))
			return
		}
	}
}

// allowed counts a question of a node.
func (t *talker) allowed(n protocol.NodeNumber) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.budget[n]
	if b == nil {
		if len(t.budget) >= maxAskers {
			clear(t.budget)
		}
		b = rate.NewLimiter(askRate, askBurst)
		t.budget[n] = b
	}
	return b.Allow()
}

// read takes questions and answers of one socket until it is closed. Whose address a datagram has is by WireGuard; of who is no
// peer nothing is taken.
func (t *talker) read(c *net.UDPConn) {
	b := make([]byte, 1500)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of a question before
		}
		node, is := (*t.peers.Load())[from.Addr().Unmap()]
		if !is || from.Port() != protocol.ServiceWordPort {
			continue
		}
		if q, err := protocol.ParseServiceAsk(b[:n]); err == nil {
			if t.allowed(node) {
				_, _ = c.WriteToUDPAddrPort(t.words.Load().answer(q).Append(nil), from)
			}
			continue
		}
		if a, err := protocol.ParseServiceAnswer(b[:n]); err == nil {
			select {
			case t.answers <- heard{node, time.Now(), a}:
			default: // the loop is late; what it misses is asked again
			}
		}
	}
}
