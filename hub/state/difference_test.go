package state

import (
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Each kind of change says what it is about, or stands here because nobody's object
// is changed by it.
func TestEveryChangeIsAboutSomething(t *testing.T) {
	none := []string{"cluster_created", "restored", "settled", "numbers_passed", "hub_added", "hub_list_signed", "overlay_widened", "join_refused", "claims_by_segment"}
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		c := reflect.Zero(kinds[kind]).Interface().(Change)
		require.Equal(t, slices.Contains(none, kind), len(touched(c)) == 0, "%s: add it to touched, so that the audit shows before and after", kind)
	}
}

func TestDifferences(t *testing.T) {
	s := New()
	s.Epoch = 1
	change := func(cs ...Change) []Difference {
		tx := Transaction{Changes: cs}
		r := s.record(tx)
		for _, c := range cs {
			require.NoError(t, c.apply(s, time.Unix(0, 0)))
		}
		return s.differences(r)
	}
	require.Equal(t, []Difference{{"site a", "MaxAge", "", "168h0m0s"}, {"site a", "Name", "", "a"}}, change(SiteCreated{Name: "a"}))
	require.Equal(t, []Difference{{"site a", "MaxAge", "168h0m0s", "72h0m0s"}}, change(SiteMaxAge{"a", 72 * time.Hour}))
	require.Empty(t, change(SiteMaxAge{"a", 72 * time.Hour}))
	made := change(AdminCreated{Name: "eve", Role: "viewer", Hub: 1, Cert: make([]byte, 32), Expires: time.Unix(3600, 0)})
	require.Contains(t, made, Difference{"admin eve", "Role", "", "viewer"})
	require.Contains(t, made, Difference{"admin eve", "Expires", "", "1970-01-01T01:00:00Z"})
	require.Equal(t, []Difference{{"admin eve", "Revoked", "", "true"}}, change(AdminRevoked{"eve"}))
	made = change(NATSUserCreated{Name: "eve", Role: "reader", Key: userKey(t)})
	require.Contains(t, made, Difference{"NATS user eve", "Role", "", "reader"})
	require.Equal(t, []Difference{{"NATS user eve", "Revoked", "", "true"}}, change(NATSUserRevoked{"eve"}))
	require.Equal(t, []Difference{{"site a", "MaxAge", "72h0m0s", ""}, {"site a", "Name", "a", ""}}, change(SiteDeleted{"a"}))
}
