package protocol

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseFactSubject(t *testing.T) {
	for s, want := range map[string]FactOrigin{
		InventorySubject("idc-sh", 7):          {"idc-sh", 7, FactSnapshot},
		DeltaSubject("idc-sh", MaxNodeNumber):  {"idc-sh", MaxNodeNumber, FactDelta},
		"causeway.v1.inventory.a.1.incident":   {"a", 1, FactIncident},
		SwitchesSubject("idc-sh", 7):           {"idc-sh", 7, FactSwitches},
		"causeway.v1.inventory.idc-sh.7.delta": {"idc-sh", 7, FactDelta},
	} {
		o, err := ParseFactSubject(s)
		require.NoError(t, err)
		require.Equal(t, want, o)
	}
	for _, s := range []string{"causeway.v1.inventory.idc-sh.0.snapshot", "causeway.v1.inventory.idc-sh.16777216.snapshot", "causeway.v1.inventory.idc-sh.-7.snapshot",
		"causeway.v1.inventory.idc-sh.07.snapshot", "causeway.v1.inventory.idc-sh.7.teleport", "causeway.v1.inventory.idc-sh.7", "causeway.v1.inventory.idc-sh.7.snapshot.x",
		"causeway.v1.inventory.IDC.7.snapshot", "other.idc-sh.7.snapshot", ""} {
		_, err := ParseFactSubject(s)
		require.Error(t, err, s)
	}
}

// The threat: a member of the cluster, or whoever reaches the NATS server, names subjects as it
// likes. What is read is what is written, byte for byte: no two subjects are one node's.
func FuzzParseFactSubject(f *testing.F) {
	f.Add(InventorySubject("idc-sh", 7))
	f.Add("causeway.v1.inventory.a.01.delta")
	f.Fuzz(func(t *testing.T, s string) {
		if o, err := ParseFactSubject(s); err == nil {
			require.Equal(t, s, o.String())
		}
	})
}
