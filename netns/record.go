package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"causeway/internal/durable"
)

// recordName is the file in the state directory that says what was changed
// beyond our own objects. It is on disk before the change.
const recordName = "host.json"

const recordVersion = 1

// maxRecord bounds what is read of it; a rule of each kind in each program takes a tenth of it.
const maxRecord = 256 << 10

// ErrRecord says that the record does not read, so that it is not known how these were before.
var ErrRecord = errors.New("the kernel's settings, and rules in other tools' chains, could not be put back")

// record is what Remove needs to put the host back.
type record struct {
	Version   int             `json:"v"`
	Interface string          `json:"interface"`
	Table     int             `json:"table"`
	Sysctls   []savedSysctl   `json:"sysctls,omitempty"`
	Firewall  []savedFirewall `json:"firewall,omitempty"`
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
	Chain   string   `json:"chain"`
	Rule    []string `json:"rule"`
}

func (r *record) hasSysctl(key string) bool {
	return slices.ContainsFunc(r.Sysctls, func(s savedSysctl) bool { return s.Key == key && s.Beside == "" })
}

func (h *Host) recordPath() string { return filepath.Join(h.stateDir, recordName) }

// readRecord returns nil if there is none.
func (h *Host) readRecord() (*record, error) {
	b, err := durable.ReadFile(h.recordPath(), maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read host record: %w", err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("host record %s is damaged: %w; it says how to put the host's settings back: restore it, or remove it and check the sysctls yourself", h.recordPath(), err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("host record %s has version %d, this build knows %d", h.recordPath(), r.Version, recordVersion)
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("host record %s: %w; no agent wrote that: remove the file and check the sysctls yourself", h.recordPath(), err)
	}
	return &r, nil
}

// check refuses what no agent writes. The file belongs to the agent's user, and
// 'leave' acts on it as root.
func (r *record) check() error {
	for _, s := range r.Sysctls {
		if !strings.HasPrefix(s.Key, "net.ipv") || strings.Contains(s.Key, "/") || strings.Contains(s.Key, "..") || len(s.Key) > 128 {
			return fmt.Errorf("%.128q is no setting of ours", s.Key)
		}
	}
	for _, f := range r.Firewall {
		ours := slices.ContainsFunc(accepts(r.Interface), func(rule []string) bool { return slices.Equal(rule, f.Rule) })
		if !slices.Contains([]string{"iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"}, f.Program) || f.Chain != dockerUser || !ours {
			return fmt.Errorf("%.40q in chain %.40q is no rule of ours", f.Program, f.Chain)
		}
	}
	return nil
}

// writeRecord replaces the record; it is durable when this returns.
func (h *Host) writeRecord(r *record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode host record: %w", err)
	}
	if err := durable.WriteFile(h.recordPath(), append(b, '\n')); err != nil {
		return fmt.Errorf("write host record: %w", err)
	}
	return nil
}

func (h *Host) deleteRecord() error {
	for _, path := range []string{durable.Temp(h.recordPath()), h.recordPath()} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove host record: %w", err)
		}
	}
	return nil
}
