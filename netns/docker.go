package netns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// Docker from 28.2 on drops what is for a container and did not come by its bridge, before
// routing and before any accept of ours: with its iptables backend in PREROUTING of table
// raw, with its nftables backend in tables of its own, where no other's accept counts.
//
// Of the first the agent takes its own ranges out by an accept ahead, for what comes by the
// tunnel alone. The second lets through what its configuration names (protocol.DockerMend):
// packets with a mark, which get it in a table of ours while Docker asks for it.

// dockerMarks is the name of our table that marks what Docker shall let through.
const dockerMarks = PartPrefix + "docker"

// rawAccept is the rule that opens raw for one range.
func rawAccept(dev string, x netip.Prefix) []string {
	return []string{"-d", x.String(), "-i", dev, "-m", "comment", "--comment", ruleComment, "-j", "ACCEPT"}
}

// isRawAccept reports whether rule is one that rawAccept made for dev.
func isRawAccept(rule []string, dev string) bool {
	if len(rule) < 2 {
		return false
	}
	x, err := netip.ParsePrefix(rule[1])
	return err == nil && slices.Equal(rule, rawAccept(dev, x))
}

// dropsDirect is the container's address of a drop of Docker's, in iptables' words:
//
//	-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP
func dropsDirect(line string) (netip.Addr, bool) {
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "-A" || f[2] != "-d" || f[4] != "!" || f[5] != "-i" || f[len(f)-2] != "-j" || f[len(f)-1] != "DROP" {
		return netip.Addr{}, false
	}
	x, err := netip.ParsePrefix(f[3])
	return x.Addr(), err == nil && x.IsSingleIP()
}

// closedTo is the ranges of a family that drops of Docker's lie in, with no accept of ours ahead.
func closedTo(lines []string, dev string, local []netip.Prefix) (out []netip.Prefix) {
	for _, x := range local {
		first, accept := -1, -1
		want := "-A " + kernel.RawChain + " " + strings.Join(rawAccept(dev, x), " ")
		for i, l := range lines {
			if a, ok := dropsDirect(l); ok && x.Contains(a) && first < 0 {
				first = i
			}
			if l == want && accept < 0 {
				accept = i
			}
		}
		if first >= 0 && (accept < 0 || accept > first) {
			out = append(out, x)
		}
	}
	return out
}

// openRaw puts an accept for each of the plan's own ranges ahead of Docker's drops in it,
// and takes those back that the plan has no more.
func (h *Host) openRaw(ctx context.Context, rec *record, p Plan) (opened bool, err error) {
	stale := slices.ContainsFunc(rec.Raw, func(f savedFirewall) bool { return !f.wanted(p) })
	if stale {
		if err := h.closeRaw(ctx, rec, func(f savedFirewall) bool { return f.wanted(p) }); err != nil {
			return opened, err
		}
	}
	for _, prog := range kernel.IPTables(ctx, "raw") {
		var local []netip.Prefix
		for _, x := range p.Local {
			if x.Addr().Is6() == strings.HasPrefix(prog, "ip6") {
				local = append(local, x)
			}
		}
		for _, x := range closedTo(kernel.RawRules(ctx, prog), p.Interface, local) {
			f := savedFirewall{Program: prog, Table: "raw", Chain: kernel.RawChain, Rule: rawAccept(p.Interface, x)}
			if !slices.ContainsFunc(rec.Raw, f.equal) {
				rec.Raw = append(rec.Raw, f)
				if err := h.writeRecord(rec); err != nil {
					return opened, err
				}
			}
			if err := f.remove(ctx); err != nil { // one that is behind a drop
				return opened, err
			}
			if _, err := kernel.Run(ctx, "", prog, f.args("-I")...); err != nil {
				return opened, fmt.Errorf("open table raw for %s: %w", p.Interface, err)
			}
			opened = true
			h.log.Info().Str("iface", p.Interface).Stringer("prefix", x).Msg("let what comes by the tunnel pass Docker's drop of what is for its containers")
		}
	}
	return opened, nil
}

// wanted reports whether the rule is for the plan's interface and a range of its own.
func (f savedFirewall) wanted(p Plan) bool {
	return slices.ContainsFunc(p.Local, func(x netip.Prefix) bool { return slices.Equal(f.Rule, rawAccept(p.Interface, x)) })
}

// closeRaw takes back what openRaw put in, but for what is to be kept.
func (h *Host) closeRaw(ctx context.Context, rec *record, keep func(savedFirewall) bool) error {
	for _, f := range rec.Raw {
		if keep(f) {
			continue
		}
		if err := f.remove(ctx); err != nil {
			return err
		}
	}
	left := slices.DeleteFunc(slices.Clone(rec.Raw), func(f savedFirewall) bool { return !keep(f) })
	if len(left) == len(rec.Raw) {
		return nil
	}
	rec.Raw = left
	return h.writeRecord(rec)
}

// foundRaw are rules of ours in table raw, whoever remembers them.
func foundRaw(ctx context.Context, dev string) (out []savedFirewall) {
	for _, prog := range kernel.IPTables(ctx, "raw") {
		for _, l := range kernel.RawRules(ctx, prog) {
			rule, ok := strings.CutPrefix(l, "-A "+kernel.RawChain+" ")
			if f := strings.Fields(rule); ok && isRawAccept(f, dev) {
				out = append(out, savedFirewall{Program: prog, Table: "raw", Chain: kernel.RawChain, Rule: f})
			}
		}
	}
	return out
}

// markForDocker keeps the table that marks what comes by the tunnel for ranges of this
// node's, while Docker's own tables let that mark through.
func (h *Host) markForDocker(ctx context.Context, p Plan) (changed bool, err error) {
	var b strings.Builder
	for _, family := range []string{"ip", "ip6"} {
		s, err := kernel.Run(ctx, "", "nft", "list", "table", family, protocol.DockerTable)
		if err != nil || !strings.Contains(s, fmt.Sprintf("meta mark & 0x%08x == 0x%08x", protocol.DockerMark, protocol.DockerMark)) {
			continue
		}
		for _, x := range p.Local {
			if kernel.NftFamily(x.Addr()) == family {
				fmt.Fprintf(&b, "add rule inet %s come iifname %q %s daddr %s meta mark set meta mark | 0x%08x\n", dockerMarks, p.Interface, family, nftPrefix(x), protocol.DockerMark)
			}
		}
	}
	there := true
	if _, err := kernel.Run(ctx, "", "nft", "list", "table", "inet", dockerMarks); err != nil {
		there = false
	}
	switch {
	case b.Len() == 0 && !there, there && b.String() == h.marks:
		return false, nil
	case b.Len() == 0:
		return true, removeMarks(ctx)
	}
	text := fmt.Sprintf("add table inet %s\ndelete table inet %s\nadd table inet %s\nadd chain inet %s come { type filter hook prerouting priority -149; policy accept; }\n%s",
		dockerMarks, dockerMarks, dockerMarks, dockerMarks, b.String())
	if _, err := kernel.Run(ctx, text, "nft", "-f", "-"); err != nil {
		return false, fmt.Errorf("set nftables table %s: %w", dockerMarks, err)
	}
	h.marks = b.String()
	return true, nil
}

// removeMarks deletes the table of markForDocker.
func removeMarks(ctx context.Context) error {
	_, err := kernel.Run(ctx, fmt.Sprintf("add table inet %s\ndelete table inet %s\n", dockerMarks, dockerMarks), "nft", "-f", "-")
	if err != nil {
		return fmt.Errorf("delete nftables table %s: %w", dockerMarks, err)
	}
	return nil
}
