package netns

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
)

// ourRoutes are the entries of a table that carry our protocol number.
func ourRoutes(v6 bool, table int) ([]netlink.Route, error) {
	rs, err := kernel.Retry(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(kernel.Family(v6), &netlink.Route{Table: table, Protocol: RouteProtocol}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes of table %d: %w", table, err)
	}
	return slices.DeleteFunc(rs, func(r netlink.Route) bool { return r.Protocol != RouteProtocol }), nil
}

func deleteRoutes(rs []netlink.Route, f *Failures) {
	for i := range rs {
		if err := netlink.RouteDel(&rs[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			what := fmt.Sprintf("delete route %s table %d", rs[i].Dst, rs[i].Table)
			f.add(Routes, what, fmt.Errorf("%s: %w", what, err))
		}
	}
}

// ourRules are the rules that look into our table.
func ourRules(v6 bool, table int) ([]netlink.Rule, error) {
	rs, err := kernel.Retry(func() ([]netlink.Rule, error) { return netlink.RuleList(kernel.Family(v6)) })
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	rs = slices.DeleteFunc(rs, func(r netlink.Rule) bool { return r.Table != table })
	for i := range rs {
		rs[i].Family = kernel.Family(v6)
	}
	return rs, nil
}

func rightRule(r netlink.Rule, p Plan) bool {
	return r.Invert && r.Mark == p.Mark && r.Priority == RulePreference && r.Protocol == RouteProtocol &&
		r.Src == nil && r.Dst == nil && r.IifName == "" && r.OifName == "" && (r.Mask == nil || *r.Mask == ^uint32(0))
}

// HasRule reports whether the rule that leads a family into the tunnel's table is there.
func (p Plan) HasRule(v6 bool) (bool, error) {
	l, err := ourRules(v6, p.Table)
	return slices.ContainsFunc(l, func(r netlink.Rule) bool { return rightRule(r, p) }), err
}

func applyRules(p Plan, f *Failures) {
	for _, v6 := range kernel.Families() {
		line := ruleLine(v6, p.Mark, p.Table, RulePreference)
		have, err := ourRules(v6, p.Table)
		if err != nil {
			f.add(Rules, line, err)
			continue
		}
		found := !p.has(v6)
		for i := range have {
			if !found && rightRule(have[i], p) {
				found = true
				continue
			}
			if err := netlink.RuleDel(&have[i]); err != nil && !errors.Is(err, unix.ENOENT) {
				f.add(Rules, have[i].String(), fmt.Errorf("delete rule %s: %w", have[i], err))
			}
		}
		if found {
			continue
		}
		r := netlink.NewRule()
		r.Family, r.Invert, r.Mark, r.Table = kernel.Family(v6), true, p.Mark, p.Table
		r.Priority, r.Protocol = RulePreference, RouteProtocol
		if err := netlink.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			f.add(Rules, line, fmt.Errorf("add rule not fwmark 0x%x lookup %d: %w", p.Mark, p.Table, err))
		}
	}
}
