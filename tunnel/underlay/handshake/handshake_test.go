package handshake

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

func message(t protocol.MessageType, sender, receiver uint32) []byte {
	n := map[protocol.MessageType]int{1: 148, 2: 92, 3: 64, 4: 32}[t]
	b := make([]byte, n)
	b[0] = byte(t)
	binary.LittleEndian.PutUint32(b[4:], sender)
	if t == protocol.MessageResponse {
		binary.LittleEndian.PutUint32(b[8:], receiver)
	} else if t != protocol.MessageInitiation {
		binary.LittleEndian.PutUint32(b[4:], receiver)
	}
	return b
}

type world struct {
	*Table
	now  time.Time
	sent []byte // types
}

func newWorld(self protocol.NodeNumber) *world {
	w := &world{now: time.Unix(1000, 0)}
	w.Table = New(self, func(_ protocol.NodeNumber, m []byte) { w.sent = append(w.sent, m[0]) }, func() {})
	return w
}

func (w *world) pass(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(10 * time.Millisecond) {
		w.Tick(w.now)
	}
}

func TestRepeatsAreBounded(t *testing.T) {
	w := newWorld(5)
	w.Sent(w.now, 9, message(1, 1, 0))
	w.pass(Every / 2)
	require.Equal(t, []byte{1}, w.sent)
	w.pass(Every)
	require.Equal(t, []byte{1, 1}, w.sent)
	w.pass(time.Minute)
	require.Len(t, w.sent, 1+Times)
	require.True(t, w.Tick(w.now).IsZero(), "nothing is kept")
}

func TestAnswersEndRepeats(t *testing.T) {
	for name, c := range map[string]struct {
		sent, wrong, answer []byte
	}{
		"response":          {message(1, 7, 0), message(2, 1, 8), message(2, 1, 7)},
		"cookie":            {message(1, 7, 0), message(3, 0, 8), message(3, 0, 7)},
		"transport":         {message(2, 7, 3), message(4, 0, 8), message(4, 0, 7)},
		"cookie to a reply": {message(2, 7, 3), message(3, 0, 8), message(3, 0, 7)},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(5)
			w.Sent(w.now, 9, c.sent)
			require.True(t, w.Received(w.now, 9, c.wrong))
			require.True(t, w.Received(w.now, 8, c.answer), "another peer's")
			w.pass(Every + 20*time.Millisecond)
			require.Len(t, w.sent, 2)
			require.True(t, w.Received(w.now, 9, c.answer))
			w.pass(time.Minute)
			require.Len(t, w.sent, 2)
		})
	}
}

func TestTheLowerNumberWins(t *testing.T) {
	low, high := newWorld(5), newWorld(9)
	low.Sent(low.now, 9, message(1, 1, 0))
	high.Sent(high.now, 5, message(1, 2, 0))
	require.False(t, low.Received(low.now, 9, message(1, 2, 0)))
	require.True(t, high.Received(high.now, 5, message(1, 1, 0)))
	// What the engine answers is authenticated: now ours is given up, not before.
	high.pass(Every + 20*time.Millisecond)
	require.Equal(t, []byte{1, 1}, high.sent)
	high.Sent(high.now, 5, message(2, 3, 1))
	high.pass(Every + 20*time.Millisecond)
	require.Equal(t, []byte{1, 1, 2, 2}, high.sent)
	require.True(t, low.Received(low.now, 9, message(2, 3, 1)))
	require.True(t, low.Received(low.now, 9, message(1, 4, 0)), "nothing of ours is under way")

	// Ours may never get through: the other's is taken after a while.
	low.Sent(low.now, 9, message(1, 6, 0))
	require.False(t, low.Received(low.now, 9, message(1, 7, 0)))
	low.pass(crossFor)
	require.True(t, low.Received(low.now, 9, message(1, 7, 0)))
}

func TestForgetAndHurry(t *testing.T) {
	w := newWorld(5)
	w.Sent(w.now, 9, message(1, 1, 0))
	w.Hurry(w.now, 9)
	w.Tick(w.now)
	require.Len(t, w.sent, 2)
	w.Forget(9)
	w.pass(time.Minute)
	require.Len(t, w.sent, 2)
}
