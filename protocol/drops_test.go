package protocol

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDrops(t *testing.T) {
	require.Len(t, DropReasons(), 16)
	before := Drops{DropSpoofed: 2, DropNoRoute: 5, DropUnknown: 0}
	now := Drops{DropSpoofed: 5, DropNoRoute: 5, DropUnknown: 1, "later": 7}
	grown := now.Since(before)
	require.Equal(t, Drops{DropSpoofed: 3, DropUnknown: 1, "later": 7}, grown)
	require.Nil(t, before.Since(now), "a counter that began anew")
	require.Equal(t, []string{
		"3 from an address that the peer may not send from (spoofed)",
		"1 of no session that is known, or of one that ended (unknown)",
	}, grown.Lines())
	require.Empty(t, Drops{DropRejected: 0}.Lines())
}
