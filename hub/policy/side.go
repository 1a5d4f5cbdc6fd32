package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"causeway/hub/api"
	"causeway/protocol"
)

// side is a side of rules. Sides that say the same are one.
type side struct {
	api.PolicyEndpoint
	text string
}

// sideText says what an endpoint means, in one order: equal texts mean the same.
func sideText(e api.PolicyEndpoint) string {
	var parts []string
	add := func(name, v string) {
		if v != "" {
			parts = append(parts, name+" "+v)
		}
	}
	add("segment", e.Segment)
	add("site", e.Site)
	add("node", e.Node)
	add("labels", labelsText(e.Labels))
	if e.CIDR.IsValid() {
		add("cidr", e.CIDR.String())
	}
	add("pods", labelsText(e.Pods))
	return strings.Join(parts, ", ")
}

func labelsText(l map[string]string) string {
	var kv []string
	for _, k := range slices.Sorted(maps.Keys(l)) {
		kv = append(kv, k+"="+l[k])
	}
	return strings.Join(kv, ",")
}

// CheckEndpoint says what is wrong with what somebody wrote as a side of a rule.
func CheckEndpoint(e api.PolicyEndpoint) error {
	for i, name := range []string{e.Segment, e.Site, e.Node} {
		if name != "" && !protocol.ValidName(name) {
			return fmt.Errorf("%s: %.80q cannot name one", []string{"segment", "site", "node"}[i], name)
		}
	}
	for i, l := range []map[string]string{e.Labels, e.Pods} {
		if err := protocol.CheckLabels(l); err != nil {
			return fmt.Errorf("%s: %w", []string{"labels", "pods"}[i], err)
		}
	}
	switch {
	case sideText(e) == "":
		return fmt.Errorf("say who, by one or more of segment, site, node, labels, cidr and pods")
	case e.CIDR.IsValid() && e.CIDR != e.CIDR.Masked():
		return fmt.Errorf("cidr: %s has bits beyond its length; write %s", e.CIDR, e.CIDR.Masked())
	case e.CIDR.IsValid() && e.CIDR.Addr().Is4In6():
		return fmt.Errorf("cidr: %s is an IPv4 range written as IPv6; write it as IPv4", e.CIDR)
	}
	return nil
}

// at reports whether an address at node n, which is in segment, may be meant, as far as the node tells.
func (s *side) at(n *Node, segment string) bool {
	return (s.Segment == "" || s.Segment == segment) && (s.Site == "" || s.Site == n.Site) && (s.Node == "" || s.Node == n.Name) && hasAll(n.Labels, s.Labels)
}

// means reports whether addresses in p of a node which at meant are meant.
func (s *side) means(p netip.Prefix, own bool, pod map[string]string) bool {
	switch {
	case s.CIDR.IsValid() && !within(p, s.CIDR), len(s.Pods) > 0 && !hasAll(pod, s.Pods):
		return false
	}
	return s.Node == "" || own || s.CIDR.IsValid() || len(s.Pods) > 0
}

func hasAll(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// within reports whether all of p is in q.
func within(p, q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) }
