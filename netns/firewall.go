package netns

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"causeway/protocol"
)

// dockerUser is the chain that Docker leaves to the host's owner: an accept
// there comes before Docker's own drops.
const dockerUser = "DOCKER-USER"

const ruleComment = "causeway"

// ipPrograms lists the iptables programs whose table, such as filter, is in use in this
// namespace. The legacy ones are asked only if the kernel has a table of
// theirs here already: to ask makes one.
func ipPrograms(ctx context.Context, table string) (out []string) {
	for _, v := range []struct{ family, nft, legacy, names string }{
		{"ip", "iptables-nft", "iptables-legacy", "/proc/thread-self/net/ip_tables_names"},
		{"ip6", "ip6tables-nft", "ip6tables-legacy", "/proc/thread-self/net/ip6_tables_names"},
	} {
		if b, err := os.ReadFile(v.names); err == nil && slices.Contains(strings.Fields(string(b)), table) {
			if _, err := lookPath(v.legacy); err == nil {
				out = append(out, v.legacy)
			}
		}
		if _, err := run(ctx, "", "nft", "list", "table", v.family, table); err == nil {
			if _, err := lookPath(v.nft); err == nil {
				out = append(out, v.nft)
			}
		}
	}
	return out
}

func accepts(dev string) [][]string {
	c := []string{"-m", "comment", "--comment", ruleComment, "-j", "ACCEPT"}
	return [][]string{append([]string{"-i", dev}, c...), append([]string{"-o", dev}, c...)}
}

// openFirewalls lets traffic of our interface through firewalls that leave a
// place for it, and says whether it changed something: Docker's FORWARD drop by DOCKER-USER,
// and what docker.go tells of. An accept in our own table would not undo their drop.
func (h *Host) openFirewalls(ctx context.Context, rec *record, p Plan) (opened bool, err error) {
	dev := p.Interface
	for _, prog := range ipPrograms(ctx, "filter") {
		if _, err := run(ctx, "", prog, "-w", "5", "-n", "-L", dockerUser); err != nil {
			continue // no such chain
		}
		for _, rule := range accepts(dev) {
			f := savedFirewall{Program: prog, Chain: dockerUser, Rule: rule}
			if _, err := run(ctx, "", prog, f.args("-C")...); err == nil {
				continue
			}
			if !slices.ContainsFunc(rec.Firewall, f.equal) {
				rec.Firewall = append(rec.Firewall, f)
				if err := h.writeRecord(rec); err != nil {
					return opened, err
				}
			}
			if _, err := run(ctx, "", prog, f.args("-I")...); err != nil {
				return opened, fmt.Errorf("open %s for %s: %w", dockerUser, dev, err)
			}
			opened = true
			h.log.Info().Str("iface", dev).Str("chain", dockerUser).Strs("rule", rule).Msg("opened firewall")
		}
	}
	raw, err := h.openRaw(ctx, rec, p)
	if err != nil {
		return opened, err
	}
	marks, err := h.markForDocker(ctx, p)
	return opened || raw || marks, err
}

// foundFirewalls are rules of ours that are there, whoever remembers them.
func foundFirewalls(ctx context.Context, dev string) (out []savedFirewall) {
	for _, prog := range ipPrograms(ctx, "filter") {
		for _, rule := range accepts(dev) {
			f := savedFirewall{Program: prog, Chain: dockerUser, Rule: rule}
			if _, err := run(ctx, "", prog, f.args("-C")...); err == nil {
				out = append(out, f)
			}
		}
	}
	return out
}

func (f savedFirewall) args(op string) []string {
	return append([]string{"-w", "5", "-t", cmp.Or(f.Table, "filter"), op, f.Chain}, f.Rule...)
}

func (f savedFirewall) equal(g savedFirewall) bool {
	return f.Program == g.Program && f.Table == g.Table && f.Chain == g.Chain && slices.Equal(f.Rule, g.Rule)
}

// remove takes the rule out, as often as it is there.
func (f savedFirewall) remove(ctx context.Context) error {
	for range 16 { // a bound, not a guess: -C ends the loop
		if _, err := run(ctx, "", f.Program, f.args("-C")...); err != nil {
			break // gone, with its chain or alone
		}
		if _, err := run(ctx, "", f.Program, f.args("-D")...); err != nil {
			return fmt.Errorf("take rule out of %s: %w", f.Chain, err)
		}
	}
	return nil
}

// closeFirewalls takes back what openFirewalls put in.
func (h *Host) closeFirewalls(ctx context.Context, rec *record) error {
	for _, f := range rec.Firewall {
		if err := f.remove(ctx); err != nil {
			return err
		}
	}
	if err := removeMarks(ctx); err != nil {
		return err
	}
	return h.closeRaw(ctx, rec, func(savedFirewall) bool { return false })
}

// containersForward reports whether a container engine that needs forwarding
// has its chains here.
func containersForward(ctx context.Context) bool {
	for _, prog := range ipPrograms(ctx, "filter") {
		s, err := run(ctx, "", prog, "-w", "5", "-S")
		if err != nil {
			continue
		}
		for _, c := range []string{"DOCKER-USER", "DOCKER-FORWARD", "CNI-FORWARD", "NETAVARK_FORWARD", "KUBE-FORWARD"} {
			if strings.Contains(s, "-N "+c+"\n") {
				return true
			}
		}
	}
	return false
}

// nftChain is what 'nft -j list chains' says of one.
type nftChain struct {
	Family string `json:"family"`
	Table  string `json:"table"`
	Name   string `json:"name"`
	Hook   string `json:"hook"`
	Policy string `json:"policy"`
}

// ForwardBlockedBy is ForwardBlocked with the plan of the last Apply.
func (h *Host) ForwardBlockedBy(ctx context.Context) (string, error) {
	h.mu.Lock()
	p := h.last
	h.mu.Unlock()
	return h.ForwardBlocked(ctx, cmp.Or(p.Interface, DefaultInterface), p.Local)
}

// ForwardBlocked names the foreign firewall that drops forwarded traffic of
// interface dev, empty if none does as far as its rules can be read: a chain
// at the forward hook whose policy is drop, or which ends in a drop or reject,
// and which names our interface in no accept. Firewalld's zones are followed. After ": " come
// the commands that open it for what is behind this host, if it is known by which interfaces.
func (h *Host) ForwardBlocked(ctx context.Context, dev string, local []netip.Prefix) (string, error) {
	p := Plan{Config{Interface: dev, Local: local}}
	behind := h.behind(p)
	s, err := run(ctx, "", "nft", "-j", "list", "chains")
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
		if c == nil || c.Hook != "forward" || c.Family == "inet" && c.Table == NftTable {
			continue
		}
		if c.Family+" "+c.Table == protocol.FirewalldTable {
			if why, err := h.firewalldBlocks(ctx, p, behind); err != nil || why != "" {
				return why, err
			}
			continue
		}
		table, err := run(ctx, "", "nft", "-a", "list", "table", c.Family, c.Table)
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

// legacyBlocks is ForwardBlocked for tables that nft does not list.
func legacyBlocks(ctx context.Context, dev string, behind []string) (string, error) {
	for _, prog := range ipPrograms(ctx, "filter") {
		if !strings.HasSuffix(prog, "-legacy") {
			continue // seen as nftables
		}
		s, err := run(ctx, "", prog, "-w", "5", "-S")
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
func (h *Host) firewalldBlocks(ctx context.Context, p Plan, behind []string) (string, error) {
	text, err := run(ctx, "", "nft", "-j", "list", "table", "inet", "firewalld")
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
func (h *Host) behind(p Plan) (out []string) {
	for _, l := range p.Local {
		dev := h.toward(l.Addr().Next())
		if dev == "" { // often the host's own address
			dev = h.toward(l.Addr().Next().Next())
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
