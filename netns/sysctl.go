package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// confKey is the name of an interface's setting, as sysctl(8) takes it: with slashes where
// the interface's name has dots.
func confKey(proto, dev, name string) string {
	if strings.Contains(dev, ".") {
		return "net/" + proto + "/conf/" + dev + "/" + name
	}
	return "net." + proto + ".conf." + dev + "." + name
}

// confDev is the interface of a confKey.
func confDev(key string) string { return filepath.Base(filepath.Dir(sysctlPath(key))) }

// sysctlPath maps net.ipv4.conf.eth0.rp_filter to its file. An interface whose name has dots stands between
// slashes, and in the record of an agent of before between dots, too.
func sysctlPath(key string) string {
	if strings.Contains(key, "/") {
		return filepath.Join("/proc/sys", key)
	}
	parts := strings.Split(key, ".")
	if n := len(parts); n > 5 && parts[2] == "conf" {
		parts = []string{parts[0], parts[1], parts[2], strings.Join(parts[3:n-1], "."), parts[n-1]}
	}
	return filepath.Join(append([]string{"/proc/sys"}, parts...)...)
}

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile(sysctlPath(key))
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", key, err)
	}
	return strings.TrimSpace(string(b)), nil
}

func writeSysctl(key, value string) error {
	if err := os.WriteFile(sysctlPath(key), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl %s=%s: %w", key, value, err)
	}
	return nil
}

// perInterface lists the keys of one setting for all interfaces, 'all' and
// 'default' among them.
func perInterface(proto, name string) []string {
	m, _ := filepath.Glob("/proc/sys/net/" + proto + "/conf/*/" + name) // fails on a bad pattern only
	for i, f := range m {
		m[i] = confKey(proto, filepath.Base(filepath.Dir(f)), name)
	}
	return m
}

// setSysctl brings one setting to its value, having recorded what was there, which it returns:
// the value itself where nothing is changed. Settings of our own interface go away with it and
// are not recorded, nor is forwarding, which its value tells to be ours.
func (h *Host) setSysctl(rec *record, s sysctl, own bool) (was string, err error) {
	now, err := readSysctl(s.key)
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
	return now, writeSysctl(s.key, s.value)
}

// routerAdvertisements lists what keeps the host's own IPv6 addresses and
// default route alive when it begins to forward: an interface that takes router
// advertisements (accept_ra 1) stops to do so unless told 2.
func routerAdvertisements() []savedSysctl {
	var out []savedSysctl
	for _, k := range perInterface("ipv6", "accept_ra") {
		if strings.Contains(k, ".conf.all.") || strings.Contains(k, ".conf.default.") || strings.Contains(k, ".conf.lo.") {
			continue
		}
		if v, err := readSysctl(k); err == nil && v == "1" {
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
			if now, err := readSysctl(s.Key); err != nil || now != s.Set && now != s.Was {
				continue // gone with its interface, or set by someone else since
			}
			if keep(s.Key) {
				h.log.Info().Str("sysctl", s.Key).Msg("left sysctl as it is: other programs need it by now")
				continue
			}
			undone[s.Key] = true
		}
		if now, err := readSysctl(s.Key); err != nil || now == s.Was {
			continue
		}
		if err := writeSysctl(s.Key, s.Was); err != nil {
			rec.Sysctls = append(left, rec.Sysctls[i:]...)
			return err
		}
	}
	rec.Sysctls = left
	return nil
}
