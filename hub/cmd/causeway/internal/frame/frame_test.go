package frame

import (
	"bytes"
	"encoding/json"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestUnits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m",
		2 * time.Hour: "2h", 47 * time.Hour: "47h", 49 * time.Hour: "2d",
	} {
		require.Equal(t, want, Span(d))
	}
	for d, want := range map[time.Duration]string{
		time.Hour: "1h", 30 * time.Minute: "30m", 90 * time.Minute: "1h30m", 90 * time.Second: "1m30s", 10 * time.Second: "10s", time.Hour + time.Second: "1h0m1s",
	} {
		require.Equal(t, want, Short(d))
	}
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 3 << 30: "3.0 GiB", 1<<64 - 1: "16.0 EiB"} {
		require.Equal(t, want, Size(n))
	}
	require.Equal(t, "-", Millis(0))
	require.Equal(t, "0.04 ms", Millis(42*time.Microsecond))
	require.Equal(t, "-", Age(time.Time{}))
	require.Equal(t, "0s", Age(time.Now().Add(time.Hour)))
}

// TestTableOnTerminal wraps the last column alone, and paints.
func TestTableOnTerminal(t *testing.T) {
	p := &Page{Colour: true, Width: 40}
	p.Table([]string{"NODE", "STATE", "WHY"}, [][]any{{"sh-1", Cell{Text: "ready", Meaning: Good}, "the quick brown fox jumps over\x1b[2J the lazy dog"}})
	require.Equal(t, "NODE  STATE  WHY\nsh-1  \x1b[32mready\x1b[0m  the quick brown fox jumps\n             over [2J the lazy dog\n", p.b.String())
}

// A list that is watched prints what is new, changed and gone, and nothing twice.
func TestWatchPrintsChanges(t *testing.T) {
	var out bytes.Buffer
	c := New(nil, &out, io.Discard)
	c.Format, c.watch = FormatJSON, &watcher{seen: map[string]string{}}
	show := func(states ...string) (got []change) {
		t.Helper()
		out.Reset()
		items := make([]observed, 0, len(states))
		for i, s := range states {
			name := string(rune('a' + i))
			items = append(items, observed{name, s, []any{name, s, Aged(time.Now().Add(-time.Duration(out.Len()) * time.Hour))}})
		}
		require.NoError(t, c.observe([]string{"N", "S", "AGE"}, items))
		for d := json.NewDecoder(&out); ; {
			var ch change
			if err := d.Decode(&ch); err != nil {
				require.ErrorIs(t, err, io.EOF)
				return got
			}
			got = append(got, ch)
		}
	}
	require.Equal(t, []change{{"present", "a", "up"}, {"present", "b", "up"}}, show("up", "up"))
	require.Empty(t, show("up", "up"))
	require.Equal(t, []change{{"changed", "b", "down"}, {"added", "c", "up"}}, show("up", "down", "up"))
	require.Equal(t, []change{{"removed", "c", nil}}, show("up", "down"))
}

func TestSelector(t *testing.T) {
	l := map[string]string{"rack": "r1", "zone": "z"}
	for text, want := range map[string]bool{"rack=r1": true, "rack==r1": true, "rack=r2": false, "rack!=r2": true, "rack!=r1": false, "none!=x": true,
		"rack": true, "!rack": false, "!none": true, "none": false, "rack=r1,zone=z": true, "rack=r1,zone=y": false} {
		var s Selector
		require.NoError(t, s.Set(text))
		require.Equal(t, want, s.Matches(l), text)
	}
	for _, bad := range []string{"", "=x", "a,,b", "!", "!=x", "a b=c"} {
		require.Error(t, new(Selector).Set(bad), bad)
	}
}
