package service

import (
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// A host whose kernel tracks no more connections says so, and when it does again.
func TestRoom(t *testing.T) {
	n, most, ok := Tracked()
	require.True(t, ok)
	require.Positive(t, most)
	require.Less(t, n, most)

	n, most = 100, 1000
	said := ""
	e := New(Config{Tracked: func() (int, int, bool) { return n, most, true }, Fault: func(s string) { said = s }, Note: func(string) { said = "" }, Table: &standing{}, Log: zerolog.Nop()})
	now := time.Unix(1e6, 0)
	look := func() string {
		now = now.Add(roomEvery)
		require.Equal(t, now.Add(roomEvery), e.lookForRoom(now))
		require.Equal(t, now.Add(roomEvery), e.lookForRoom(now.Add(time.Second)), "not more often")
		return said
	}
	n = 960
	require.Empty(t, look(), "without services it is none of theirs")
	e.placed = single(func(*protocol.ServiceItem) {})
	n = 940
	require.Empty(t, look())
	n = 960
	require.Contains(t, look(), "conntrack is full: 960 of 1000 connections")
	n = 910
	require.Contains(t, look(), "910 of 1000")
	n = 890
	require.Empty(t, look())
	n = 940
	require.Empty(t, look())
}
