package nf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
)

// genOf reads a generation and the process that made it.
func genOf(b []byte) (id, pid uint32) {
	for typ, v := range kernel.NftAttrs(b) {
		switch {
		case typ == unix.NFTA_GEN_ID && len(v) == 4:
			id = binary.BigEndian.Uint32(v)
		case typ == unix.NFTA_GEN_PROC_PID && len(v) == 4:
			pid = binary.BigEndian.Uint32(v)
		}
	}
	return id, pid
}

// Standing is what is known of a table that was written: whether others touched it since. Its methods may be called concurrently.
type Standing struct {
	table  string
	Listen func() (*netlink.Conn, error) // to nftables, in the namespace of the calling thread

	mu      sync.Mutex
	ours    []commits
	since   uint32 // the generation from which on a touch counts: what is older was written over
	handles string // of chains, rules and sets, after the last write
	doubt   bool   // others touched it, or may have
}

// commits are generations that we made one after the other.
type commits struct {
	first, last uint32
	among       bool // others made some of them at the same time: ours has our thread's number
}

// mostCommits are remembered until they are heard of. Where nobody listens they are of no use.
const mostCommits = 1024

// NewStanding knows of nothing that stands.
func NewStanding(table string) *Standing {
	s := &Standing{table: table}
	s.Listen = s.listen
	return s
}

// Commit sends a transaction, and knows it again when it is told of. whole: it replaces all that others may have done before.
func (s *Standing) Commit(b *Batch, whole bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var before, after uint32
	var known bool
	err := b.on(func(c *netlink.Conn) error {
		before, known = generation(c)
		if err := b.send(c); err != nil {
			return err
		}
		after, _ = generation(c)
		return nil
	})
	if err != nil {
		return err
	}
	if whole {
		s.doubt, s.since = !known, before+1
	}
	c := commits{before + 1, after, after != before+1}
	if n := len(s.ours); n > 0 && !c.among && !s.ours[n-1].among && s.ours[n-1].last+1 == c.first {
		s.ours[n-1].last = c.last
		return nil
	}
	if s.ours = append(s.ours, c); len(s.ours) > mostCommits {
		s.ours = s.ours[1:]
	}
	return nil
}

// Written notes what stands after a write.
func (s *Standing) Written() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	s.handles, err = kernel.NftHandles(s.table)
	return err
}

// Doubt reports whether others touched the table, or may have.
func (s *Standing) Doubt() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.doubt
}

// Differs is Doubt, and looks whether the table's chains, rules and sets are those that were written. It changes nothing.
func (s *Standing) Differs() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := kernel.NftHandles(s.table)
	if err != nil {
		return false, err
	}
	s.doubt = s.doubt || now != s.handles
	return s.doubt, nil
}

// Watch tells when others touched the table, or may have: Doubt and Differs then say so. Changes are gathered while nobody
// receives; the channel is closed when ctx ends. Where the listening breaks it begins again, and what was missed
// counts as touched.
func (s *Standing) Watch(ctx context.Context) (<-chan struct{}, error) {
	c, err := s.Listen()
	if err != nil {
		return nil, err
	}
	out := make(chan struct{}, 1)
	go func() {
		defer close(out)
		for pause := leastPause; ; {
			began := time.Now()
			s.hear(ctx, c, out)
			if time.Since(began) > mostPause {
				pause = leastPause
			}
			for c = nil; c == nil; pause = min(2*pause, mostPause) {
				select {
				case <-ctx.Done():
					return
				case <-time.After(pause):
				}
				c, _ = s.Listen()
			}
			s.suspect(out) // what was done meanwhile
		}
	}()
	return out, nil
}

// How long it is until listening that broke begins again.
const (
	leastPause = 100 * time.Millisecond
	mostPause  = 30 * time.Second
)

// listen opens a socket that hears of each transaction, in the network namespace of the calling thread.
func (s *Standing) listen() (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("watch nftables table %s: %w", s.table, err)
	}
	if err := errors.Join(c.SetReadBuffer(Buffer), c.JoinGroup(unix.NFNLGRP_NFTABLES)); err != nil {
		c.Close()
		return nil, fmt.Errorf("watch nftables table %s: %w", s.table, err)
	}
	return c, nil
}

// hear takes what is told until ctx ends or an error does, and closes c.
func (s *Standing) hear(ctx context.Context, c *netlink.Conn, out chan<- struct{}) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	touched := false
	for {
		msgs, err := c.Receive()
		if ctx.Err() != nil {
			return
		}
		told := err != nil // some were lost
		for _, m := range msgs {
			told = s.event(m, &touched) || told
		}
		if told {
			s.suspect(out)
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
	}
}

// suspect notes that others may have touched the table.
func (s *Standing) suspect(out chan<- struct{}) {
	s.mu.Lock()
	s.doubt = true
	s.mu.Unlock()
	select {
	case out <- struct{}{}:
	default:
	}
}

// event takes one notification: the end of a transaction names who made it.
func (s *Standing) event(m netlink.Message, touched *bool) bool {
	if uint16(m.Header.Type)>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < 4 {
		return false
	}
	if uint16(m.Header.Type)&0xff != unix.NFT_MSG_NEWGEN {
		*touched = *touched || s.concerns(m.Data[4:])
		return false
	}
	if !*touched {
		return false
	}
	*touched = false
	id, pid := genOf(m.Data[4:])
	s.mu.Lock() // so that a commit of ours is noted
	defer s.mu.Unlock()
	for len(s.ours) > 0 && s.ours[0].last < id {
		s.ours = s.ours[1:]
	}
	if len(s.ours) > 0 && s.ours[0].first <= id && (!s.ours[0].among || kernel.Ran(pid)) {
		return false
	}
	return id >= s.since
}

// concerns reports whether a notification is of our table, whose name is attribute 1 of all: the first one, by which
// most are told without reading the rest.
func (s *Standing) concerns(b []byte) bool {
	if len(b) >= 4 && binary.NativeEndian.Uint16(b[2:])&0x3fff == 1 {
		n := int(binary.NativeEndian.Uint16(b))
		return n >= 4 && n <= len(b) && unix.ByteSliceToString(b[4:n]) == s.table
	}
	for typ, v := range kernel.NftAttrs(b) {
		if typ == 1 {
			return unix.ByteSliceToString(v) == s.table
		}
	}
	return true // it may be
}
