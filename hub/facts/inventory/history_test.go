package inventory

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// What is counted is what the stream has, but for a piece of each subject, and what is cut
// leaves the share.
func TestHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type message struct {
			subject string
			seq     uint64
			bytes   int
			at      time.Time
		}
		subjects := []string{"snapshot", "delta", "incident"}
		var h history
		var stream []message // as the server keeps it
		now := time.Unix(0, 0)
		for seq := uint64(1); seq <= uint64(rapid.IntRange(1, 2000).Draw(t, "messages")); seq++ {
			m := message{rapid.SampledFrom(subjects).Draw(t, "subject"), seq, rapid.SampledFrom([]int{10, 1000, 200 << 10, 1 << 20}).Draw(t, "bytes"), now}
			now = now.Add(rapid.SampledFrom([]time.Duration{0, time.Second, time.Hour}).Draw(t, "pause"))
			stream = append(stream, m)
			h.add(m.subject, m.seq, m.at, m.bytes)
		}
		kept := map[string]int{}
		var left []message // newest first
		for i := len(stream) - 1; i >= 0; i-- {
			if m := stream[i]; kept[m.subject] < maxPerSubject && stream[len(stream)-1].at.Sub(m.at) <= maxAge {
				kept[m.subject]++
				left = append(left, m)
			}
		}
		up, _ := h.beyond(nodeShare)
		h.cut(up)
		sum, over := 0, 0
		for _, m := range left {
			if m.seq > up {
				sum += m.bytes
			} else {
				over += m.bytes
			}
		}
		slack := len(subjects) * (pieceBytes + 1<<20)
		require.LessOrEqual(t, sum, nodeShare+slack, "more than the share is left")
		if over > 0 && up > 0 {
			require.GreaterOrEqual(t, sum, nodeShare-slack, "less than the share is left")
		}
		pieces := 0
		for _, l := range h.subjects {
			pieces += len(l)
		}
		require.LessOrEqual(t, pieces, 2*nodeShare/pieceBytes+len(subjects)*(maxPerSubject/pieceMessages+2), "it grows with what is sent")
		again, _ := h.beyond(nodeShare)
		require.Zero(t, again)
	})
}
