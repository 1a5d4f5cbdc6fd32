package inline

import (
	"crypto/rand"
	"encoding/binary"
	"sync/atomic"
)

// entry is what one of our indices stands for: a handshake of a peer, then
// the session that came of it.
type entry struct {
	index   uint32
	peer    *peer
	session atomic.Pointer[session]
}

// indexTable finds an entry by the index that a message names. Readers take no
// lock; add and remove are serialised by the caller. An index is random, its
// low bits are its slot: the table is kept half empty and an index is drawn
// until its slot is free.
type indexTable struct {
	slots atomic.Pointer[[]atomic.Pointer[entry]]
	used  int
}

const minSlots = 64

func newIndexTable() *indexTable {
	t := &indexTable{}
	s := make([]atomic.Pointer[entry], minSlots)
	t.slots.Store(&s)
	return t
}

// lookup returns nil for an index that is not in use.
func (t *indexTable) lookup(index uint32) *entry {
	s := *t.slots.Load()
	if e := s[index&uint32(len(s)-1)].Load(); e != nil && e.index == index {
		return e
	}
	return nil
}

// add makes an entry for p under a fresh index.
func (t *indexTable) add(p *peer) *entry {
	s := *t.slots.Load()
	if 2*(t.used+1) > len(s) {
		s = t.grow(s)
	}
	for {
		var b [4]byte
		rand.Read(b[:])
		i := binary.LittleEndian.Uint32(b[:])
		if slot := &s[i&uint32(len(s)-1)]; slot.Load() == nil {
			e := &entry{index: i, peer: p}
			slot.Store(e)
			t.used++
			return e
		}
	}
}

// grow doubles the table. Two entries of different slots stay apart.
func (t *indexTable) grow(old []atomic.Pointer[entry]) []atomic.Pointer[entry] {
	s := make([]atomic.Pointer[entry], 2*len(old))
	for i := range old {
		if e := old[i].Load(); e != nil {
			s[e.index&uint32(len(s)-1)].Store(e)
		}
	}
	t.slots.Store(&s)
	return s
}

// remove frees e's index. A nil or removed e is ignored.
func (t *indexTable) remove(e *entry) {
	if e == nil {
		return
	}
	s := *t.slots.Load()
	if s[e.index&uint32(len(s)-1)].CompareAndSwap(e, nil) {
		t.used--
	}
	e.session.Store(nil)
}
