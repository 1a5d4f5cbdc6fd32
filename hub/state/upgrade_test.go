package state

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// upgradeDraft is a draft of a state with live nodes 2 to 1+n.
func upgradeDraft(n int) *Draft {
	s := New()
	s.Epoch = 1
	for i := range n {
		number := protocol.NodeNumber(2 + i)
		s.Nodes.Set(number, Node{Number: number, Name: "n"})
	}
	return &Draft{State: s, Now: time.UnixMilli(1000)}
}

func TestUpgradeWaves(t *testing.T) {
	d := upgradeDraft(5)
	require.NoError(t, StartUpgrade(d, "1.3.0", []protocol.NodeNumber{2, 3, 4, 5, 6}, []int{1, 2}))
	u := d.Upgrade
	require.Equal(t, [][]protocol.NodeNumber{{2}, {3, 4}, {5, 6}}, u.Waves)
	wished := func() (out []protocol.NodeNumber) {
		for n := protocol.NodeNumber(2); n < 8; n++ {
			if w := d.Upgrade.Wish(n); w != nil {
				require.Equal(t, protocol.UpgradeWish{ID: 1000, Version: "1.3.0"}, *w)
				out = append(out, n)
			}
		}
		return out
	}
	require.Equal(t, []protocol.NodeNumber{2}, wished())
	require.True(t, IsKind(StartUpgrade(d, "1.4.0", []protocol.NodeNumber{2}, nil), Conflict), "one at a time")
	require.NoError(t, AdvanceUpgrade(d, u.ID, 0))
	require.NoError(t, AdvanceUpgrade(d, u.ID, 0), "said twice")
	require.Equal(t, []protocol.NodeNumber{2, 3, 4}, wished())
	require.True(t, IsKind(AdvanceUpgrade(d, u.ID+1, 1), Conflict), "another upgrade")
	require.NoError(t, AdvanceUpgrade(d, u.ID, 1))
	require.Equal(t, []protocol.NodeNumber{2, 3, 4, 5, 6}, wished())
	require.NoError(t, AdvanceUpgrade(d, u.ID, 2))
	require.Equal(t, UpgradeDone, d.Upgrade.State)
	require.Empty(t, wished())
	require.Len(t, u.Waves, 3, "what was read before is not changed")
	require.Equal(t, 0, u.Wave)
}

// A failed or stopped upgrade, and one that a restored hub finds, asks nobody any more.
func TestUpgradeEnds(t *testing.T) {
	for what, end := range map[string]func(d *Draft) error{
		"failed":   func(d *Draft) error { return EndUpgrade(d, 1000, UpgradeFailed, "node n: no") },
		"stopped":  func(d *Draft) error { return EndUpgrade(d, 0, UpgradeStopped, "") },
		"restored": func(d *Draft) error { d.NextNumber = 9; return d.Add(Restored{Epoch: 2, NextNumber: 9}) },
	} {
		d := upgradeDraft(2)
		d.Overlay = []netip.Prefix{protocol.DefaultOverlay4}
		require.NoError(t, StartUpgrade(d, "1.3.0", []protocol.NodeNumber{2, 3}, []int{1}))
		require.NoError(t, end(d), what)
		require.Nil(t, d.Upgrade.Wish(2), what)
		require.False(t, d.Upgrade.Ended.IsZero(), what)
		require.True(t, IsKind(AdvanceUpgrade(d, 1000, 0), Conflict), what)
	}
}

func TestUpgradeRefused(t *testing.T) {
	for what, c := range map[string]struct {
		version string
		nodes   []protocol.NodeNumber
		sizes   []int
	}{
		"version":  {"../x", []protocol.NodeNumber{2}, nil},
		"no node":  {"1.3.0", nil, nil},
		"unknown":  {"1.3.0", []protocol.NodeNumber{99}, nil},
		"bad wave": {"1.3.0", []protocol.NodeNumber{2}, []int{0}},
	} {
		require.Error(t, StartUpgrade(upgradeDraft(1), c.version, c.nodes, c.sizes), what)
	}
}
