package flagenv

import (
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

func TestApply(t *testing.T) {
	t.Setenv("CW_LISTEN_UDP", ":7000")
	t.Setenv("CW_PORT", "9")
	t.Setenv("CW_EMPTY", "")
	set := pflag.NewFlagSet("run", pflag.ContinueOnError)
	udp := set.String("listen-udp", ":1", "")
	port := set.Uint16("port", 1, "")
	empty := set.String("empty", "default", "")
	require.NoError(t, set.Parse([]string{"--port", "8"}))
	require.NoError(t, Apply(set, "CW"))
	require.Equal(t, ":7000", *udp)
	require.True(t, set.Changed("listen-udp"), "it wins over the file")
	require.Equal(t, uint16(8), *port, "the command line wins")
	require.Equal(t, "default", *empty)

	t.Setenv("CW_COUNT", "secret")
	set.Uint("count", 0, "")
	err := Apply(set, "CW")
	require.ErrorContains(t, err, "CW_COUNT")
	require.NotContains(t, err.Error(), "secret")
}
