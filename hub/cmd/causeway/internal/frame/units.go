package frame

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Stamp is a moment in the reader's time zone.
func Stamp(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// Optional is join, with nothing for nothing.
func Optional(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return Join(s)
}

// Age is how long ago t was, in its largest unit or two: 42s, 5m, 3h, 12d.
func Age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := time.Since(t)
	if d < 0 {
		return "0s" // clocks of two hosts
	}
	return Span(d)
}

// Aged is age in a list: it grows, and nothing has changed.
func Aged(t time.Time) Cell { return Cell{Text: Age(t), Moving: true} }

// AgedAgo is aged with the word.
func AgedAgo(t time.Time) Cell { return Cell{Text: Age(t) + " ago", Moving: true} }

// Span is a length of time for a person.
func Span(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// Short is Go's text form without zeros at its end: 1h, 30m, 1h30m.
func Short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Millis is a round trip time in milliseconds.
func Millis(d time.Duration) string {
	if d <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

// Size is a number of bytes in binary units.
func Size(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/1024, 0
	for f >= 1024 && unit < 5 {
		f, unit = f/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTPE"[unit])
}

// Join lists values with commas, or none as a dash.
func Join[T any](items []T) string {
	if len(items) == 0 {
		return "-"
	}
	s := make([]string, len(items))
	for i, v := range items {
		s[i] = fmt.Sprint(v)
	}
	return strings.Join(s, ", ")
}

// LabelText lists labels in order.
func LabelText(l map[string]string) string {
	if len(l) == 0 {
		return "-"
	}
	s := make([]string, 0, len(l))
	for k, v := range l {
		s = append(s, k+"="+v)
	}
	slices.Sort(s)
	return strings.Join(s, ", ")
}
