package frame

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Prefixes is a flag that collects CIDRs.
type Prefixes []netip.Prefix

// String is empty: there is no default.
func (p *Prefixes) String() string { return "" }

// Type names the value in help.
func (p *Prefixes) Type() string { return "CIDR" }

// Set takes one more.
func (p *Prefixes) Set(s string) error {
	v, err := ParsePrefix(s)
	if err == nil {
		*p = append(*p, v)
	}
	return err
}

// ParsePrefix takes a CIDR whose host bits are zero, as routes have them.
func ParsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, errors.New("not a CIDR such as 10.1.0.0/16 or fd00:1::/64")
	}
	if p != p.Masked() {
		return p, fmt.Errorf("bits are set beyond the prefix length, did you mean %s?", p.Masked())
	}
	if p.Addr().Is4In6() {
		return p, errors.New("IPv4 inside IPv6: write it as IPv4")
	}
	return p, nil
}

// Labels is a flag that collects k=v.
type Labels map[string]string

// String is empty: there is no default.
func (l *Labels) String() string { return "" }

// Type names the value in help.
func (l *Labels) Type() string { return "KEY=VALUE" }

// Set takes one more.
func (l *Labels) Set(s string) error {
	k, v, ok := strings.Cut(s, "=")
	if !ok || k == "" || v == "" {
		return errors.New("not KEY=VALUE")
	}
	return l.put(k, v)
}

func (l *Labels) put(k, v string) error {
	if *l == nil {
		*l = Labels{}
	}
	if _, twice := (*l)[k]; twice {
		return fmt.Errorf("label %q is given twice", k)
	}
	(*l)[k] = v
	return nil
}

// ParseLabelChanges reads KEY=VALUE to set and KEY- to remove. An empty value
// in the result removes.
func ParseLabelChanges(args []string) (map[string]string, error) {
	var l Labels
	for _, a := range args {
		k, v, set := strings.Cut(a, "=")
		if !set {
			var remove bool
			if k, remove = strings.CutSuffix(a, "-"); !remove {
				return nil, Usagef("%q is neither KEY=VALUE nor KEY-", a)
			}
		}
		if k == "" || set && v == "" {
			return nil, Usagef("%q is neither KEY=VALUE nor KEY-", a)
		}
		if err := l.put(k, v); err != nil {
			return nil, usage{err}
		}
	}
	return l, nil
}
