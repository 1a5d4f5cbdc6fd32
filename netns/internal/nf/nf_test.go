package nf

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
	"causeway/netns/lab"
	"causeway/netns/netnstest"
)

// An element is written as a library does, without its allocations.
func TestElement(t *testing.T) {
	value := func(typ uint16, v []byte) netlink.Attribute {
		in, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_DATA_VALUE, Data: v}})
		require.NoError(t, err)
		return netlink.Attribute{Type: typ | unix.NLA_F_NESTED, Data: in}
	}
	want, err := netlink.MarshalAttributes([]netlink.Attribute{value(unix.NFTA_SET_ELEM_KEY, []byte{1, 2, 3, 4, 5}), value(nftaElemKeyEnd, []byte{9}), value(unix.NFTA_SET_ELEM_DATA, []byte{7, 8})})
	require.NoError(t, err)
	want, err = netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED, Data: want}})
	require.NoError(t, err)
	require.Equal(t, want, Element{Key: []byte{1, 2, 3, 4, 5}, KeyEnd: []byte{9}, Data: []byte{7, 8}}.append(nil))
}

// What we write is known again among what others write at the same time, and what others do to the table is not taken for ours.
func TestStanding(t *testing.T) {
	netnstest.Namespace(t)
	s := NewStanding("mine")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := s.Watch(ctx)
	require.NoError(t, err)
	write := func(whole bool) {
		b := &Batch{Table: "mine"}
		b.AddTable()
		b.Chain("c", nil, 0)
		require.NoError(t, s.Commit(b, whole))
	}
	write(true)
	var others sync.WaitGroup
	stop := make(chan struct{})
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			// Elsewhere, by a thread that is not known.
			netnstest.Sh(t, "nft 'add table inet other; delete table inet other'")
		}
	})
	for range 100 {
		write(false)
	}
	close(stop)
	others.Wait()
	require.NoError(t, s.Written())
	// By now all of that is heard, if this is.
	touch := func() {
		t.Helper()
		netnstest.Sh(t, "nft add chain inet mine others")
		require.NoError(t, lab.Wait(ctx, "what others did", func(context.Context) error {
			if !s.Doubt() {
				return errors.New("not heard")
			}
			return nil
		}))
	}
	require.False(t, s.Doubt(), "our own")
	differs, err := s.Differs()
	require.NoError(t, err)
	require.False(t, differs)
	touch()
	<-events
	write(true)
	require.False(t, s.Doubt(), "written over")
	require.NoError(t, kernel.DeleteTable("mine")) // by a thread of ours, and no write of this table
	write(true)
	require.NoError(t, s.Written())
	differs, err = s.Differs()
	require.NoError(t, err)
	require.False(t, differs)
	touch()
}

// The kernel's lists are read within their bounds.
func FuzzReadCounted(f *testing.F) {
	value := func(typ uint16, in ...netlink.Attribute) netlink.Attribute {
		b, err := netlink.MarshalAttributes(in)
		require.NoError(f, err)
		return netlink.Attribute{Type: typ, Data: b}
	}
	elem := value(unix.NFTA_LIST_ELEM, value(unix.NFTA_SET_ELEM_KEY, netlink.Attribute{Type: unix.NFTA_DATA_VALUE, Data: []byte{1, 2, 3, 4}}),
		value(unix.NFTA_SET_ELEM_EXPR, value(unix.NFTA_EXPR_DATA, netlink.Attribute{Type: unix.NFTA_COUNTER_PACKETS, Data: []byte{0, 0, 0, 0, 0, 0, 0, 7}})))
	good, err := netlink.MarshalAttributes([]netlink.Attribute{value(unix.NFTA_SET_ELEM_LIST_ELEMENTS, elem, elem)})
	require.NoError(f, err)
	require.Equal(f, []Counted{{[]byte{1, 2, 3, 4}, 7}, {[]byte{1, 2, 3, 4}, 7}}, readCounted(nil, good))
	f.Add(good)
	f.Fuzz(func(_ *testing.T, b []byte) { readCounted(nil, b) })
}
