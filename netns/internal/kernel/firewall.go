package kernel

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// IPTables lists the iptables programs whose table, such as filter, is in use in this
// namespace. The legacy ones are asked only if the kernel has a table of
// theirs here already: to ask makes one.
func IPTables(ctx context.Context, table string) (out []string) {
	for _, v := range []struct{ family, nft, legacy, names string }{
		{"ip", "iptables-nft", "iptables-legacy", "/proc/thread-self/net/ip_tables_names"},
		{"ip6", "ip6tables-nft", "ip6tables-legacy", "/proc/thread-self/net/ip6_tables_names"},
	} {
		if b, err := os.ReadFile(v.names); err == nil && slices.Contains(strings.Fields(string(b)), table) {
			if _, err := LookPath(v.legacy); err == nil {
				out = append(out, v.legacy)
			}
		}
		if _, err := Run(ctx, "", "nft", "list", "table", v.family, table); err == nil {
			if _, err := LookPath(v.nft); err == nil {
				out = append(out, v.nft)
			}
		}
	}
	return out
}

// RawChain is the chain of table raw that Docker appends its drops to.
const RawChain = "PREROUTING"

// RawRules are the lines of 'iptables -S PREROUTING' of table raw, nil if there is no such table.
func RawRules(ctx context.Context, prog string) []string {
	out, err := Run(ctx, "", prog, "-w", "5", "-t", "raw", "-S", RawChain)
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(out), "\n")
}

// NftFamily is what nft calls the family of an address.
func NftFamily(a netip.Addr) string {
	if a.Is6() {
		return "ip6"
	}
	return "ip"
}
