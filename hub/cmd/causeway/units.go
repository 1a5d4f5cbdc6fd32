package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

// ageText is a max_age for a person; a hub of an older version tells none.
func ageText(a api.MaxAge) string {
	switch a {
	case 0:
		return "-"
	case api.Forever:
		return a.String()
	}
	return frame.Short(time.Duration(a))
}

// rotateText is a rotation of keys for a person.
func rotateText(r api.RotateKeys) string {
	if r == 0 || r == api.Never {
		return "by command"
	}
	return "every " + frame.Short(time.Duration(r))
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
	return frame.Join(s)
}

// conditions prints named conditions, what is wrong first.
func conditions(p *frame.Page, cs []protocol.Condition) {
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
		state := frame.Cell{Text: "ok", Meaning: frame.Good}
		if !c.OK {
			state = frame.Cell{Text: "not ok", Meaning: frame.Bad}
		}
		cause := c.Cause + c.Note
		if len(c.DependsOn) > 0 && !c.OK {
			cause += " (follows from " + strings.Join(c.DependsOn, ", ") + ")"
		}
		rows[i] = []any{c.Name, state, frame.Age(c.Since), cause}
	}
	p.Gap()
	p.Table([]string{"CONDITION", "STATE", "SINCE", "CAUSE"}, rows)
}
