package netns

import (
	"context"
	"encoding/json"
	"os"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/internal/durable"
)

// Whoever has the agent's user writes this file, and root acts on it.
func TestRecordIsNotBelieved(t *testing.T) {
	h := NewHost(t.TempDir(), zerolog.Nop())
	good := record{Version: recordVersion, Interface: "cw0", Sysctls: []savedSysctl{{Key: "net.ipv4.conf.eth0.5.rp_filter", Was: "1", Set: "2"}},
		Firewall: []savedFirewall{{Program: "iptables-nft", Chain: dockerUser, Rule: accepts("cw0")[0]}}}
	write := func(change func(*record)) {
		b, err := json.Marshal(good)
		require.NoError(t, err)
		var r record
		require.NoError(t, json.Unmarshal(b, &r))
		change(&r)
		b, err = json.Marshal(r)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(h.file().Path, b, 0o600))
	}
	write(func(*record) {})
	rec, err := h.readRecord(context.Background(), "cw0")
	require.NoError(t, err)
	require.False(t, rec.Lost)
	for name, change := range map[string]func(*record){
		"sysctl":    func(r *record) { r.Sysctls[0].Key = "kernel.core_pattern" },
		"path":      func(r *record) { r.Sysctls[0].Key = "net.ipv4./../../kernel/core_pattern" },
		"parent":    func(r *record) { r.Sysctls[0].Key = "net.ipv4.conf....x" },
		"program":   func(r *record) { r.Firewall[0].Program = "/tmp/x" },
		"chain":     func(r *record) { r.Firewall[0].Chain = "INPUT" },
		"rule":      func(r *record) { r.Firewall[0].Rule = []string{"-j", "ACCEPT"} },
		"interface": func(r *record) { r.Interface = "eth0" },
	} {
		t.Run(name, func(t *testing.T) {
			write(change)
			rec, err := h.readRecord(context.Background(), "cw0")
			require.NoError(t, err)
			require.Equal(t, &record{Version: recordVersion, Boot: rec.Boot, Lost: true}, rec, "nothing of it is believed")
			require.FileExists(t, durable.Bad(h.file().Path))
		})
	}
}

// What a boot took back is not put back once more: the host has it from elsewhere by now.
func TestRecordIsOfThisBoot(t *testing.T) {
	h := host(t)
	sh(t, "sysctl -qw net.ipv4.conf.eth0.src_valid_mark=1")
	rec := record{Version: recordVersion, Interface: "cw0", Table: DefaultTable, Boot: "of before", Sysctls: []savedSysctl{{Key: "net.ipv4.conf.eth0.src_valid_mark", Was: "0", Set: "1"}}}
	require.NoError(t, h.writeRecord(&rec))
	require.NoError(t, h.Remove(context.Background(), testConfig()))
	require.Equal(t, "1\n", sh(t, "sysctl -n net.ipv4.conf.eth0.src_valid_mark"))
}
