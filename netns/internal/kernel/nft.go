package kernel

import (
	"encoding/binary"
	"errors"

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

// DeleteTable deletes a table of inet.
func DeleteTable(name string) error {
	return Own(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
		return c.Flush()
	})
}
