package protocol

import (
	"strings"
	"unicode"
)

// OneLine makes text from the other side fit for one line on a terminal: at
// most limit bytes, with spaces for what does not print, such as escape
// sequences, line ends and marks that turn the direction of writing.
func OneLine(s string, limit int) string {
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, s)
}

// OneLineLabels is OneLine for labels.
func OneLineLabels(l map[string]string) map[string]string {
	if l == nil {
		return nil
	}
	out := make(map[string]string, len(l))
	for k, v := range l {
		out[OneLine(k, MaxLabelLength)] = OneLine(v, MaxLabelLength)
	}
	return out
}
