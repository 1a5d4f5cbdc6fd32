package nf

import (
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
)

// Counted is an element of a set that rules count in.
type Counted struct {
	Key     []byte
	Packets uint64
}

// ListCounted lists a set of Count, in the network namespace of the calling thread.
func ListCounted(table, set string) (out []Counted, err error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer kernel.CloseLater(c.Close)
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{text(unix.NFTA_SET_ELEM_LIST_TABLE, table), text(unix.NFTA_SET_ELEM_LIST_SET, set)})
	if err != nil {
		return nil, err
	}
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, attrs...),
	})
	if err != nil {
		return nil, fmt.Errorf("list set %s of nftables table %s: %w", set, table, err)
	}
	for _, m := range msgs {
		if len(m.Data) >= kernel.NfgenmsgSize {
			out = readCounted(out, m.Data[kernel.NfgenmsgSize:])
		}
	}
	return out, nil
}

// readCounted appends the elements of a message.
func readCounted(out []Counted, b []byte) []Counted {
	for typ, list := range kernel.NftAttrs(b) {
		if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		for _, elem := range kernel.NftAttrs(list) {
			var x Counted
			for typ, v := range kernel.NftAttrs(elem) {
				switch typ {
				case unix.NFTA_SET_ELEM_KEY:
					for typ, v := range kernel.NftAttrs(v) {
						if typ == unix.NFTA_DATA_VALUE {
							x.Key = v
						}
					}
				case unix.NFTA_SET_ELEM_EXPR:
					x.Packets = counter(v)
				}
			}
			if x.Key != nil {
				out = append(out, x)
			}
		}
	}
	return out
}

// counter reads the packets of an expression that counts.
func counter(b []byte) (n uint64) {
	for typ, v := range kernel.NftAttrs(b) {
		if typ != unix.NFTA_EXPR_DATA {
			continue
		}
		for typ, v := range kernel.NftAttrs(v) {
			if typ == unix.NFTA_COUNTER_PACKETS && len(v) == 8 {
				n = binary.BigEndian.Uint64(v)
			}
		}
	}
	return n
}
