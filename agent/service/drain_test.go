package service

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	svc "causeway/netns/service"
	"causeway/protocol"
)

// What a declaration takes from a service keeps what is open for the service's drain, and then it ends, once; what comes back before keeps it.
func TestDrains(t *testing.T) {
	spec := protocol.Service{Drain: protocol.Duration(time.Minute), Ports: []protocol.ServicePort{{Port: 80, Target: 8080, Protocol: "tcp"}}}
	at := func(exclude []string, but int) []*placed {
		s := spec
		s.Exclude = exclude
		l := here(t, s)
		if but >= 0 {
			l[0].endpoints = append(l[0].endpoints[:but:but], l[0].endpoints[but+1:]...)
		}
		return l
	}
	backend := func(i int) netip.Addr { return at(nil, -1)[0].endpoints[i].Addr }
	ends := func(d drains, now time.Time, l []*placed) (out []netip.Addr) {
		f := &fence{left: map[svc.Left]bool{}}
		d.due(now, l, f)
		for k := range f.left {
			require.EqualValues(t, 80, k.Port)
			out = append(out, k.Backend)
		}
		d.done(now, l, f)
		return out
	}
	now := time.Unix(1e6, 0)
	whole := at(nil, -1)
	b := whole[0].endpoints[1]
	excluded := at([]string{b.Site}, -1)

	d := drains{}
	d.set(now, nil, whole)
	require.Empty(t, d)
	d.set(now, whole, excluded)
	d.set(now.Add(30*time.Second), excluded, excluded) // another netmap
	require.Equal(t, now.Add(time.Minute), d.next())
	require.Empty(t, ends(d, now.Add(59*time.Second), excluded))
	require.Equal(t, []netip.Addr{b.Addr}, ends(d, now.Add(time.Minute), excluded))
	require.Zero(t, d.next())
	require.Empty(t, ends(d, now.Add(time.Hour), excluded), "once")
	d.set(now, excluded, excluded)
	require.Zero(t, d.next(), "and not again while it is excluded")
	d.set(now, excluded, whole)
	require.Empty(t, d)

	d.set(now, whole, excluded)
	d.set(now, excluded, whole)
	require.Empty(t, ends(d, now.Add(time.Hour), whole), "it came back")

	// In the service no more.
	less := at(nil, 2)
	d.set(now, whole, less)
	d.set(now, less, less)
	require.Equal(t, []netip.Addr{backend(2)}, ends(d, now.Add(time.Minute), less))
	d.set(now, less, less)
	require.Empty(t, d, "which is forgotten then")
	d.set(now, whole, less)
	d.set(now, less, whole)
	require.Empty(t, d)

	// A host that could not be told is told again; a service that is gone has nothing to drain.
	d.set(now, whole, excluded)
	require.False(t, d.done(now.Add(time.Hour), excluded, &fence{}))
	require.NotEmpty(t, ends(d, now.Add(time.Hour), excluded))
	d.set(now, whole, excluded)
	d.set(now, excluded, nil)
	require.Empty(t, d)

	spec.Mode, spec.Writer = protocol.ServiceSingleWriter, "a"
	d.set(now, at(nil, -1), at([]string{b.Site}, -1))
	require.Empty(t, d, "a switch ends those")
}
