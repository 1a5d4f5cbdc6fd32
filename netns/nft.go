package netns

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"go4.org/netipx"

	"causeway/netns/internal/kernel"
)

// applyNft replaces our table in one transaction unless it is right already. What is
// not as the plan before has it, others did. Where it cannot, ErrNoWalls says that what
// stands is not known. It is known where it was read: the whole table of an earlier plan,
// which lets nothing through that was not meant to pass then.
func (h *Host) applyNft(ctx context.Context, p, before Plan) error {
	want := p.nft()
	have, err := h.foundNft(ctx)
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
	if err := h.replaceNft(ctx, have, want); err != nil {
		err = fmt.Errorf("set nftables table %s: %w", NftTable, err)
		if len(have) == 0 || !slices.Equal(have, h.walls) {
			err = noWalls(err)
		}
		return err
	}
	h.walls = want
	return nil
}

// replaceNft makes our table of have that of want, in one transaction. The sets stay where they
// can, and only what differs in them is changed: they may be large.
func (h *Host) replaceNft(ctx context.Context, have, want []string) error {
	if script, ok := nftChange(have, want); ok {
		_, err := kernel.Run(ctx, script, "nft", "-f", "-")
		if err == nil {
			now, err := h.foundNft(ctx)
			if err == nil && slices.Equal(now, want) {
				return nil
			}
		}
		h.log.Debug().Err(err).Msg("the nftables table is made anew, as it was not to be changed")
	}
	// 'add' before 'delete': a missing table would fail the transaction.
	script := fmt.Sprintf("add table inet %s\ndelete table inet %s\n", NftTable, NftTable) + nftAdd(want)
	_, err := kernel.Run(ctx, script, "nft", "-f", "-")
	return err
}

// nftAdd are the commands that add lines, the elements of a set in one of them.
func nftAdd(lines []string) string {
	var b strings.Builder
	set := ""
	for _, l := range lines {
		of, text, ok := cutElement(l)
		switch {
		case ok && of == set:
			b.WriteString(", " + text)
			continue
		case set != "":
			b.WriteString(" }\n")
		}
		if set = of; ok {
			b.WriteString("add " + strings.TrimSuffix(l, " }"))
			continue
		}
		b.WriteString("add " + l + "\n")
	}
	if set != "" {
		b.WriteString(" }\n")
	}
	return b.String()
}

// cutElement takes a line of nftElement apart.
func cutElement(l string) (set, text string, ok bool) {
	l, ok = strings.CutPrefix(l, "element inet "+NftTable+" ")
	if !ok {
		return "", "", false
	}
	set, text, ok = strings.Cut(strings.TrimSuffix(l, " }"), " { ")
	return set, text, ok
}

// nftChange is what makes have into want without making the sets anew; false: they have to be,
// or there is something else in the table.
func nftChange(have, want []string) (script string, ok bool) {
	kinds := func(lines []string) (sets, elements, rest []string) {
		for _, l := range lines {
			switch word, _, _ := strings.Cut(l, " "); word {
			case "set":
				sets = append(sets, l)
			case "element":
				elements = append(elements, l)
			default:
				rest = append(rest, l)
			}
		}
		return sets, elements, rest
	}
	haveSets, haveElements, haveRest := kinds(have)
	wantSets, wantElements, wantRest := kinds(want)
	if len(haveSets) == 0 || !slices.Equal(haveSets, wantSets) {
		return "", false
	}
	var b strings.Builder
	if !slices.Equal(haveRest, wantRest) {
		fmt.Fprintf(&b, "flush table inet %s\n", NftTable)
		for _, l := range haveRest {
			if chain, ok := strings.CutPrefix(l, "chain "); ok {
				name, _, _ := strings.Cut(chain, " {")
				fmt.Fprintf(&b, "delete chain %s\n", name)
			}
		}
		b.WriteString(nftAdd(wantRest))
	}
	for _, l := range strings.SplitAfter(nftAdd(less(haveElements, wantElements)), "\n") {
		if l != "" {
			b.WriteString("delete" + strings.TrimPrefix(l, "add"))
		}
	}
	b.WriteString(nftAdd(less(wantElements, haveElements)))
	return b.String(), true
}

func noWalls(err error) error { return fmt.Errorf("%w; %w", err, ErrNoWalls) }

// seenNft is our table as it was listed, and nftables' generation then.
type seenNft struct {
	mu         sync.Mutex
	generation uint32
	lines      []string
}

// foundNft is our table in the form of Plan.nft, empty if there is none. It is listed when
// anybody has changed anything of nftables since it was.
func (h *Host) foundNft(ctx context.Context) ([]string, error) {
	if _, err := nftPath(); err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	h.nftables.mu.Lock()
	defer h.nftables.mu.Unlock()
	generation, known := kernel.NftGeneration()
	if known && h.nftables.lines != nil && generation == h.nftables.generation {
		return h.nftables.lines, nil
	}
	h.nftables.lines = nil
	there, err := hasNftTable()
	if err == nil && !there { // as the program has it, too: it has to make one
		_, err = kernel.Run(ctx, "", "nft", "list", "tables", "inet")
	}
	if err != nil || !there {
		return nil, err
	}
	s, err := kernel.Run(ctx, "", "nft", "-y", "-p", "-s", "list", "table", "inet", NftTable)
	if err != nil {
		return nil, fmt.Errorf("list nftables table %s: %w", NftTable, err)
	}
	lines := parseNft(s)
	if known {
		h.nftables.generation, h.nftables.lines = generation, lines
	}
	return lines, nil
}

// parseNft turns nft's listing of our table into the form of Plan.nft. What it
// does not know it keeps, so that a comparison fails and the table is made
// anew.
func parseNft(s string) []string {
	t := " inet " + NftTable + " "
	out := []string{"table inet " + NftTable}
	chain := ""
	lines := strings.Split(s, "\n")
	for i := 0; i < len(lines); i++ {
		switch l := strings.TrimSpace(lines[i]); {
		case l == "" || l == "}" || strings.HasPrefix(l, "table "):
		case strings.HasPrefix(l, "set "):
			end := i + 1
			for end < len(lines) && lines[end] != "\t}" {
				end++
			}
			out = append(out, parseSet(strings.TrimSuffix(strings.TrimPrefix(l, "set "), " {"), lines[i+1:end])...)
			i = end
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

// parseSet is parseNft for a set. Runs of addresses that meet are one, however they were added.
func parseSet(name string, lines []string) []string {
	head, elements, inside := "", "", false
	for _, l := range lines {
		l = strings.TrimSpace(l)
		if rest, ok := strings.CutPrefix(l, "elements = {"); ok {
			l, inside = rest, true
		}
		if inside {
			elements += strings.TrimSuffix(l, "}")
			inside = !strings.HasSuffix(l, "}")
			continue
		}
		head += l + "; "
	}
	out := []string{"set inet " + NftTable + " " + name + " { " + head + "}"}
	var b netipx.IPSetBuilder
	for e := range strings.SplitSeq(elements, ",") {
		if e = strings.TrimSpace(e); e == "" {
			continue
		}
		r, ok := parseRange(e)
		if !ok {
			out = append(out, nftElement(name, e))
			continue
		}
		b.AddRange(r)
	}
	set, err := b.IPSet()
	if err != nil {
		return out
	}
	for _, r := range set.Ranges() {
		out = append(out, nftElement(name, nftRange(r)))
	}
	return out
}

func removeNft(ctx context.Context) error {
	if _, err := nftPath(); err != nil {
		return nil // without nft there never was a table
	}
	if _, err := kernel.Run(ctx, fmt.Sprintf("add table inet %s\ndelete table inet %s\n", NftTable, NftTable), "nft", "-f", "-"); err != nil {
		return fmt.Errorf("remove nftables table %s: %w", NftTable, err)
	}
	return nil
}
