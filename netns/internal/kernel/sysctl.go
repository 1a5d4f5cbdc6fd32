package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ConfKey is the name of an interface's setting, as sysctl(8) takes it: with slashes where
// the interface's name has dots.
func ConfKey(proto, dev, name string) string {
	if strings.Contains(dev, ".") {
		return "net/" + proto + "/conf/" + dev + "/" + name
	}
	return "net." + proto + ".conf." + dev + "." + name
}

// ConfDev is the interface of a confKey.
func ConfDev(key string) string { return filepath.Base(filepath.Dir(SysctlPath(key))) }

// SysctlPath maps net.ipv4.conf.eth0.rp_filter to its file. An interface whose name has dots stands between
// slashes, and in the record of an agent of before between dots, too.
func SysctlPath(key string) string {
	if strings.Contains(key, "/") {
		return filepath.Join("/proc/sys", key)
	}
	parts := strings.Split(key, ".")
	if n := len(parts); n > 5 && parts[2] == "conf" {
		parts = []string{parts[0], parts[1], parts[2], strings.Join(parts[3:n-1], "."), parts[n-1]}
	}
	return filepath.Join(append([]string{"/proc/sys"}, parts...)...)
}

// ReadSysctl reads a setting.
func ReadSysctl(key string) (string, error) {
	b, err := os.ReadFile(SysctlPath(key))
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", key, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// WriteSysctl sets one.
func WriteSysctl(key, value string) error {
	if err := os.WriteFile(SysctlPath(key), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl %s=%s: %w", key, value, err)
	}
	return nil
}

// PerInterface lists the keys of one setting for all interfaces, 'all' and
// 'default' among them.
func PerInterface(proto, name string) []string {
	m, _ := filepath.Glob("/proc/sys/net/" + proto + "/conf/*/" + name) // fails on a bad pattern only
	for i, f := range m {
		m[i] = ConfKey(proto, filepath.Base(filepath.Dir(f)), name)
	}
	return m
}
