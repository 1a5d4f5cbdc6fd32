package protocol

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func testMark(t testing.TB) (StateMark, ClusterPrivateKey) {
	k, err := NewClusterPrivateKey()
	require.NoError(t, err)
	return StateMark{Epoch: 2, Sequence: 120, Hash: make([]byte, 32), Time: time.Unix(1700000000, 5), NextNumber: 9}.Sign(k), k
}

func TestStateMark(t *testing.T) {
	m, k := testMark(t)
	pin := k.Public().Pin()
	read, err := ParseStateMark(m.Query())
	require.NoError(t, err)
	require.Equal(t, m, read)
	require.NoError(t, read.Check(pin))
	require.Less(t, len(m.Query()), MaxStateMark)

	other, err := NewClusterPrivateKey()
	require.NoError(t, err)
	require.ErrorIs(t, m.Check(other.Public().Pin()), ErrPinMismatch)
	for name, change := range map[string]func(*StateMark){
		"epoch":       func(m *StateMark) { m.Epoch++ },
		"sequence":    func(m *StateMark) { m.Sequence++ },
		"hash":        func(m *StateMark) { m.Hash = append([]byte{1}, m.Hash[1:]...) },
		"short hash":  func(m *StateMark) { m.Hash = m.Hash[1:] },
		"no hash":     func(m *StateMark) { m.Hash = nil },
		"time":        func(m *StateMark) { m.Time = m.Time.Add(time.Second) },
		"next number": func(m *StateMark) { m.NextNumber++ },
		"no number":   func(m *StateMark) { m.NextNumber = 0 },
		"signature":   func(m *StateMark) { m.Signature = m.Signature[:10] },
		"signed by another": func(m *StateMark) {
			*m = m.Sign(other)
			m.ClusterKey = k.Public()
		},
	} {
		bad := m
		change(&bad)
		require.ErrorIs(t, bad.Check(pin), ErrStateMarkInvalid, name)
	}
}

func FuzzStateMark(f *testing.F) {
	m, k := testMark(f)
	f.Add(m.Query())
	f.Add("e30")
	pin := k.Public().Pin()
	f.Fuzz(func(t *testing.T, text string) {
		m, err := ParseStateMark(text)
		if err == nil && m.Check(pin) == nil {
			again, err := ParseStateMark(m.Query())
			require.NoError(t, err)
			require.NoError(t, again.Check(pin))
		}
	})
}
