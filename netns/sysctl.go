package netns

import (
	"strings"

	"causeway/netns/internal/kernel"
)

// setSysctl brings one setting to its value, having recorded what was there, which it returns:
// the value itself where nothing is changed. Settings of our own interface go away with it and
// are not recorded, nor is forwarding, which its value tells to be ours.
func (h *Host) setSysctl(rec *record, s sysctl, own bool) (was string, err error) {
	now, err := kernel.ReadSysctl(s.key)
	if err != nil {
		return "", err
	}
	marked := s.value == forwardMark
	switch {
	case now == s.value:
		return now, nil
	case marked && now == "1" && !rec.hasSysctl(forward4) && !rec.hasSysctl(forward6):
		return s.value, nil // somebody else's by now
	}
	h.log.Debug().Str("sysctl", s.key).Str("was", now).Str("value", s.value).Msg("set sysctl")
	if s.key == forward6 {
		return now, h.setForward6(rec, s.value)
	}
	if !own && !marked && !rec.hasSysctl(s.key) {
		rec.Sysctls = append(rec.Sysctls, savedSysctl{Key: s.key, Was: now, Set: s.value})
		if err := h.writeRecord(rec); err != nil {
			return "", err
		}
	}
	return now, kernel.WriteSysctl(s.key, s.value)
}

// routerAdvertisements lists what keeps the host's own IPv6 addresses and
// default route alive when it begins to forward: an interface that takes router
// advertisements (accept_ra 1) stops to do so unless told 2.
func routerAdvertisements() []savedSysctl {
	var out []savedSysctl
	for _, k := range kernel.PerInterface("ipv6", "accept_ra") {
		if strings.Contains(k, ".conf.all.") || strings.Contains(k, ".conf.default.") || strings.Contains(k, ".conf.lo.") {
			continue
		}
		if v, err := kernel.ReadSysctl(k); err == nil && v == "1" {
			out = append(out, savedSysctl{Key: k, Was: "1", Set: "2"})
		}
	}
	return out
}

// restoreSysctls puts back what was recorded, unless someone else has changed it since, and
// forgets it. keep names settings that others need by now, wanted those that are to stay, as
// they are and in the record.
func (h *Host) restoreSysctls(rec *record, wanted, keep func(key string) bool) error {
	undone := map[string]bool{}
	var left []savedSysctl
	for i, s := range rec.Sysctls {
		if s.Beside == "" && wanted(s.Key) || s.Beside != "" && wanted(s.Beside) {
			left = append(left, s)
			continue
		}
		if s.Beside != "" {
			if !undone[s.Beside] {
				continue
			}
		} else {
			if now, err := kernel.ReadSysctl(s.Key); err != nil || now != s.Set && now != s.Was {
				continue // gone with its interface, or set by someone else since
			}
			if keep(s.Key) {
				h.log.Info().Str("sysctl", s.Key).Msg("left sysctl as it is: other programs need it by now")
				continue
			}
			undone[s.Key] = true
		}
		if now, err := kernel.ReadSysctl(s.Key); err != nil || now == s.Was {
			continue
		}
		if err := kernel.WriteSysctl(s.Key, s.Was); err != nil {
			rec.Sysctls = append(left, rec.Sysctls[i:]...)
			return err
		}
	}
	rec.Sysctls = left
	return nil
}
