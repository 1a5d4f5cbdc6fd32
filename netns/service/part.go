package service

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"causeway/netns"
)

// Part is the table as a part of a host's plan. It says what the host is; the table, which all parts of an agent share, knows what
// there is of services, and Apply restores what the last Switch said of them.
type Part struct {
	host  host
	base  Config
	table *Table
}

var _ netns.Reflector = (*Part)(nil)

// NewPart checks. base has no Services and no Dead: those are the table's, by Switch.
func NewPart(base Config, live *Table) (*Part, error) {
	if len(base.Services)+len(base.Dead)+len(base.Fenced)+len(base.Left) > 0 {
		return nil, errors.New("service: services and dead backends of a part are those of its table: see Table.Switch")
	}
	h, err := base.host()
	if err != nil {
		return nil, err
	}
	return &Part{h, base, live}, nil
}

// Config is what the part says of the host.
func (p *Part) Config() Config { return p.base }

// Reflects are the addresses that may come to be their own backends.
func (p *Part) Reflects() []netip.Addr { return p.base.Self }

// Live is the part's table, by which services change.
func (p *Part) Live() *Table { return p.table }

// Table is the table's name.
func (p *Part) Table() string { return TableName }

// Lines say which addresses are services'; no command makes the table. What there is of services at the moment is not said, since it
// changes without the plan.
func (p *Part) Lines() []string {
	out := []string{"# nftables table " + TableName + ": services' addresses are translated, but for what comes out of " + p.host.device}
	for _, x := range p.host.ranges {
		out = append(out, fmt.Sprintf("# %s is of services", x))
	}
	for _, x := range p.host.local {
		out = append(out, fmt.Sprintf("# %s is here, for services", x))
	}
	for _, x := range p.host.inside {
		out = append(out, fmt.Sprintf("# %s leads to this host's containers alone, for services that are exposed", x))
	}
	for _, x := range p.host.own {
		out = append(out, fmt.Sprintf("# %s is this node's own, for services", x))
	}
	slices.Sort(out[1:])
	return out
}

// Apply makes the table as the part and the last Switch say. Before the first one it leaves the table as it is: an agent that starts
// anew knows nothing of backends yet.
func (p *Part) Apply(_ context.Context, before netns.Part) error {
	if b, ok := before.(*Part); ok && b.table != p.table { // of an agent that is gone
		b.table.leave()
	}
	if err := p.table.listen(); err != nil {
		return err
	}
	if differs, err := p.table.Differs(); err == nil && !differs && p.table.is(p.host) {
		return nil
	}
	return p.table.setHost(p.host)
}

// Drift tells whether others changed the table since it was written last. It does not read what is in it.
func (p *Part) Drift(context.Context) (missing, extra []string, err error) {
	differs, err := p.table.Differs()
	if differs {
		missing = []string{"# nftables table " + TableName + " as it was put there"}
	}
	return missing, nil, err
}

// Close ends the listening. What Switch says from then on is kept for the next part, and not written.
func (p *Part) Close() error {
	p.table.leave()
	return nil
}
