package look

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"causeway/netns"
	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// ForwardBlockedBy is ForwardBlocked with the plan of the last Apply.
func (h *Host) ForwardBlockedBy(ctx context.Context) (string, error) {
	p := h.host.Last()
	return ForwardBlocked(ctx, cmp.Or(p.Interface, netns.DefaultInterface), p.Local)
}

// ours reports whether a table is the agent's, which is no firewall of others; to list that of services may take seconds.
func ours(family, table string) bool {
	return family == "inet" && (table == netns.NftTable || strings.HasPrefix(table, netns.PartPrefix))
}

// ForwardBlocked names the foreign firewall that drops forwarded traffic of
// interface dev, empty if none does as far as its rules can be read: a chain
// at the forward hook whose policy is drop, or which ends in a drop or reject,
// and which names our interface in no accept. Firewalld's zones are followed. After ": " come
// the commands that open it for what is behind this host, if it is known by which interfaces.
func ForwardBlocked(ctx context.Context, dev string, local []netip.Prefix) (string, error) {
	p := netns.Plan{Config: netns.Config{Interface: dev, Local: local}}
	behind := behind(p)
	s, err := kernel.Run(ctx, "", "nft", "-j", "list", "chains")
	if err != nil {
		return "", fmt.Errorf("list nftables chains: %w", err)
	}
	var list struct {
		Nftables []struct {
			Chain *nftChain `json:"chain"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(s), &list); err != nil {
		return "", fmt.Errorf("read nftables chains: %w", err)
	}
	for _, e := range list.Nftables {
		c := e.Chain
		if c == nil || c.Hook != "forward" || ours(c.Family, c.Table) {
			continue
		}
		if c.Family+" "+c.Table == protocol.FirewalldTable {
			if why, err := firewalldBlocks(ctx, p, behind); err != nil || why != "" {
				return why, err
			}
			continue
		}
		table, err := kernel.Run(ctx, "", "nft", "-a", "list", "table", c.Family, c.Table)
		if err != nil {
			continue // gone meanwhile
		}
		handle, ok := blocks(table, *c)
		if !ok || opened(table, dev) {
			continue
		}
		d := protocol.Drop{Hook: "forward", Chain: c.Family + " " + c.Table + " " + c.Name, Handle: handle}
		if strings.Contains(table, "chain ufw-") || strings.Contains(table, "chain ufw6-") {
			d.Owner = protocol.OwnerUfw
		}
		return forwardDrop(d, fmt.Sprintf("nftables chain %s drops forwarded traffic and has no rule that accepts interface %s", d.Chain, dev), dev, behind), nil
	}
	return legacyBlocks(ctx, dev, behind)
}

// nftChain is what 'nft -j list chains' says of one.
type nftChain struct {
	Family string `json:"family"`
	Table  string `json:"table"`
	Name   string `json:"name"`
	Hook   string `json:"hook"`
	Policy string `json:"policy"`
}

// legacyBlocks is ForwardBlocked for tables that nft does not list.
func legacyBlocks(ctx context.Context, dev string, behind []string) (string, error) {
	for _, prog := range kernel.IPTables(ctx, "filter") {
		if !strings.HasSuffix(prog, "-legacy") {
			continue // seen as nftables
		}
		s, err := kernel.Run(ctx, "", prog, "-w", "5", "-S")
		if err != nil {
			return "", fmt.Errorf("list %s rules: %w", prog, err)
		}
		if !strings.Contains(s, "-P FORWARD DROP\n") || openedIptables(s, dev) {
			continue
		}
		if strings.Contains(s, "-N ufw") {
			return forwardDrop(protocol.Drop{Hook: "forward", Owner: protocol.OwnerUfw}, "", dev, behind), nil
		}
		return fmt.Sprintf("%s chain FORWARD has the policy DROP and no rule that accepts interface %s", prog, dev) +
			runs(dev, behind, func(in, out string) string { return prog + " -A FORWARD -i " + in + " -o " + out + " -j ACCEPT" }), nil
	}
	return "", nil
}

// forwardDrop says that d drops what is forwarded, in the words of what if no program writes its rules
// anew, and what has it let packets pass both ways between dev and what pods are behind.
func forwardDrop(d protocol.Drop, what, dev string, behind []string) string {
	if d.Owner != protocol.OwnerUfw {
		if !plainChain(d) {
			return what
		}
		return what + runs(dev, behind, func(in, out string) string { return letBetween(d, in, out) })
	}
	return "ufw, which drops what it is not told to forward" + runs(dev, behind, func(in, out string) string {
		if in != dev {
			return "" // it is of both ways
		}
		_, mend := d.Mend(in, out)
		return mend
	})
}

// letBetween is the command line that lets packets of one interface to another pass before d, to be
// quoted: without quotes of its own.
func letBetween(d protocol.Drop, in, out string) string {
	return strings.ReplaceAll(d.Let("iifname "+in+" oifname "+out), "'", "")
}

// commandName is what a name of an interface, table or chain may be made of in a command.
var commandName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*$`)

func plainChain(d protocol.Drop) bool {
	f := strings.Fields(d.Chain)
	return len(f) == 3 && !slices.ContainsFunc(f, func(s string) bool { return !commandName.MatchString(s) })
}

// runs are the commands of both ways between dev and what pods are behind, as people read them:
// ": run 'A && B'"; empty if they are not known.
func runs(dev string, behind []string, command func(in, out string) string) string {
	var l []string
	for _, b := range behind {
		if !commandName.MatchString(dev) || !commandName.MatchString(b) {
			return ""
		}
		for _, c := range []string{command(dev, b), command(b, dev)} {
			if c != "" {
				l = append(l, c)
			}
		}
	}
	if l == nil {
		return ""
	}
	return ": run '" + strings.Join(l, " && ") + "'"
}

// firewalldBlocks says between which interfaces firewalld rejects new connections, and
// what mends it; empty if it does not for certain.
func firewalldBlocks(ctx context.Context, p netns.Plan, behind []string) (string, error) {
	text, err := kernel.Run(ctx, "", "nft", "-j", "list", "table", "inet", "firewalld")
	if err != nil {
		return "", nil // gone meanwhile
	}
	rules, err := parseRules([]byte(text))
	if err != nil {
		return "", err
	}
	if behind == nil { // not known: our interface alone is looked at
		behind = []string{""}
	}
	for _, dev := range behind {
		for _, k := range []packet{{iif: p.Interface, oif: dev}, {iif: dev, oif: p.Interface}} {
			if k.iif == "" {
				continue
			}
			k.hook, k.state, k.proto = "forward", "new", protocol.FlowTCP
			d, ok := rules.follow(k)
			if !ok || !d.Certain {
				continue
			}
			what := "firewalld, which rejects what comes in by " + k.iif
			if _, mend := d.Mend(p.Interface, dev); mend != "" {
				what += ": run '" + mend + "'"
			}
			return what, nil
		}
	}
	return "", nil
}

// behind are the interfaces by which the host reaches what the plan has as its own.
func behind(p netns.Plan) (out []string) {
	for _, l := range p.Local {
		dev := toward(l.Addr().Next())
		if dev == "" { // often the host's own address
			dev = toward(l.Addr().Next().Next())
		}
		if dev != "" && dev != p.Interface && !slices.Contains(out, dev) {
			out = append(out, dev)
		}
	}
	return out
}

// blocks reports whether a chain in the listing of its table, with handles, drops what no
// earlier rule accepted, and by which rule; 0 is the policy.
func blocks(table string, c nftChain) (handle int, ok bool) {
	if c.Policy == "drop" {
		return 0, true
	}
	_, body, ok := strings.Cut(table, "\tchain "+c.Name+" {")
	if !ok {
		return 0, false
	}
	body, _, _ = strings.Cut(body, "\n\t}")
	rules := strings.Split(strings.TrimSpace(body), "\n")
	last, at, _ := strings.Cut(strings.TrimSpace(rules[len(rules)-1]), " # handle ")
	if f := strings.Fields(last); len(f) > 5 && f[0] == "counter" { // counter packets N bytes N
		last = strings.Join(f[5:], " ")
	}
	handle, err := strconv.Atoi(at)
	return handle, err == nil && (last == "drop" || strings.HasPrefix(last, "reject"))
}

// opened reports whether some rule of a table accepts or passes on traffic of
// the interface.
func opened(table, dev string) bool {
	for _, l := range strings.Split(table, "\n") {
		if strings.Contains(l, `ifname "`+dev+`"`) && (strings.Contains(l, " accept") || strings.Contains(l, "goto ") || strings.Contains(l, "jump ")) {
			return true
		}
	}
	return false
}

func openedIptables(rules, dev string) bool {
	for _, l := range strings.Split(rules, "\n") {
		if strings.Contains(l+" ", " "+dev+" ") && strings.Contains(l, "-j ACCEPT") {
			return true
		}
	}
	return false
}
