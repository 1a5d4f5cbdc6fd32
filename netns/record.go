package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"causeway/internal/durable"
	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// recordName is the file in the state directory that says what was changed
// beyond our own objects. It is on disk before the change.
const recordName = "host.json"

const (
	recordVersion = 1
	maxRecord     = 1 << 20
)

// record is what Remove needs to put the host back.
type record struct {
	Version   int             `json:"v"`
	Interface string          `json:"interface"`
	Table     int             `json:"table"`
	Index     int             `json:"index,omitempty"` // of the interface, whatever it is called
	Boot      string          `json:"boot,omitempty"`  // of the host that Sysctls are of: a reboot takes them back
	Lost      bool            `json:"lost,omitempty"`  // an earlier record was; what it said of settings is not known
	Sysctls   []savedSysctl   `json:"sysctls,omitempty"`
	Firewall  []savedFirewall `json:"firewall,omitempty"`
	Raw       []savedFirewall `json:"raw,omitempty"` // in table raw
	Hairpin   []savedPort     `json:"hairpin,omitempty"`
}

// savedSysctl is a setting as it was. Set is what we wrote; a setting with
// Beside was changed by the kernel when that key was written.
type savedSysctl struct {
	Key    string `json:"key"`
	Was    string `json:"was"`
	Set    string `json:"set,omitempty"`
	Beside string `json:"beside,omitempty"`
}

// savedFirewall is a rule that we put into another tool's chain, in the words
// of an iptables program: -I CHAIN made it, -D CHAIN takes it back.
type savedFirewall struct {
	Program string   `json:"program"`
	Table   string   `json:"table,omitempty"` // empty: filter
	Chain   string   `json:"chain"`
	Rule    []string `json:"rule"`
}

func (r *record) hasSysctl(key string) bool {
	return slices.ContainsFunc(r.Sysctls, func(s savedSysctl) bool { return s.Key == key && s.Beside == "" })
}

// file is how the record is kept: nobody else knows what was there before.
func (h *Host) file() durable.Side {
	return durable.Side{Path: filepath.Join(h.stateDir, recordName), Max: maxRecord, Twice: true}
}

// readRecord returns the record, an empty one if there is none. One that is damaged, with
// its copy, is made anew from what can be found on the host: rules in others' chains are
// found by their words; settings that have our value by now may have had it before,
// so that Remove leaves and names them. An error is a shortage.
func (h *Host) readRecord(ctx context.Context, dev string) (*record, error) {
	var r record
	err := h.file().Load(&r, func() error { return r.check() })
	var d *durable.Damage
	switch {
	case err == nil:
		return r.sinceBoot(), nil
	case errors.Is(err, fs.ErrNotExist):
		return (&record{Version: recordVersion}).sinceBoot(), nil
	case !errors.As(err, &d):
		return nil, fmt.Errorf("read host record: %w", err)
	case d.Copied:
		h.log.Warn().Err(err).Msg("the record of the host's settings is damaged")
		return r.sinceBoot(), nil
	}
	h.log.Error().Err(errors.Join(err, h.file().SetAside())).Msg("the record of the host's settings is damaged, and made anew from what is found: settings that are as the agent wants them are left so when it leaves")
	return (&record{Version: recordVersion, Lost: true, Firewall: foundFirewalls(ctx, dev), Raw: foundRaw(ctx, dev)}).sinceBoot(), nil
}

// sinceBoot is r without settings of before the host's last boot.
func (r *record) sinceBoot() *record {
	now, err := kernel.ReadSysctl("kernel.random.boot_id")
	if err == nil && r.Boot != now {
		if r.Boot != "" {
			r.Sysctls, r.Hairpin = nil, nil
		}
		r.Boot = now
	}
	return r
}

// check refuses what no agent writes. The file belongs to the agent's user, and
// 'leave' acts on it as root.
func (r *record) check() error {
	programs := []string{"iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"}
	if r.Version != recordVersion {
		return fmt.Errorf("version %d is not %d, which this build knows", r.Version, recordVersion)
	}
	for _, s := range r.Sysctls {
		if !strings.HasPrefix(s.Key, "net.ipv") && !strings.HasPrefix(s.Key, "net/ipv") || strings.Contains(s.Key, "..") || len(s.Key) > 128 {
			return fmt.Errorf("%.128q is no setting of ours", s.Key)
		}
	}
	for _, s := range r.Hairpin {
		if s.Name == "" || len(s.Name) > maxInterface || s.Index <= 0 {
			return fmt.Errorf("%.40q is no port of a bridge", s.Name)
		}
	}
	for _, f := range r.Firewall {
		ours := slices.ContainsFunc(accepts(r.Interface), func(rule []string) bool { return slices.Equal(rule, f.Rule) })
		if !slices.Contains(programs, f.Program) || f.Table != "" || f.Chain != dockerUser || !ours {
			return fmt.Errorf("%.40q in chain %.40q is no rule of ours", f.Program, f.Chain)
		}
	}
	for _, f := range r.Raw {
		if !slices.Contains(programs, f.Program) || f.Table != "raw" || f.Chain != kernel.RawChain || !isRawAccept(f.Rule, r.Interface) {
			return fmt.Errorf("%.40q in table %.40q is no rule of ours", f.Program, f.Table)
		}
	}
	return nil
}

// writeRecord replaces the record; it is durable when this returns.
func (h *Host) writeRecord(r *record) error {
	if err := h.file().Save(r); err != nil {
		return fmt.Errorf("write host record: %w", err)
	}
	return nil
}

func (h *Host) deleteRecord() error {
	if err := h.file().Remove(); err != nil {
		return fmt.Errorf("remove host record: %w", err)
	}
	return nil
}

// Disk is the file system of the state directory; nil if it cannot be asked.
func (h *Host) Disk() *protocol.DiskSpace {
	var st unix.Statfs_t
	if err := unix.Statfs(h.stateDir, &st); err != nil {
		return nil
	}
	return &protocol.DiskSpace{Path: h.stateDir, Free: st.Bavail * uint64(st.Bsize), Total: st.Blocks * uint64(st.Bsize)}
}
