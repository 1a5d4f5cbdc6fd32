//go:build !policyfault

// Package policyfault switches off walls between those who may not talk, for tests of the others. It does nothing
// but in builds with the tag policyfault, which are never shipped.
package policyfault

// Off reports whether a wall is switched off: never.
func Off(string) bool { return false }
