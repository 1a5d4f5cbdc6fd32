package state

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// A backup, and a log on a NATS cluster of others', hold what somebody else wrote:
// whatever it is, it is folded or refused, and what is folded keeps the numbers.
func FuzzTransaction(f *testing.F) {
	first := []byte(`{"v":1,"id":"x","time":"2026-01-02T03:04:05Z","who":"hub","why":"test","changes":[` +
		`{"kind":"cluster_created","body":{"cluster_key":"KEY","epoch":1,"overlay":["198.18.0.0/15"]}},{"kind":"hub_added","body":{"number":1}}]}`)
	f.Add(first, []byte(`{"v":1,"changes":[{"kind":"restored","body":{"epoch":2,"next_number":9}}]}`))
	d := draft(f)
	add(f, d, SiteCreated{Name: "third"}, SiteMaxAge{Name: "third", MaxAge: 1}, SiteRanges{Name: "third", Ranges: []netip.Prefix{prefix("10.7.0.0/16")}})
	b, err := Transaction{ID: "x", Time: epoch0, Who: "hub", Why: "test", Changes: d.changes}.encode()
	require.NoError(f, err)
	f.Add(b, []byte(`{"v":1,"changes":[{"kind":"site_created","body":{"name":"c","ranges":["10.0.0.0/8"]}},{"kind":"node_gone","body":{"number":7}}]}`))
	f.Add([]byte(`{"v":1,"changes":null}`), []byte(`{"v":2}`))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		s := New()
		for i, b := range [][]byte{one, two} {
			tx, err := decodeTransaction(uint64(i+1), b)
			if err != nil {
				return
			}
			tx.Prev = s.hash // or nothing but the first is ever reached
			before := s.NextNumber
			next := s.clone()
			if next.apply(tx) != nil {
				return
			}
			for _, c := range tx.Changes {
				_ = c.Describe()
			}
			require.GreaterOrEqual(t, next.NextNumber, before)
			s = next
		}
	})
}
