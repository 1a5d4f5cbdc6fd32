package protocol

import (
	"strings"
	"unicode"
)

// OneLine makes text from the other side fit for one line on a terminal: Printable, and at
// most limit bytes.
func OneLine(s string, limit int) string {
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	return Printable(s)
}

// Printable makes text fit for one line on a terminal: spaces for what does not print, such as
// escape sequences, line ends and marks that turn the direction of writing.
func Printable(s string) string { return strings.Map(printable, s) }

// Folded is Printable for text of several lines, such as an error of a library: one line, with
// single spaces.
func Folded(s string) string { return Printable(strings.Join(strings.Fields(s), " ")) }

// PrintableLines is Printable for text that keeps its line ends and tabs.
func PrintableLines(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return r
		}
		return printable(r)
	}, s)
}

func printable(r rune) rune {
	if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
		return ' '
	}
	return r
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
