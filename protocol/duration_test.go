package protocol

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "0": 0, "30d": 720 * time.Hour, "1d12h": 36 * time.Hour, "-1s": -time.Second, "1.5h": 90 * time.Minute,
		"65535d": 65535 * 24 * time.Hour,
	} {
		got, err := ParseDuration(s)
		require.NoError(t, err, s)
		require.Equal(t, want, got, s)
	}
	for _, s := range []string{"", "d", "-1d", "1.5d", "1d-1h", "1d1d", "12", "65536d", "65535d2500000h", "30 d", "1D", "0x1d"} {
		_, err := ParseDuration(s)
		require.ErrorContains(t, err, "is no length of time such as", s)
	}
}
