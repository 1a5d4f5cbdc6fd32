package policy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
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

// Watch tells when others touched the table, or may have: Differs then says so. Changes are gathered while nobody
// receives; the channel is closed when ctx ends. Where the listening breaks it begins again, and what was missed
// counts as touched.
func (t *Table) Watch(ctx context.Context) (<-chan struct{}, error) {
	c, err := t.listen()
	if err != nil {
		return nil, err
	}
	out := make(chan struct{}, 1)
	go func() {
		defer close(out)
		for pause := leastPause; ; {
			began := time.Now()
			t.hear(ctx, c, out)
			if time.Since(began) > mostPause {
				pause = leastPause
			}
			for c = nil; c == nil; pause = min(2*pause, mostPause) {
				select {
				case <-ctx.Done():
					return
				case <-time.After(pause):
				}
				c, _ = t.listen()
			}
			t.suspect(out) // what was done meanwhile
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
func listen() (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("watch nftables table %s: %w", TableName, err)
	}
	if err := errors.Join(c.SetReadBuffer(sendBuffer), c.JoinGroup(unix.NFNLGRP_NFTABLES)); err != nil {
		c.Close()
		return nil, fmt.Errorf("watch nftables table %s: %w", TableName, err)
	}
	return c, nil
}

// hear takes what is told until ctx ends or an error does, and closes c.
func (t *Table) hear(ctx context.Context, c *netlink.Conn, out chan<- struct{}) {
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
			told = t.event(m, &touched) || told
		}
		if told {
			t.suspect(out)
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
	}
}

// suspect notes that others may have touched the table.
func (t *Table) suspect(out chan<- struct{}) {
	t.mu.Lock()
	t.doubt = true
	t.mu.Unlock()
	select {
	case out <- struct{}{}:
	default:
	}
}

// event takes one notification: the end of a transaction names who made it.
func (t *Table) event(m netlink.Message, touched *bool) bool {
	if uint16(m.Header.Type)>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < 4 {
		return false
	}
	if uint16(m.Header.Type)&0xff != unix.NFT_MSG_NEWGEN {
		*touched = *touched || concerns(m.Data[4:])
		return false
	}
	if !*touched {
		return false
	}
	*touched = false
	id, pid := genOf(m.Data[4:])
	t.mu.Lock() // so that a write of ours has noted its generation
	defer t.mu.Unlock()
	return (id < t.ours[0] || id > t.ours[1]) && pid != uint32(os.Getpid())
}

// concerns reports whether a notification is of our table, whose name is attribute 1 of all: the first one, by which
// most are told without reading the rest.
func concerns(b []byte) bool {
	if len(b) >= 4 && binary.NativeEndian.Uint16(b[2:])&0x3fff == 1 {
		n := int(binary.NativeEndian.Uint16(b))
		return n >= 4 && n <= len(b) && unix.ByteSliceToString(b[4:n]) == TableName
	}
	for typ, v := range kernel.NftAttrs(b) {
		if typ == 1 {
			return unix.ByteSliceToString(v) == TableName
		}
	}
	return true // it may be
}

// Differs reports whether the table is not as it was written, or may not be: where Watch saw others touch it, or its
// chains, rules or sets are others. It changes nothing. The next Set writes all then.
func (t *Table) Differs() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.have == nil {
		return true, nil
	}
	now, err := kernel.NftHandles(TableName)
	if err != nil {
		return false, err
	}
	t.doubt = t.doubt || now != t.handles
	return t.doubt, nil
}
