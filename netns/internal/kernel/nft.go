package kernel

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// NfgenmsgSize is that of the header behind netlink's own.
const NfgenmsgSize = 4

// AskNft sends one question about inet, and returns the answers behind their nfgenmsg.
func AskNft(typ, flags int, attrs ...*nl.RtAttr) ([][]byte, error) {
	return Retry(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_INET, Version: nl.NFNETLINK_V0})
		for _, a := range attrs {
			req.AddData(a)
		}
		msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		if err != nil {
			return nil, err
		}
		for i, m := range msgs {
			if len(m) < NfgenmsgSize {
				return nil, errors.New("an answer that is too short")
			}
			msgs[i] = m[NfgenmsgSize:]
		}
		return msgs, nil
	})
}

// NftGeneration is a number that changes with each transaction of nftables, whoever makes it; false: not known.
func NftGeneration() (uint32, bool) {
	msgs, err := AskNft(unix.NFT_MSG_GETGEN, 0)
	if err != nil || len(msgs) == 0 {
		return 0, false
	}
	for typ, v := range NftAttrs(msgs[0]) {
		if typ == unix.NFTA_GEN_ID && len(v) == 4 {
			return binary.BigEndian.Uint32(v), true
		}
	}
	return 0, false
}

// NftAttrs goes through attributes, without the flags in their types. What does not read ends it.
func NftAttrs(b []byte) func(yield func(int, []byte) bool) {
	return func(yield func(int, []byte) bool) {
		attrs, err := nl.ParseRouteAttr(b)
		if err != nil {
			return
		}
		for _, a := range attrs {
			if !yield(int(a.Attr.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)), a.Value) {
				return
			}
		}
	}
}

// DeleteTable deletes a table of inet. Its base chains go before all else, in a transaction of their own: of what goes with them
// sets lose their elements first, and a packet that is in a chain meanwhile would be judged by what is left.
func DeleteTable(name string) error {
	return Own(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
		if err := unhook(c, table); err != nil {
			return err
		}
		c.DelTable(table)
		return c.Flush()
	})
}

// unhook deletes a table's base chains, and waits until no packet is in them.
func unhook(c *nftables.Conn, table *nftables.Table) error {
	msgs, err := AskNft(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, nl.NewRtAttr(unix.NFTA_CHAIN_TABLE, nl.ZeroTerminated(table.Name)))
	if err != nil {
		return err
	}
	n := 0
	for _, m := range msgs {
		of, chain, base := "", "", false
		for typ, v := range NftAttrs(m) {
			switch typ {
			case unix.NFTA_CHAIN_TABLE:
				of = unix.ByteSliceToString(v)
			case unix.NFTA_CHAIN_NAME:
				chain = unix.ByteSliceToString(v)
			case unix.NFTA_CHAIN_HOOK:
				base = true
			}
		}
		if of == table.Name && base {
			x := &nftables.Chain{Table: table, Name: chain}
			c.FlushChain(x)
			c.DelChain(x)
			n++
		}
	}
	if n == 0 {
		return nil
	}
	if err := c.Flush(); err != nil {
		return err
	}
	// Where the kernel cannot wait, the next transaction takes longer than any packet.
	PacketsPassed()
	return nil
}

// PacketsPassed waits until each packet that is in a chain now has left it: for a grace period of RCU, 10 ms at rest, and many times that
// where processors are busy. A kernel that cannot (with nohz_full) does not wait.
func PacketsPassed() {
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
}

// membarrierGlobal waits for a grace period of RCU, under which packets pass chains (MEMBARRIER_CMD_GLOBAL).
const membarrierGlobal = 1

// CloseLater closes a socket of netfilter without having anybody wait. After a transaction that took something away the kernel holds up who
// closes one, and with him each next transaction, until it has freed that: for a grace period.
func CloseLater(s func() error) {
	go func() {
		PacketsPassed()
		_ = s()
	}()
}

// NftHandles tells an inet table's chains, rules and sets from others: each has a number that no other gets. It is empty without the
// table. A chain that was changed has another policy or place.
func NftHandles(table string) (string, error) {
	name := func(typ int) *nl.RtAttr { return nl.NewRtAttr(typ, nl.ZeroTerminated(table)) }
	own, err := AskNft(unix.NFT_MSG_GETTABLE, 0, name(unix.NFTA_TABLE_NAME))
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look for the table: %w", err)
	}
	var b strings.Builder
	write := func(what string, msgs [][]byte, of int, attrs ...int) {
		for _, m := range msgs {
			text, ours := what, of == 0
			for a, v := range NftAttrs(m) {
				ours = ours || a == of && unix.ByteSliceToString(v) == table
				if slices.Contains(attrs, a) {
					text += fmt.Sprintf(" %d:%x", a, v)
				}
			}
			if ours {
				b.WriteString(text + "\n")
			}
		}
	}
	write("table", own, 0, unix.NFTA_TABLE_FLAGS, tableHandle)
	for _, x := range []struct {
		what    string
		ask, of int
		attrs   []int
	}{
		{"chain", unix.NFT_MSG_GETCHAIN, unix.NFTA_CHAIN_TABLE, []int{unix.NFTA_CHAIN_HANDLE, unix.NFTA_CHAIN_NAME, unix.NFTA_CHAIN_HOOK, unix.NFTA_CHAIN_POLICY}},
		{"rule", unix.NFT_MSG_GETRULE, unix.NFTA_RULE_TABLE, []int{unix.NFTA_RULE_CHAIN, unix.NFTA_RULE_HANDLE}},
		{"set", unix.NFT_MSG_GETSET, unix.NFTA_SET_TABLE, []int{unix.NFTA_SET_NAME, setHandle}},
	} {
		msgs, err := AskNft(x.ask, unix.NLM_F_DUMP, name(x.of))
		if err != nil {
			return "", fmt.Errorf("list each %s of the table: %w", x.what, err)
		}
		write(x.what, msgs, x.of, x.attrs...)
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(b.String()))), nil
}

// Attributes of linux/netfilter/nf_tables.h.
const (
	tableHandle = 4  // NFTA_TABLE_HANDLE
	setHandle   = 16 // NFTA_SET_HANDLE
)
