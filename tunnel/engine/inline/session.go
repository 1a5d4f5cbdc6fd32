package inline

import (
	"crypto/cipher"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/replay"
)

// session is one pair of transport keys. All but the counters never changes.
type session struct {
	peer      *peer
	entry     *entry // our index
	remote    uint32 // the peer's index
	initiator bool
	created   instant
	send      cipher.AEAD
	receive   cipher.AEAD

	_    [64]byte      // the counter is written by tx alone, what follows by rx
	next atomic.Uint64 // counter of the next message that is sent
	_    [56]byte

	mu     sync.Mutex // several readers may see one session
	filter replay.Filter
}

func newSession(e *entry, k *sessionKeys, now instant) *session {
	s := &session{peer: e.peer, entry: e, remote: k.remote, initiator: k.initiator, created: now}
	s.send, _ = chacha20poly1305.New(k.send[:])
	s.receive, _ = chacha20poly1305.New(k.receive[:])
	k.erase()
	runtime.AddCleanup(s, eraseAEADs, [2]cipher.AEAD{s.send, s.receive})
	return s
}

// eraseAEADs overwrites keys once nobody can use them any more. Wiping earlier
// would be worse than not wiping: a packet that is just being sealed would
// leave under a key of zeros.
func eraseAEADs(aeads [2]cipher.AEAD) {
	for _, a := range aeads {
		if k := aeadKey(a); k != nil {
			clear(k[:])
		}
	}
}

// aeadKey is the key inside x/crypto's ChaCha20-Poly1305, which has no call to
// erase it; nil if its shape is not the one known.
func aeadKey(a cipher.AEAD) *[chacha20poly1305.KeySize]byte {
	v := reflect.ValueOf(a)
	if v.Kind() != reflect.Pointer || v.Type().Elem().Kind() != reflect.Struct || v.Type().Elem().NumField() != 1 ||
		v.Type().Elem().Field(0).Type != reflect.TypeFor[[chacha20poly1305.KeySize]byte]() {
		return nil
	}
	return (*[chacha20poly1305.KeySize]byte)(unsafe.Pointer(v.Pointer()))
}

// reserve takes n counters, all or none. It fails at the limit: no counter is
// ever used twice or beyond it.
func (s *session) reserve(n int) (first uint64, ok bool) {
	for {
		c := s.next.Load()
		if c > rejectAfterMessages-uint64(n) {
			return 0, false
		}
		if s.next.CompareAndSwap(c, c+uint64(n)) {
			return c, true
		}
	}
}

// usable reports whether the session may still send.
func (s *session) usable(now instant) bool {
	return now-s.created < instant(rejectAfterTime) && s.next.Load() < rejectAfterMessages
}

// stale reports whether the sender should ask for a new session.
func (s *session) stale(now instant) bool {
	return (s.initiator && now-s.created >= instant(rekeyAfterTime)) || s.next.Load() >= rekeyAfterMessages
}

// accept checks counters of authenticated messages against the replay window
// and clears those that are refused from ok, a parallel slice.
func (s *session) accept(counters []uint64, ok []bool) {
	s.mu.Lock()
	for i, c := range counters {
		if ok[i] {
			ok[i] = s.filter.ValidateCounter(c, rejectAfterMessages)
		}
	}
	s.mu.Unlock()
}

// begin takes a new session into use. The initiator's is current at once, the
// responder's waits as next until the peer proves by a message that it has
// the keys. It returns sessions that are out of use.
func (p *peer) begin(s *session) (retired [2]*session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next, current, previous := p.next.Load(), p.current.Load(), p.previous
	if s.initiator {
		if next != nil { // the peer may have begun to use it already
			p.previous = next
			p.next.Store(nil)
			retired = [2]*session{current, previous}
		} else {
			p.previous = current
			retired[0] = previous
		}
		p.current.Store(s)
		return retired
	}
	p.next.Store(s)
	p.previous = nil
	return [2]*session{next, previous}
}

// confirm makes next current if it is s: the first authenticated message has
// come. The session that falls out is left for the control goroutine.
func (p *peer) confirm(s *session) bool {
	if p.next.Load() != s {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next.Load() != s {
		return false
	}
	if p.previous != nil {
		p.retired = append(p.retired, p.previous)
	}
	p.previous = p.current.Load()
	p.current.Store(s)
	p.next.Store(nil)
	return true
}

// takeRetired returns what confirm left.
func (p *peer) takeRetired() []*session {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.retired
	p.retired = nil
	return r
}

// forget returns all sessions and holds none.
func (p *peer) forget() []*session {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.retired
	for _, s := range []*session{p.current.Swap(nil), p.next.Swap(nil), p.previous} {
		if s != nil {
			r = append(r, s)
		}
	}
	p.previous, p.retired = nil, nil
	return r
}
