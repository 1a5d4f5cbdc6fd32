package netns

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
	"causeway/netns/internal/nf"
)

// Part is what an applier of declared objects has on the host beside the plan's own kinds: one part of the plan, so
// that apply, drift, repair and leave hold for it. It is an nftables table of its own in family inet, which may be
// large and be written by netlink (netns/table).
//
// A Part is a wish; what is known of the kernel it takes over from the one before it. Its methods are called one
// at a time, on a thread in the host's namespace.
type Part interface {
	// Table is the name of the table, PartPrefix and the kind of the objects. What has such a name is the agent's:
	// it is taken away when no plan has it, and by leave.
	Table() string
	// Lines are the commands that would make it, in the form of Plan.Lines.
	Lines() []string
	// Apply makes the table as the part says, whole and idempotent. before is the part that the last Apply put there; nil
	// if that is not known. An error that is ErrNoWalls keeps all peers away.
	Apply(ctx context.Context, before Part) error
	// Drift is what differs from what Apply put there, as in a Drift. It changes nothing.
	Drift(ctx context.Context) (missing, extra []string, err error)
	// Close ends what is kept open for the next Drift. The table stays.
	Close() error
}

// PartPrefix begins the names of parts' tables.
const PartPrefix = NftTable + "-"

// TrialTable is our table for the time of a trial of the host's firewalls, in family inet.
const TrialTable = PartPrefix + "trial"

// TrialMark is the mark of the packets of a trial, which a part that judges by addresses lets pass. Nobody but who may
// take the table away can give it to a packet; on the wire there is none.
const TrialMark = 0x5e

// ownTables are none of a part's, though they have its prefix.
var ownTables = []string{dockerMarks, TrialTable, nf.HooksTable}

var partTable = regexp.MustCompile(`^` + PartPrefix + `[a-z][a-z0-9-]{0,31}$`)

// checkParts refuses names that are not the parts' own.
func checkParts(l []Part) error {
	seen := map[string]bool{}
	for _, x := range l {
		t := x.Table()
		if !partTable.MatchString(t) || slices.Contains(ownTables, t) || seen[t] {
			return fmt.Errorf("nftables table %q is no name for one part of the plan alone", t)
		}
		seen[t] = true
	}
	return nil
}

// applyPart puts one part in place. What others had changed is told first. h.mu is held.
func (h *Host) applyPart(ctx context.Context, x Part, told func(Drift)) error {
	before := h.parts[x.Table()]
	if before != nil {
		if d, err := driftOf(ctx, before); err == nil && d.some() {
			told(d)
		}
	}
	if err := x.Apply(ctx, before); err != nil {
		return fmt.Errorf("set nftables table %s: %w", x.Table(), err)
	}
	if h.parts == nil {
		h.parts = map[string]Part{}
	}
	h.parts[x.Table()] = x
	return nil
}

func driftOf(ctx context.Context, x Part) (Drift, error) {
	missing, extra, err := x.Drift(ctx)
	return Drift{Kind: Parts, Subject: x.Table(), Missing: missing, Extra: extra}, err
}

// partDrifts is Drift of a plan's parts, but for those that could not be put in place: that is told otherwise. h.mu is held.
func (h *Host) partDrifts(ctx context.Context, p Plan, f *Failures) (out []Drift) {
	for _, x := range p.Parts {
		if h.parts[x.Table()] != x {
			continue
		}
		d, err := driftOf(ctx, x)
		if err != nil {
			f.add(Parts, x.Table(), fmt.Errorf("nftables table %s: %w", x.Table(), err))
		} else if d.some() {
			out = append(out, d)
		}
	}
	return out
}

// foundParts are the lines of a plan's parts that are there.
func (h *Host) foundParts(ctx context.Context, c Config) (out []string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, x := range c.Parts {
		if x = h.parts[x.Table()]; x == nil {
			continue
		}
		missing, extra, err := x.Drift(ctx)
		if err != nil {
			return nil, fmt.Errorf("nftables table %s: %w", x.Table(), err)
		}
		out = append(append(out, less(x.Lines(), missing)...), extra...)
	}
	return out, nil
}

// removeParts takes away tables of parts, but for those of keep: whoever put them there, and before a crash too. h.mu is held.
func (h *Host) removeParts(keep []Part) error {
	kept := func(t string) bool {
		return slices.ContainsFunc(keep, func(x Part) bool { return x.Table() == t })
	}
	var errs []error
	for t, x := range h.parts {
		if !kept(t) {
			errs = append(errs, x.Close())
			delete(h.parts, t)
		}
	}
	tables, err := partTables()
	errs = append(errs, err)
	for _, t := range tables {
		if kept(t) {
			continue
		}
		if err := kernel.DeleteTable(t); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove nftables table %s: %w", t, err))
		}
	}
	return errors.Join(errs...)
}

// partTables are the names of the tables of parts that are there.
func partTables() (out []string, err error) {
	msgs, err := kernel.AskNft(unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // a kernel without nftables has none
	}
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	for _, m := range msgs {
		for typ, v := range kernel.NftAttrs(m) {
			if t := unix.ByteSliceToString(v); typ == unix.NFTA_TABLE_NAME && strings.HasPrefix(t, PartPrefix) && !slices.Contains(ownTables, t) {
				out = append(out, t)
			}
		}
	}
	return out, nil
}
