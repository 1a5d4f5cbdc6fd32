package netns

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"causeway/netns/internal/kernel"
)

// dockerUser is the chain that Docker leaves to the host's owner: an accept
// there comes before Docker's own drops.
const dockerUser = "DOCKER-USER"

const ruleComment = "causeway"

func accepts(dev string) [][]string {
	c := []string{"-m", "comment", "--comment", ruleComment, "-j", "ACCEPT"}
	return [][]string{append([]string{"-i", dev}, c...), append([]string{"-o", dev}, c...)}
}

// OpenFirewalls opens what Apply does in firewalls that leave a place for it, and says whether that changed something.
func (h *Host) OpenFirewalls(ctx context.Context, p Plan) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	rec, err := h.readRecord(ctx, p.Interface)
	if err != nil {
		return false, err
	}
	return h.openFirewalls(ctx, rec, p)
}

// openFirewalls lets traffic of our interface through firewalls that leave a
// place for it, and says whether it changed something: Docker's FORWARD drop by DOCKER-USER,
// and what docker.go tells of. An accept in our own table would not undo their drop.
func (h *Host) openFirewalls(ctx context.Context, rec *record, p Plan) (opened bool, err error) {
	dev := p.Interface
	for _, prog := range kernel.IPTables(ctx, "filter") {
		if _, err := kernel.Run(ctx, "", prog, "-w", "5", "-n", "-L", dockerUser); err != nil {
			continue // no such chain
		}
		for _, rule := range accepts(dev) {
			f := savedFirewall{Program: prog, Chain: dockerUser, Rule: rule}
			if _, err := kernel.Run(ctx, "", prog, f.args("-C")...); err == nil {
				continue
			}
			if !slices.ContainsFunc(rec.Firewall, f.equal) {
				rec.Firewall = append(rec.Firewall, f)
				if err := h.writeRecord(rec); err != nil {
					return opened, err
				}
			}
			if _, err := kernel.Run(ctx, "", prog, f.args("-I")...); err != nil {
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
	for _, prog := range kernel.IPTables(ctx, "filter") {
		for _, rule := range accepts(dev) {
			f := savedFirewall{Program: prog, Chain: dockerUser, Rule: rule}
			if _, err := kernel.Run(ctx, "", prog, f.args("-C")...); err == nil {
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
		if _, err := kernel.Run(ctx, "", f.Program, f.args("-C")...); err != nil {
			break // gone, with its chain or alone
		}
		if _, err := kernel.Run(ctx, "", f.Program, f.args("-D")...); err != nil {
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
	for _, prog := range kernel.IPTables(ctx, "filter") {
		s, err := kernel.Run(ctx, "", prog, "-w", "5", "-S")
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
