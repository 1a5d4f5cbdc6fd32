package netns

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseSocket(t *testing.T) {
	for in, want := range map[string]string{
		"0100007F:1F90":                         "127.0.0.1:8080",
		"00000000:01BB":                         "0.0.0.0:443",
		"00000000000000000000000000000000:1BA8": "[::]:7080",
		"B80D0120000000000000000001000000:0050": "[2001:db8::1]:80",
	} {
		got, ok := parseSocket(in)
		require.True(t, ok, in)
		require.Equal(t, want, got.String())
	}
	for _, in := range []string{"", "0100007F", "zz:1", "0100:1", "0100007F:12345"} {
		_, ok := parseSocket(in)
		require.False(t, ok, in)
	}
}
