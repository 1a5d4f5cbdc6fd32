package policy

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"

	"causeway/netns"
)

// Part is the table as a part of a host's plan. What is known of the kernel goes from one to the next that is
// applied after it.
type Part struct {
	config Config
	known  *known // nil: never applied

	once  sync.Once // of judge
	judge judge     // for questions, made at the first one
}

// known is what is known of the table that stands.
type known struct {
	table *Table
	stop  context.CancelFunc // ends the listening
	still func()             // ends what tells ends in the background, and waits for that
}

var _ netns.Part = (*Part)(nil)

// NewPart checks.
func NewPart(c Config) (*Part, error) {
	c, err := c.normal()
	if err != nil {
		return nil, err
	}
	return &Part{config: c}, nil
}

// Opens returns the name of the rule that opens a flow, as the table judges it; false: closed. For proto other than TCP and UDP
// the port counts for nothing. What is no subject of rules (Config.Own) is not asked here. It may be called concurrently.
func (p *Part) Opens(from, to netip.Addr, proto Proto, port uint16) (string, bool) {
	p.once.Do(func() { p.judge.content = compile(p.config) })
	pairs, f, t := p.judge.begins, p.judge.class(false, from), p.judge.class(true, to)
	if f == 0 || t == 0 {
		pairs, f, t = p.judge.arrives, p.judge.class(true, from), p.judge.class(false, to)
	}
	if f == 0 || t == 0 {
		return "", false
	}
	if proto != TCP && proto != UDP {
		port = 0
	}
	x, ok := p.judge.opening(pairs, f, t, proto, port)
	return x.rule, ok
}

// Config is what shall hold.
func (p *Part) Config() Config { return p.config }

// Table is the table's name.
func (p *Part) Table() string { return TableName }

// Lines say what is open, and of which class whoever is: no command makes the table.
func (p *Part) Lines() []string {
	out := []string{"# nftables table " + TableName + " on " + p.config.Interface + ": closed is what does not follow"}
	for _, a := range p.config.Allows {
		ports := fmt.Sprintf("protocol %d", a.Proto)
		if a.Last != 0 {
			ports += fmt.Sprintf(" ports %d to %d", a.First, a.Last)
		}
		if a.Arrives {
			ports += ", where it arrives"
		}
		out = append(out, fmt.Sprintf("# %s: class %d to class %d, %s", a.Rule, a.From, a.To, ports))
	}
	for i, l := range [][]Member{p.config.Local, p.config.Remote} {
		for _, m := range l {
			out = append(out, fmt.Sprintf("# %s is %s and of class %d", m.Prefix, []string{"here", "at a peer"}[i], m.Class))
		}
	}
	slices.Sort(out[1:])
	return out
}

// Apply makes the table as the part says, and has both ends of what it closes learn so.
func (p *Part) Apply(ctx context.Context, before netns.Part) error {
	if b, ok := before.(*Part); ok && b.known != nil {
		p.known = b.known
		if differs, err := p.known.table.Differs(); err == nil && !differs && reflect.DeepEqual(b.config, p.config) {
			return nil // most netmaps say nothing new of who may talk
		}
	} else {
		listen, stop := context.WithCancel(context.Background())
		k := &known{NewTable(), stop, func() {}}
		if _, err := k.table.Watch(listen); err != nil {
			stop()
			return fmt.Errorf("%w; %w", err, netns.ErrNoWalls)
		}
		p.known = k
	}
	p.known.still()
	if err := p.known.table.Set(p.config); err != nil {
		return fmt.Errorf("%w; %w", err, netns.ErrNoWalls)
	}
	p.known.table.tried(p.known.tell(ctx)) // the wall stands all the same
	return nil
}

// Untold is why the local ends of what the last change closed were not all told; nil: they were. Such an end is reset with the
// next packet that it sends. Where a unit has no CAP_NET_RAW it is nil: that is no news.
func (p *Part) Untold() error {
	if p.known == nil {
		return nil
	}
	p.known.table.mu.Lock()
	defer p.known.table.mu.Unlock()
	return p.known.table.untold
}

// tell speaks to the ends of what is closed, once at once and then in the background.
func (k *known) tell(ctx context.Context) error {
	x, err := newTeller(k.table)
	if err != nil {
		return err
	}
	if n, err := x.tell(ctx, true); err != nil || n == 0 {
		x.close()
		k.table.forget()
		return err
	}
	again, stop := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		defer x.close()
		k.table.tried(x.again(again))
	}()
	k.still = func() { stop(); <-over }
	return nil
}

// Drift tells whether others changed the table since Apply. It does not read what is in it.
func (p *Part) Drift(context.Context) (missing, extra []string, err error) {
	if p.known == nil {
		return nil, nil, fmt.Errorf("nothing was put there")
	}
	differs, err := p.known.table.Differs()
	if differs {
		missing = []string{"# nftables table " + TableName + " as it was put there"}
	}
	return missing, nil, err
}

// Close ends the listening.
func (p *Part) Close() error {
	if p.known != nil {
		p.known.still()
		p.known.stop()
	}
	return nil
}
