package state

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// What an older hub let into the log folds, and is not let in anew: a rule that became
// stricter must not keep a hub from starting.
func TestOlderRulesFold(t *testing.T) {
	for _, c := range []Change{
		SiteCreated{Name: "a", Ranges: []netip.Prefix{prefix("240.0.0.0/8")}},
		SiteCreated{Name: "a", Ranges: []netip.Prefix{prefix("4000::/2")}},
		SiteCreated{Name: "a", Ranges: []netip.Prefix{prefix("0.0.0.0/1")}},
	} {
		s, err := Fold([]Transaction{{Sequence: 1, Changes: []Change{c}}})
		require.NoError(t, err, "%+v", c)
		require.Error(t, (&Draft{State: New(), Now: epoch0}).Add(c), "%+v", c)
		d := &Draft{State: s, Now: epoch0}
		require.ErrorContains(t, setRanges(d, "a", c.(SiteCreated).Ranges[0], prefix("10.2.0.0/16")), c.(SiteCreated).Ranges[0].String(), "once folded it is no more right than before")
		require.NoError(t, setRanges(d, "a", prefix("10.1.0.0/16")))
	}
	_, err := Fold([]Transaction{{Sequence: 1, Changes: []Change{SiteCreated{Name: "a", Ranges: []netip.Prefix{prefix("0.0.0.0/0")}}}}})
	require.ErrorContains(t, err, "no prefix that can be claimed")
	old := map[string]string{"a,b": "c\x1bd"}
	require.NoError(t, (&State{folding: true}).checkLabels(old))
	require.Error(t, New().checkLabels(old))
}
