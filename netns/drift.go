package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"causeway/netns/internal/kernel"
)

// Drift is what differs from the last applied plan in one subject: a Kind, for
// kernel settings the setting's name, for parts the table's. Lines are as in Plan.Lines.
type Drift struct {
	Kind    Kind
	Subject string
	Missing []string // planned and not there
	Extra   []string // there and not planned
}

// Drift compares what is there of some kinds with the last applied plan; it finds
// nothing before the first Apply. Without its link, all that needs it is
// missing too and not told of. What cannot be listed is told (Failures), beside what was
// found of the other kinds. Nothing is changed.
func (h *Host) Drift(ctx context.Context, kinds ...Kind) ([]Drift, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.drift(ctx, h.last, kinds)
}

// differs is what differs of one kind.
func differs(k Kind, want, have []string) Drift {
	return Drift{Kind: k, Subject: string(k), Missing: less(want, have), Extra: less(have, want)}
}

func (d Drift) some() bool { return len(d.Missing)+len(d.Extra) > 0 }

// drift is Drift from a plan; h.mu is held.
func (h *Host) drift(ctx context.Context, p Plan, kinds []Kind) ([]Drift, error) {
	if p.Interface == "" {
		return nil, nil
	}
	if !HasIPv6() {
		p = p.Without6()
	}
	link, err := p.Device()
	if err != nil {
		return nil, err
	}
	var out []Drift
	var f Failures
	gone := false
	for _, k := range Kinds {
		if !slices.Contains(kinds, k) && k != Link {
			continue
		}
		if k == Parts {
			out = append(out, h.partDrifts(ctx, p, &f)...)
			continue
		}
		if gone && k != Nftables && k != Sysctls {
			continue
		}
		want := p.lines(k)
		if k == Routes {
			now, err := h.Standing(ctx, p)
			if err != nil {
				f.add(k, "", err)
				continue
			}
			want = now.lines(k)
		}
		have, err := h.found(ctx, link, p.Config, k)
		if err != nil {
			f.add(k, "", err)
			continue
		}
		d := differs(k, want, have)
		d.Extra = less(d.Extra, p.lines(k)) // a copy that outlives what it is one of
		if d = h.tried(d); !d.some() {
			continue
		}
		if k == Link {
			gone = true
		}
		if k != Sysctls {
			out = append(out, d)
			continue
		}
		for _, s := range p.sysctls() {
			if gone && p.ofOwn(s) || !slices.Contains(d.Missing, s.line()) {
				continue
			}
			v, err := kernel.ReadSysctl(s.key)
			if errors.Is(err, fs.ErrNotExist) && !p.ofOwn(s) || s.value == forwardMark && v == "1" {
				continue // the interface went, or others have it forward: see Uses
			}
			one := Drift{Kind: k, Subject: s.key, Missing: []string{s.line()}}
			if err == nil {
				one.Extra = []string{sysctl{s.key, v}.line()}
			}
			out = append(out, one)
		}
	}
	return out, f.err()
}

// tried is d without what could not be put in place: that is told otherwise, and tried again
// with the next Apply. h.mu is held.
func (h *Host) tried(d Drift) Drift {
	n := len(d.Missing)
	d.Missing = slices.DeleteFunc(d.Missing, func(l string) bool { return h.failed[l] })
	d.Extra = slices.DeleteFunc(d.Extra, func(l string) bool { return h.failed[l] })
	if len(d.Missing) == 0 && n > 0 {
		d.Extra = nil // what is there in place of it
	}
	return d
}

// less is a without what is in b.
func less(a, b []string) []string {
	there := make(map[string]bool, len(b))
	for _, s := range b {
		there[s] = true
	}
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return there[s] })
}

// Mend puts the subjects of drifts back as the last applied plan has them, and
// touches nothing else but what the kernel took away with them: addresses go with
// a link, routes with an address. A link that is missing is the tunnel's to make.
func (h *Host) Mend(ctx context.Context, drifts []Drift) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last.Interface == "" {
		return fmt.Errorf("mend: nothing was applied yet")
	}
	known := len(h.undone)
	defer func() { h.undone = h.undone[:known] }() // what is mended here is known
	return h.apply(ctx, h.last, func(Kind) {}, func(Drift) {}, func(k Kind, subject string) bool {
		return slices.ContainsFunc(drifts, func(d Drift) bool {
			switch {
			case d.Subject == subject:
				return true
			case k == Routes: // an address takes the routes along that have it as their source
				return d.Kind == Link || d.Kind == Addresses
			case k == Addresses:
				return d.Kind == Link
			case k == Sysctls:
				return d.Kind == Link && h.last.ofOwn(sysctl{key: subject})
			}
			return false
		})
	})
}
