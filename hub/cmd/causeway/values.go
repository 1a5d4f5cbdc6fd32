package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"causeway/hub/api"
)

// prefixes is a flag that collects CIDRs.
type prefixes []netip.Prefix

func (p *prefixes) String() string { return "" }
func (p *prefixes) Type() string   { return "CIDR" }
func (p *prefixes) Set(s string) error {
	v, err := parsePrefix(s)
	if err == nil {
		*p = append(*p, v)
	}
	return err
}

// maxAge is a flag for how long agents go on without a hub; 0 is not given.
type maxAge api.MaxAge

func (a *maxAge) String() string     { return "" }
func (a *maxAge) Type() string       { return "DURATION" }
func (a *maxAge) Set(s string) error { return (*api.MaxAge)(a).UnmarshalText([]byte(s)) }

// rotateKeys is a flag for the age at which nodes make new keys; 0 is not given.
type rotateKeys api.RotateKeys

func (r *rotateKeys) String() string { return "" }
func (r *rotateKeys) Type() string   { return "DURATION" }
func (r *rotateKeys) Set(s string) error {
	return (*api.RotateKeys)(r).UnmarshalText([]byte(s))
}

// parsePrefix takes a CIDR whose host bits are zero, as routes have them.
func parsePrefix(s string) (netip.Prefix, error) {
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

// labels is a flag that collects k=v.
type labels map[string]string

func (l *labels) String() string { return "" }
func (l *labels) Type() string   { return "KEY=VALUE" }
func (l *labels) Set(s string) error {
	k, v, ok := strings.Cut(s, "=")
	if !ok || k == "" || v == "" {
		return errors.New("not KEY=VALUE")
	}
	return l.put(k, v)
}

func (l *labels) put(k, v string) error {
	if *l == nil {
		*l = labels{}
	}
	if _, twice := (*l)[k]; twice {
		return fmt.Errorf("label %q is given twice", k)
	}
	(*l)[k] = v
	return nil
}

// parseLabelChanges reads KEY=VALUE to set and KEY- to remove. An empty value
// in the result removes.
func parseLabelChanges(args []string) (map[string]string, error) {
	var l labels
	for _, a := range args {
		k, v, set := strings.Cut(a, "=")
		if !set {
			var remove bool
			if k, remove = strings.CutSuffix(a, "-"); !remove {
				return nil, usagef("%q is neither KEY=VALUE nor KEY-", a)
			}
		}
		if k == "" || set && v == "" {
			return nil, usagef("%q is neither KEY=VALUE nor KEY-", a)
		}
		if err := l.put(k, v); err != nil {
			return nil, usage{err}
		}
	}
	return l, nil
}
