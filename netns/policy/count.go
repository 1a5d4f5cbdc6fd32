package policy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
)

// Count is what a counter has counted.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Counts are packets since a rule, or the table, was last made. What goes into the tunnel and belongs to no flow that is
// established is judged where it is answered and once more at the end, so it counts twice.
type Counts struct {
	Rules     map[string]Count // accepted, by the rule's name
	Refused   Count            // and answered
	Dropped   Count            // without an answer: what only source NAT showed to be closed
	Untracked Count            // judged by their headers alone, for something has conntrack leave them alone
	Invalid   Count            // the same of what conntrack could make nothing of
}

// Attributes that unix lacks (linux/netfilter/nf_tables.h).
const (
	nftaCounterBytes   = 1
	nftaCounterPackets = 2
)

// Counted reads the counters by one list of the rules; elements of sets are not listed. Without a table it is
// an error that wraps unix.ENOENT.
func Counted() (Counts, error) {
	out := Counts{Rules: map[string]Count{}}
	msgs, err := kernel.AskNft(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(TableName)))
	if err == nil && len(msgs) == 0 {
		err = unix.ENOENT
	}
	if err != nil {
		return out, fmt.Errorf("read the counters of nftables table %s: %w", TableName, err)
	}
	ours := false
	for _, m := range msgs {
		var table, chain string
		var exprs []byte
		for typ, b := range kernel.Attributes(m) {
			switch typ {
			case unix.NFTA_RULE_TABLE:
				table = strings.TrimSuffix(string(b), "\x00")
			case unix.NFTA_RULE_CHAIN:
				chain = strings.TrimSuffix(string(b), "\x00")
			case unix.NFTA_RULE_EXPRESSIONS:
				exprs = b
			}
		}
		if table == TableName { // older kernels list all tables
			ours = true
			out.take(chain, exprs)
		}
	}
	if !ours {
		return out, fmt.Errorf("read the counters of nftables table %s: %w", TableName, unix.ENOENT)
	}
	return out, nil
}

// NoTable reports whether an error of Counted says that there is no table.
func NoTable(err error) bool { return errors.Is(err, unix.ENOENT) }

// take adds what the counters in a rule have counted.
func (c *Counts) take(chain string, exprs []byte) {
	rule, allowed := strings.CutPrefix(chain, chainAllow)
	to := map[string]*Count{chainRefuse: &c.Refused, chainLast: &c.Dropped, chainUntrackedIn: &c.Invalid, chainUntrackedOut: &c.Invalid}[chain]
	if !allowed && to == nil {
		return
	}
	n, found, asks := Count{}, false, false
	for _, e := range kernel.Attributes(exprs) {
		name, data := "", []byte(nil)
		for typ, b := range kernel.Attributes(e) {
			switch typ {
			case unix.NFTA_EXPR_NAME:
				name = strings.TrimSuffix(string(b), "\x00")
			case unix.NFTA_EXPR_DATA:
				data = b
			}
		}
		asks = asks || name == "ct"
		if name != "counter" {
			continue
		}
		found = true
		for typ, b := range kernel.Attributes(data) {
			switch {
			case len(b) != 8:
			case typ == nftaCounterBytes:
				n.Bytes += binary.BigEndian.Uint64(b)
			case typ == nftaCounterPackets:
				n.Packets += binary.BigEndian.Uint64(b)
			}
		}
	}
	switch {
	case !found:
	case allowed:
		c.Rules[rule] = n
	case to == &c.Invalid && asks: // of all that is judged so, what is not tracked
		c.Untracked.add(n)
		c.Invalid.Packets -= min(n.Packets, c.Invalid.Packets) // the two are not read at once
		c.Invalid.Bytes -= min(n.Bytes, c.Invalid.Bytes)
	default:
		to.add(n)
	}
}

func (c *Count) add(n Count) { c.Packets, c.Bytes = c.Packets+n.Packets, c.Bytes+n.Bytes }
