package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"causeway/hub/api"
	"causeway/protocol"
)

// age is how long ago t was, in its largest unit or two: 42s, 5m, 3h, 12d.
func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := time.Since(t)
	if d < 0 {
		return "0s" // clocks of two hosts
	}
	return span(d)
}

// aged is age in a list: it grows, and nothing has changed.
func aged(t time.Time) cell { return cell{text: age(t), moving: true} }

// agedAgo is aged with the word.
func agedAgo(t time.Time) cell { return cell{text: age(t) + " ago", moving: true} }

// span is a length of time for a person.
func span(d time.Duration) string {
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

// short is Go's text form without zeros at its end: 1h, 30m, 1h30m.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// ageText is a max_age for a person; a hub of an older version tells none.
func ageText(a api.MaxAge) string {
	switch a {
	case 0:
		return "-"
	case api.Forever:
		return a.String()
	}
	return short(time.Duration(a))
}

// rotateText is a rotation of keys for a person.
func rotateText(r api.RotateKeys) string {
	if r == 0 || r == api.Never {
		return "by command"
	}
	return "every " + short(time.Duration(r))
}

// millis is a round trip time in milliseconds.
func millis(d time.Duration) string {
	if d <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

// size is a number of bytes in binary units.
func size(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/1024, 0
	for f >= 1024 && unit < 5 {
		f, unit = f/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTPE"[unit])
}

// join lists values with commas, or none as a dash.
func join[T any](items []T) string {
	if len(items) == 0 {
		return "-"
	}
	s := make([]string, len(items))
	for i, v := range items {
		s[i] = fmt.Sprint(v)
	}
	return strings.Join(s, ", ")
}

// labelText lists labels in order.
func labelText(l map[string]string) string {
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

// pathSummary counts chosen paths to other nodes by kind: 1 direct, 3 relay, 2 idle.
// The hub names itself in a list of paths; how it is reached says little here.
func pathSummary(paths []protocol.PathStatus) string {
	n := map[protocol.PathKind]int{}
	for _, p := range paths {
		if p.Name != "hub" {
			n[p.Shown()]++
		}
	}
	return kindCounts(n)
}

func kindCounts(n map[protocol.PathKind]int) string {
	var s []string
	for _, k := range []protocol.PathKind{protocol.PathDirect, protocol.PathRelay, protocol.PathStream, protocol.PathIdle} {
		if n[k] > 0 {
			s = append(s, fmt.Sprintf("%d %s", n[k], k))
		}
	}
	return join(s)
}

// conditions prints named conditions, what is wrong first.
func (p *page) conditions(cs []protocol.Condition) {
	if len(cs) == 0 {
		return
	}
	cs = slices.Clone(cs)
	slices.SortStableFunc(cs, func(a, b protocol.Condition) int {
		switch {
		case a.OK == b.OK:
			return strings.Compare(a.Name, b.Name)
		case b.OK:
			return -1
		}
		return 1
	})
	rows := make([][]any, len(cs))
	for i, c := range cs {
		state := cell{text: "ok", meaning: good}
		if !c.OK {
			state = cell{text: "not ok", meaning: bad}
		}
		cause := c.Cause + c.Note
		if len(c.DependsOn) > 0 && !c.OK {
			cause += " (follows from " + strings.Join(c.DependsOn, ", ") + ")"
		}
		rows[i] = []any{c.Name, state, age(c.Since), cause}
	}
	p.gap()
	p.table([]string{"CONDITION", "STATE", "SINCE", "CAUSE"}, rows)
}
