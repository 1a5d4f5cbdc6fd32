package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// sysctlPath maps net.ipv4.conf.eth0.5.rp_filter to its file. An interface
// name may hold dots, so that only the first three and the last are separators
// in a conf key.
func sysctlPath(key string) string {
	f := strings.Split(key, ".")
	if len(f) > 5 && f[2] == "conf" {
		f = []string{f[0], f[1], f[2], strings.Join(f[3:len(f)-1], "."), f[len(f)-1]}
	}
	return filepath.Join(append([]string{"/proc/sys"}, f...)...)
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

// side lists the keys that the kernel changes by itself when key is written:
// forwarding switches every interface's own setting and, in IPv4, redirects.
func side(key string) []string {
	switch key {
	case "net.ipv4.ip_forward":
		return append(perInterface("ipv4", "forwarding"), "net.ipv4.conf.all.accept_redirects")
	case "net.ipv6.conf.all.forwarding":
		return perInterface("ipv6", "forwarding")
	}
	return nil
}

// perInterface lists the keys of one setting for all interfaces, 'all' and
// 'default' among them.
func perInterface(proto, name string) []string {
	m, _ := filepath.Glob("/proc/sys/net/" + proto + "/conf/*/" + name) // fails on a bad pattern only
	for i, f := range m {
		m[i] = "net." + proto + ".conf." + filepath.Base(filepath.Dir(f)) + "." + name
	}
	return m
}

// setSysctl brings one setting to its value, having recorded what was there
// and what the kernel will change beside it. Settings of our own interface go
// away with it and are not recorded.
func (h *Host) setSysctl(rec *record, s sysctl, own bool) error {
	now, err := readSysctl(s.key)
	if err != nil {
		return err
	}
	if now == s.value {
		return nil
	}
	if !own && !rec.hasSysctl(s.key) {
		rec.Sysctls = append(rec.Sysctls, savedSysctl{Key: s.key, Was: now, Set: s.value})
		for _, k := range side(s.key) {
			if v, err := readSysctl(k); err == nil && k != s.key {
				rec.Sysctls = append(rec.Sysctls, savedSysctl{Key: k, Was: v, Beside: s.key})
			}
		}
		if s.key == "net.ipv6.conf.all.forwarding" {
			rec.Sysctls = append(rec.Sysctls, routerAdvertisements()...)
		}
		if err := h.writeRecord(rec); err != nil {
			return err
		}
	}
	if s.key == "net.ipv6.conf.all.forwarding" {
		for _, r := range rec.Sysctls {
			if v, err := readSysctl(r.Key); strings.HasSuffix(r.Key, ".accept_ra") && err == nil && v == r.Was {
				if err := writeSysctl(r.Key, r.Set); err != nil {
					return err
				}
			}
		}
	}
	h.log.Debug().Str("sysctl", s.key).Str("was", now).Str("value", s.value).Msg("set sysctl")
	return writeSysctl(s.key, s.value)
}

// routerAdvertisements lists what keeps the host's own IPv6 addresses and
// default route alive once it forwards: an interface that takes router
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

// restoreSysctls puts back what setSysctl changed, unless someone else has
// changed it since. keep names settings that others need by now.
func (h *Host) restoreSysctls(rec *record, keep func(key string) bool) error {
	undone := map[string]bool{}
	for _, s := range rec.Sysctls {
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
			return err
		}
	}
	return nil
}
