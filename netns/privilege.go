package netns

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
)

// Errors of CheckHost.
var (
	ErrPrivilege = errors.New("neither root nor CAP_NET_ADMIN: run as root, or give the service AmbientCapabilities=CAP_NET_ADMIN")
	ErrNoNft     = errors.New("the program nft is missing: install the package nftables")
)

// CheckHost says in one line why this process cannot set up the host's
// network: ErrPrivilege or ErrNoNft.
func CheckHost() error {
	if err := checkPrivilege(); err != nil {
		return err
	}
	if _, err := nftPath(); err != nil {
		return err
	}
	return nil
}

func checkPrivilege() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return ErrPrivilege
	}
	return nil
}

func nftPath() (string, error) {
	p, err := kernel.LookPath("nft")
	if err != nil {
		return "", ErrNoNft
	}
	return p, nil
}

// HasIPv6 reports whether the network namespace has IPv6 and has it enabled: for all links,
// or for one of them after it was disabled for all.
func HasIPv6() bool {
	s, err := kernel.ReadSysctl("net.ipv6.conf.all.disable_ipv6")
	if err != nil || s == "0" {
		return err == nil
	}
	return slices.ContainsFunc(kernel.PerInterface("ipv6", "disable_ipv6"), func(key string) bool {
		if strings.Contains(key, ".conf.default.") || strings.Contains(key, ".conf.lo.") {
			return false
		}
		s, err := kernel.ReadSysctl(key)
		return err == nil && s == "0"
	})
}
