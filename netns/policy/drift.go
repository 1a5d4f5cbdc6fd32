package policy

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ask puts one question to nf_tables, and returns the answers behind their nfgenmsg.
func ask(typ uint16, dump bool, attrs ...netlink.Attribute) ([][]byte, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return nil, err
	}
	flags := netlink.Request
	if dump {
		flags |= netlink.Dump
	}
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | typ), Flags: flags},
		Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, data...),
	})
	if err != nil {
		return nil, err
	}
	out := make([][]byte, 0, len(msgs))
	for _, m := range msgs {
		if len(m.Data) >= 4 {
			out = append(out, m.Data[4:])
		}
	}
	return out, nil
}

// generation is the number of the kernel's last transaction of nftables, whoever made it.
func generation() (uint32, error) {
	msgs, err := ask(unix.NFT_MSG_GETGEN, false)
	if err != nil {
		return 0, fmt.Errorf("generation of nftables: %w", err)
	}
	for _, m := range msgs {
		id, _ := genOf(m)
		return id, nil
	}
	return 0, errors.New("generation of nftables: no answer")
}

// genOf reads a generation and the process that made it.
func genOf(b []byte) (id, pid uint32) {
	attrs, _ := netlink.UnmarshalAttributes(b)
	for _, a := range attrs {
		switch {
		case a.Type == unix.NFTA_GEN_ID && len(a.Data) == 4:
			id = binary.BigEndian.Uint32(a.Data)
		case a.Type == unix.NFTA_GEN_PROC_PID && len(a.Data) == 4:
			pid = binary.BigEndian.Uint32(a.Data)
		}
	}
	return id, pid
}

// shape tells a table from another by its chains, rules and sets, of which each has a number
// that is never used again. What is in the sets is not read.
func shape() (string, error) {
	h := sha256.New()
	name := netlink.Attribute{Type: 1, Data: []byte(TableName + "\x00")} // NFTA_{CHAIN,RULE,SET}_TABLE
	for _, d := range []struct {
		typ  uint16
		keep []uint16
	}{
		{unix.NFT_MSG_GETRULE, []uint16{unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN, unix.NFTA_RULE_HANDLE}},
		{unix.NFT_MSG_GETCHAIN, []uint16{unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_HANDLE, unix.NFTA_CHAIN_NAME, unix.NFTA_CHAIN_HOOK, unix.NFTA_CHAIN_POLICY}},
		{unix.NFT_MSG_GETSET, []uint16{unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, nftaSetHandle}},
	} {
		if err := hashDump(h.Write, d.typ, name, d.keep); err != nil {
			return "", err
		}
	}
	return string(h.Sum(nil)), nil
}

const nftaSetHandle = 16 // NFTA_SET_HANDLE

// hashDump hashes some attributes of what is listed of our table.
func hashDump(write func([]byte) (int, error), typ uint16, name netlink.Attribute, keep []uint16) error {
	msgs, err := ask(typ, true, name)
	if errors.Is(err, unix.ENOENT) {
		return nil // no table: nothing is of it
	}
	if err != nil {
		return fmt.Errorf("look at nftables table %s: %w", TableName, err)
	}
	for _, m := range msgs {
		attrs, err := netlink.UnmarshalAttributes(m)
		if err != nil {
			return fmt.Errorf("look at nftables table %s: %w", TableName, err)
		}
		ours := false
		for _, a := range attrs {
			ours = ours || a.Type&^netlink.Nested == 1 && string(a.Data) == TableName+"\x00"
		}
		if !ours { // older kernels list all tables
			continue
		}
		for _, k := range keep {
			for _, a := range attrs {
				if a.Type&^netlink.Nested == k {
					write(binary.BigEndian.AppendUint16(nil, k))
					write(a.Data)
				}
			}
		}
	}
	return nil
}

// Watch tells when others touched the table, or may have: Mend then. Changes are gathered while
// nobody receives; the channel is closed when ctx ends.
func (t *Table) Watch(ctx context.Context) (<-chan struct{}, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("watch nftables table %s: %w", TableName, err)
	}
	err = errors.Join(c.SetReadBuffer(sendBuffer), c.JoinGroup(unix.NFNLGRP_NFTABLES))
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("watch nftables table %s: %w", TableName, err)
	}
	out := make(chan struct{}, 1)
	context.AfterFunc(ctx, func() { c.Close() })
	go func() {
		defer close(out)
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
			if !told {
				continue
			}
			t.mu.Lock()
			t.doubt = true
			t.mu.Unlock()
			select {
			case out <- struct{}{}:
			default:
			}
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
		}
	}()
	return out, nil
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

// concerns reports whether a notification is of our table: its name is attribute 1 of all.
func concerns(b []byte) bool {
	if len(b) < 4 || binary.NativeEndian.Uint16(b[2:])&0x3fff != 1 {
		attrs, err := netlink.UnmarshalAttributes(b)
		for _, a := range attrs {
			if a.Type&^netlink.Nested == 1 {
				return string(a.Data) == TableName+"\x00"
			}
		}
		return err != nil
	}
	n := int(binary.NativeEndian.Uint16(b))
	return n >= 4 && n <= len(b) && string(b[4:n]) == TableName+"\x00"
}

// Differs reports whether the table is not as it was written, or may not be: where Watch saw others touch it, or its
// shape is another. It changes nothing. The next Set writes all then.
func (t *Table) Differs() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.have == nil {
		return true, nil
	}
	now, err := shape()
	if err != nil {
		return false, err
	}
	t.doubt = t.doubt || now != t.shape
	return t.doubt, nil
}

// Mend writes the whole table again where it is not as it was written: where Watch saw others
// touch it, or its shape is another. It reads none of its elements. It reports whether it wrote.
func (t *Table) Mend() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.have == nil {
		return false, nil
	}
	now, err := shape()
	if err != nil {
		return false, err
	}
	if now == t.shape && !t.doubt {
		return false, nil
	}
	t.doubt = true
	h := t.have
	if err := t.set(h.config, h.content); err != nil {
		t.have, t.doubt = h, true // tried again
		return false, err
	}
	return true, nil
}
