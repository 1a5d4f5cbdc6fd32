package protocol

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGoneList(t *testing.T) {
	key, err := NewClusterPrivateKey()
	require.NoError(t, err)
	pin := key.Public().Pin()
	s := SignGone([]NodeNumber{300, 2, 5, 2}, key)
	require.Equal(t, []byte{1, 2, 3, 0xa7, 0x02}, s.Payload)
	l, err := s.Open(pin)
	require.NoError(t, err)
	require.Equal(t, []NodeNumber{2, 5, 300}, l)
	l, err = SignGone(nil, key).Open(pin)
	require.NoError(t, err)
	require.Empty(t, l)

	many := make([]NodeNumber, MaxGone+1)
	for i := range many {
		many[i] = NodeNumber(1000 * (i + 1))
	}
	s = SignGone(many, key)
	require.LessOrEqual(t, len(s.Payload), maxGoneList)
	l, err = s.Open(pin)
	require.NoError(t, err)
	require.Len(t, l, MaxGone)

	other, err := NewClusterPrivateKey()
	require.NoError(t, err)
	_, err = s.Open(other.Public().Pin())
	require.ErrorIs(t, err, ErrPinMismatch)
	s.Payload[3] ^= 1
	_, err = s.Open(pin)
	require.ErrorIs(t, err, ErrGoneListInvalid)
	for _, b := range [][]byte{nil, {2}, {1, 0}, {1, 0x80}, {1, 0xff, 0xff, 0xff, 0x7f}, {1, 0xff, 0xff, 0xff, 0x07, 1}} {
		_, err := SignedGoneList{key.Public(), b, key.Sign(append([]byte(signGoneListLabel), b...))}.Open(pin)
		require.ErrorIs(t, err, ErrGoneListInvalid, "%x", b)
	}
}

// FuzzGoneList: an agent shows the hub, and a hub an agent, what it calls such a
// list. Nothing but the cluster's own is taken, and what is taken is in order.
func FuzzGoneList(f *testing.F) {
	key, err := NewClusterPrivateKey()
	if err != nil {
		f.Fatal(err)
	}
	pin := key.Public().Pin()
	f.Add(SignGone([]NodeNumber{2, 5, 300, MaxNodeNumber}, key).Payload)
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := (SignedGoneList{key.Public(), b, make([]byte, 64)}).Open(pin); err == nil {
			t.Fatal("took what nobody signed")
		}
		l, err := SignedGoneList{key.Public(), b, key.Sign(append([]byte(signGoneListLabel), b...))}.Open(pin)
		if err != nil {
			return
		}
		if len(l) > MaxGone || !slices.IsSorted(l) || len(l) > 0 && (!l[0].Valid() || !l[len(l)-1].Valid()) {
			t.Fatalf("took %v", l)
		}
		again, err := SignGone(l, key).Open(pin)
		if err != nil || !slices.Equal(again, l) {
			t.Fatalf("%v became %v: %v", l, again, err)
		}
	})
}
