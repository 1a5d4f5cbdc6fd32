package inventory

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

func TestDecode(t *testing.T) {
	good := `{"v":1,"hostname":"h","os":"x\u001b[2J","labels":{"rack":"a\u001b[2J"},"interfaces":[{"name":"eth0"}]}`
	f, err := decode("causeway.v1.inventory.idc-sh.7.snapshot", []byte(good))
	require.NoError(t, err)
	require.Equal(t, protocol.NodeNumber(7), f.Number)
	require.Equal(t, "idc-sh", f.Site)
	require.Equal(t, "x [2J", f.OS)
	require.Equal(t, "a [2J", f.Labels["rack"])
	b, err := json.Marshal(f)
	require.NoError(t, err)
	require.NotContains(t, string(b), "null", "a list is a list, empty or not")
	many, err := json.Marshal(protocol.Inventory{Version: 1, Hostname: "h", Interfaces: make([]protocol.Interface, maxInterfaces+1)})
	require.NoError(t, err)
	for _, tt := range []struct{ subject, data string }{
		{"causeway.v1.inventory.idc-sh.0.snapshot", good},
		{"causeway.v1.inventory.idc-sh.16777216.snapshot", good},
		{"causeway.v1.inventory.idc-sh.-7.snapshot", good},
		{"causeway.v1.inventory.idc-sh.7.teleport", good},
		{"causeway.v1.inventory.idc-sh.7", good},
		{"causeway.v1.inventory.IDC.7.snapshot", good},
		{"other.idc-sh.7.snapshot", good},
		{"causeway.v1.inventory.idc-sh.7.snapshot", `{"v":1}`},
		{"causeway.v1.inventory.idc-sh.7.snapshot", `{"v":9,"hostname":"h"}`},
		{"causeway.v1.inventory.idc-sh.7.snapshot", `{"stream":"CAUSEWAY_INVENTORY","seq":3}`},
		{"causeway.v1.inventory.idc-sh.7.snapshot", string(many)},
		{"causeway.v1.inventory.idc-sh.7.snapshot", strings.Repeat(" ", protocol.MaxInventory) + good},
	} {
		_, err := decode(tt.subject, []byte(tt.data))
		require.Error(t, err, "%s %.60s", tt.subject, tt.data)
	}
}

// Agents are foreign code: no payload may panic, and what is kept is the
// subject's node and bounded.
func FuzzDecode(f *testing.F) {
	f.Add("causeway.v1.inventory.idc-sh.7.snapshot", []byte(`{"v":1,"hostname":"h","interfaces":[{"name":"eth0"}]}`))
	f.Fuzz(func(t *testing.T, subject string, data []byte) {
		got, err := decode(subject, data)
		if err == nil && (!got.Number.Valid() || !protocol.ValidName(got.Site) || len(got.Hostname) > maxText) {
			t.Fatalf("%+v", got)
		}
	})
}
