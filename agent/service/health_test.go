package service

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// Services that ask a backend the same share one question, each with the answer; another question, and another backend, is asked for itself.
func TestQuestionsAreShared(t *testing.T) {
	p := newProber()
	var mu sync.Mutex
	asked := map[question]int{}
	p.ask = func(_ context.Context, h protocol.ServiceHealth, a netip.Addr) error {
		mu.Lock()
		defer mu.Unlock()
		asked[question{a, h}]++
		return nil
	}
	tcp := protocol.ServiceHealth{Type: protocol.HealthTCP, Port: 80, Interval: protocol.Duration(time.Hour), Timeout: protocol.Duration(time.Second), Fail: 3, OK: 2}
	other := tcp
	other.Port = 81
	a, b := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2")
	l := map[target]protocol.ServiceHealth{{"x", a}: tcp, {"y", a}: tcp, {"z", a}: other, {"x", b}: tcp}
	p.set(t.Context(), l)
	require.Eventually(t, func() bool {
		for want := range l {
			if p.all()[want].ready != protocol.Ready {
				return false
			}
		}
		return len(p.all()) == len(l)
	}, 10*time.Second, 5*time.Millisecond)
	mu.Lock()
	require.Equal(t, map[question]int{{a, tcp}: 1, {a, other}: 1, {b, tcp}: 1}, asked)
	mu.Unlock()

	// One of two goes: the other still has the answer, and nobody is asked anew.
	delete(l, target{"x", a})
	p.set(t.Context(), l)
	require.Equal(t, protocol.Ready, p.all()[target{"y", a}].ready)
	require.NotContains(t, p.all(), target{"x", a})
	p.set(t.Context(), nil)
	require.Empty(t, p.all())
	require.Empty(t, p.questions)
}
