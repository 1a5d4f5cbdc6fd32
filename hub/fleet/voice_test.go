package fleet

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"
)

// What a node has the hub log is bounded, and a later line tells how much was left out.
func TestVoice(t *testing.T) {
	var b bytes.Buffer
	v := newVoice()
	log := zerolog.New(&b).Hook(v).With().Str("node", "n1").Logger() // as a session's
	for range 10 * voiceBurst {
		log.Warn().Msg("node reports an error")
		log.Debug().Msg("for whoever debugs")
	}
	lines := bytes.Split(bytes.TrimSpace(b.Bytes()), []byte("\n"))
	require.Len(t, lines, voiceBurst+10*voiceBurst)
	v.pace.SetLimit(rate.Inf)
	b.Reset()
	for _, want := range []int{9 * voiceBurst, 0} {
		log.Info().Msg("node connected")
		var line struct {
			Left int `json:"not_logged"`
		}
		require.NoError(t, json.Unmarshal(b.Bytes(), &line))
		require.Equal(t, want, line.Left)
		b.Reset()
	}
}
