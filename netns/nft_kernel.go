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

	nftaTableName    = 1
	nftaRuleTable    = 1
	nftaRuleChain    = 2
	nftaRuleExprs    = 4
	nftaListElem     = 1
	nftaExprName     = 1
	nftaExprData     = 2
	nftaCounterCount = 2 // packets, be64

)

// hasNftTable reports whether our table is there.
func hasNftTable() (bool, error) {
	_, err := kernel.AskNft(nftMsgGetTable, 0, nl.NewRtAttr(nftaTableName, nl.ZeroTerminated(NftTable)))
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
	msgs, err := kernel.AskNft(nftMsgGetRule, unix.NLM_F_DUMP, nl.NewRtAttr(nftaRuleTable, nl.ZeroTerminated(NftTable)))
	if err != nil {
		return nil, fmt.Errorf("list rules of nftables table %s: %w", NftTable, err)
	}
	out := map[string]uint64{}
	for _, m := range msgs {
		table, chain, packets, counts := "", "", uint64(0), false
		for typ, v := range kernel.NftAttrs(m) {
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
	for typ, e := range kernel.NftAttrs(exprs) {
		if typ != nftaListElem {
			continue
		}
		name, data := "", []byte(nil)
		for typ, v := range kernel.NftAttrs(e) {
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
		for typ, v := range kernel.NftAttrs(data) {
			if typ == nftaCounterCount && len(v) == 8 {
				packets, counts = packets+binary.BigEndian.Uint64(v), true
			}
		}
	}
	return packets, counts
}
