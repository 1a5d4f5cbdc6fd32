package netns

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
)

// Questions to nf_tables that are asked too often for a run of the program nft, which reads all
// sets of the host first (linux/netfilter/nf_tables.h).
const (
	nftMsgGetTable = 1
	nftMsgGetRule  = 7
	nftMsgGetGen   = 16

	nftaTableName    = 1
	nftaGenID        = 1 // be32
	nftaRuleTable    = 1
	nftaRuleChain    = 2
	nftaRuleExprs    = 4
	nftaListElem     = 1
	nftaExprName     = 1
	nftaExprData     = 2
	nftaCounterCount = 2 // packets, be64

	nfprotoInet = 1
)

// askNft sends one question about inet, and returns the answers behind their nfgenmsg.
func askNft(typ, flags int, attrs ...*nl.RtAttr) ([][]byte, error) {
	return kernel.Retry(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(nfSubsysNftables<<8|typ, flags)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: nfprotoInet, Version: nl.NFNETLINK_V0})
		for _, a := range attrs {
			req.AddData(a)
		}
		msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		if err != nil {
			return nil, err
		}
		for i, m := range msgs {
			if len(m) < nfgenmsgSize {
				return nil, errors.New("an answer that is too short")
			}
			msgs[i] = m[nfgenmsgSize:]
		}
		return msgs, nil
	})
}

// nftGeneration is a number that changes with each transaction of nftables, whoever makes it; false: not known.
func nftGeneration() (uint32, bool) {
	msgs, err := askNft(nftMsgGetGen, 0)
	if err != nil || len(msgs) == 0 {
		return 0, false
	}
	for typ, v := range nftAttrs(msgs[0]) {
		if typ == nftaGenID && len(v) == 4 {
			return binary.BigEndian.Uint32(v), true
		}
	}
	return 0, false
}

// hasNftTable reports whether our table is there.
func hasNftTable() (bool, error) {
	_, err := askNft(nftMsgGetTable, 0, nl.NewRtAttr(nftaTableName, nl.ZeroTerminated(NftTable)))
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for nftables table %s: %w", NftTable, err)
	}
	return true, nil
}

// nftCounted adds up what the counters of each chain of our table have counted, in packets.
// Chains without a counter are left out.
func nftCounted() (map[string]uint64, error) {
	if there, err := hasNftTable(); err != nil || !there {
		return nil, errors.Join(err, fmt.Errorf("nftables table %s: not there", NftTable))
	}
	msgs, err := askNft(nftMsgGetRule, unix.NLM_F_DUMP, nl.NewRtAttr(nftaRuleTable, nl.ZeroTerminated(NftTable)))
	if err != nil {
		return nil, fmt.Errorf("list rules of nftables table %s: %w", NftTable, err)
	}
	out := map[string]uint64{}
	for _, m := range msgs {
		table, chain, packets, counts := "", "", uint64(0), false
		for typ, v := range nftAttrs(m) {
			switch typ {
			case nftaRuleTable:
				table = unix.ByteSliceToString(v)
			case nftaRuleChain:
				chain = unix.ByteSliceToString(v)
			case nftaRuleExprs:
				packets, counts = counterOf(v)
			}
		}
		if table == NftTable && counts {
			out[chain] += packets
		}
	}
	return out, nil
}

// counterOf is what the counters among a rule's expressions have counted.
func counterOf(exprs []byte) (packets uint64, counts bool) {
	for typ, e := range nftAttrs(exprs) {
		if typ != nftaListElem {
			continue
		}
		name, data := "", []byte(nil)
		for typ, v := range nftAttrs(e) {
			switch typ {
			case nftaExprName:
				name = unix.ByteSliceToString(v)
			case nftaExprData:
				data = v
			}
		}
		if name != "counter" {
			continue
		}
		for typ, v := range nftAttrs(data) {
			if typ == nftaCounterCount && len(v) == 8 {
				packets, counts = packets+binary.BigEndian.Uint64(v), true
			}
		}
	}
	return packets, counts
}

// nftAttrs goes through attributes, without the flags in their types. What does not read ends it.
func nftAttrs(b []byte) func(yield func(int, []byte) bool) {
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
