package netns

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// programTimeout bounds every run of nft and iptables.
const programTimeout = 10 * time.Second

// run runs a program of the system and returns what it printed. An error holds
// the first line of what it complained about.
func run(ctx context.Context, stdin string, name string, args ...string) (string, error) {
	path, err := lookPath(name)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second
	cmd.Stdin = strings.NewReader(stdin)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err = cmd.Start()
	if err == nil {
		ownPrograms.add(uint32(cmd.Process.Pid)) // before it can have changed anything
		err = cmd.Wait()
	}
	if err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(complaint.String()), "\n")
		if first == "" {
			return "", fmt.Errorf("run %s: %w", name, err)
		}
		return "", fmt.Errorf("run %s: %s: %w", name, first, err)
	}
	return out.String(), nil
}

// applyNft replaces our table in one transaction unless it is right already. What is
// not as the plan before has it, others did. Where it cannot, ErrNoWalls says that what
// stands is not known. It is known where it was read: the whole table of an earlier plan,
// which lets nothing through that was not meant to pass then.
func (h *Host) applyNft(ctx context.Context, p, before Plan) error {
	want := p.nft()
	have, err := foundNft(ctx)
	if err != nil {
		h.walls = nil // somebody may have taken them away
		return noWalls(err)
	}
	if before.Interface != "" {
		var lines []string
		for _, l := range have {
			lines = append(lines, nftLine(l))
		}
		h.undone = append(h.undone, h.othersDid([]Drift{differs(Nftables, before.lines(Nftables), lines)})...)
	}
	if slices.Equal(have, want) {
		h.walls = want
		return nil
	}
	if len(have) > 0 {
		h.log.Debug().Msg("replace nftables table")
	}
	var b strings.Builder
	// 'add' before 'delete': a missing table would fail the transaction.
	fmt.Fprintf(&b, "add table inet %s\ndelete table inet %s\n", NftTable, NftTable)
	for _, l := range want {
		b.WriteString("add " + l + "\n")
	}
	if _, err := run(ctx, b.String(), "nft", "-f", "-"); err != nil {
		err = fmt.Errorf("set nftables table %s: %w", NftTable, err)
		if len(have) == 0 || !slices.Equal(have, h.walls) {
			err = noWalls(err)
		}
		return err
	}
	h.walls = want
	return nil
}

func noWalls(err error) error { return fmt.Errorf("%w; %w", err, ErrNoWalls) }

// foundNft is our table in the form of Plan.nft, empty if there is none.
func foundNft(ctx context.Context) ([]string, error) {
	tables, err := run(ctx, "", "nft", "list", "tables", "inet")
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	if !slices.Contains(strings.Split(strings.TrimSpace(tables), "\n"), "table inet "+NftTable) {
		return nil, nil
	}
	s, err := run(ctx, "", "nft", "-y", "-p", "-s", "list", "table", "inet", NftTable)
	if err != nil {
		return nil, fmt.Errorf("list nftables table %s: %w", NftTable, err)
	}
	return parseNft(s), nil
}

// parseNft turns nft's listing of our table into the form of Plan.nft. What it
// does not know it keeps, so that a comparison fails and the table is made
// anew.
func parseNft(s string) []string {
	t := " inet " + NftTable + " "
	out := []string{"table inet " + NftTable}
	chain := ""
	for _, l := range strings.Split(s, "\n") {
		switch l = strings.TrimSpace(l); {
		case l == "" || l == "}" || strings.HasPrefix(l, "table "):
		case strings.HasPrefix(l, "chain "):
			chain = strings.TrimSuffix(strings.TrimPrefix(l, "chain "), " {")
		case strings.HasPrefix(l, "type "):
			out = append(out, "chain"+t+chain+" { "+l+" }")
		default:
			out = append(out, "rule"+t+chain+" "+l)
		}
	}
	return out
}

func removeNft(ctx context.Context) error {
	if _, err := nftPath(); err != nil {
		return nil // without nft there never was a table
	}
	if _, err := run(ctx, fmt.Sprintf("add table inet %s\ndelete table inet %s\n", NftTable, NftTable), "nft", "-f", "-"); err != nil {
		return fmt.Errorf("remove nftables table %s: %w", NftTable, err)
	}
	return nil
}
