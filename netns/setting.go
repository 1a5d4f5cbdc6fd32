package netns

import (
	"fmt"
	"slices"
	"strings"

	"causeway/netns/internal/kernel"
)

// unset words that a setting could not be set: what does not work without it, and what
// to do. Where /proc/sys is read-only, as in containers, only somebody outside can.
func (p Plan) unset(s sysctl, err error) Failure {
	what, needed := p.without(s)
	return Failure{Kind: Sysctls, Line: s.line(), Harmless: !needed,
		Err: fmt.Errorf("%w: %s; set it by '%s', from outside if this is a container", err, what, s.line())}
}

// without says what the plan lacks where a setting has another value, and whether
// anything needs it now.
func (p Plan) without(s sysctl) (what string, needed bool) {
	name := s.key[strings.LastIndexAny(s.key, "./")+1:]
	switch {
	case name == "forwarding":
		if !p.local(s.key == forward6) {
			return "nothing behind this host needs it by now", false
		}
		return "pods and LANs behind this host reach no other site and are reached by none; the host itself does", true
	case name == "src_valid_mark", name == "rp_filter":
		if !strict() {
			return "no interface checks sources strictly, so that nothing needs it by now", false
		}
		return "an interface checks sources strictly, and the kernel may drop packets whose way back it takes for another", true
	case name == "disable_ipv6":
		return "the overlay and other sites are not reached by IPv6", true
	case name == "ignore_routes_with_linkdown":
		return "while no agent runs, packets for other sites may take the host's default route", true
	}
	return "nothing that works needs it", false
}

// leftSettings are those that a plan may have set, have that value, and of which the record
// does not say what they were.
func leftSettings(rec *record) (out []string) {
	for _, k := range kernel.PerInterface("ipv4", "src_valid_mark") {
		if v, err := kernel.ReadSysctl(k); err == nil && v == "1" && !rec.hasSysctl(k) {
			out = append(out, k+"="+v)
		}
	}
	return out
}

// strict reports whether some interface of the host, ours too, checks sources strictly.
func strict() bool {
	return slices.ContainsFunc(kernel.PerInterface("ipv4", "rp_filter"), func(k string) bool {
		v, err := kernel.ReadSysctl(k)
		return err == nil && v == "1" && !strings.Contains(k, ".conf.default.")
	})
}

// TurnedOn are the host's settings that an agent has turned on: the interfaces that forward
// IPv4 for the tunnel, whether the host forwards IPv6 for it, and the interfaces that check
// sources strictly and by the mark; the last may be somebody else's doing.
func TurnedOn() (v4 []string, v6 bool, marks []string) {
	for _, k := range kernel.PerInterface("ipv4", "forwarding") {
		if v, err := kernel.ReadSysctl(k); err == nil && v == forwardMark {
			v4 = append(v4, kernel.ConfDev(k))
		}
	}
	v, err := kernel.ReadSysctl(forward6)
	for _, k := range kernel.PerInterface("ipv4", "src_valid_mark") {
		if v, err := kernel.ReadSysctl(k); err == nil && v == "1" && strictOn(kernel.ConfDev(k)) {
			marks = append(marks, kernel.ConfDev(k))
		}
	}
	return v4, err == nil && v == forwardMark, marks
}
