package netns

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// manyPrefixes are n ranges of peers, no two side by side.
func manyPrefixes(n int) (out []netip.Prefix) {
	for i := range n {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(20 + i/(128*256)), byte(i / 128), byte(i % 128 * 2), 0}), 24))
	}
	return out
}

// What an apply takes with many ranges (figures by -v): the first one, one that finds all right, and one
// with a range more; and that the host is as planned after them.
func TestApplyAtScale(t *testing.T) {
	sizes := []int{1000}
	if os.Getenv("CAUSEWAY_SOAK") != "" {
		sizes = append(sizes, 10000)
	}
	for _, n := range sizes {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			h := host(t)
			ctx := context.Background()
			c := testConfig()
			c.MTUs = nil
			many := manyPrefixes(n + 1)
			took := func(what string, f func()) time.Duration {
				t.Helper()
				begun := time.Now()
				f()
				d := time.Since(begun)
				t.Logf("%5d ranges: %-32s %6.0f ms", n, what, float64(d.Microseconds())/1000)
				return d
			}
			with := func(k int) Plan {
				c.Routes = append(testConfig().Routes, many[:k]...)
				c.Held = append(testConfig().Routes, many[:k]...)
				return plan(t, c)
			}
			p := with(n)
			took("first", func() { require.NoError(t, h.Apply(ctx, p)) })
			took("nothing to do", func() { require.NoError(t, h.Apply(ctx, p)) })
			took("nothing to do", func() { require.NoError(t, h.Apply(ctx, p)) })
			more := with(n + 1)
			took("one more", func() { require.NoError(t, h.Apply(ctx, more)) })
			took("one less", func() { require.NoError(t, h.Apply(ctx, p)) })
			c.Shields.Up = true
			shut := with(n)
			took("other rules", func() { require.NoError(t, h.Apply(ctx, shut)) })
			took("look at nftables", func() {
				d, err := h.Drift(ctx, Nftables)
				require.NoError(t, err)
				require.Empty(t, d)
			})
			requireFound(t, h, shut)
		})
	}
}
