//go:build policyfault

// Package policyfault switches off walls between those who may not talk, for tests of the others.
package policyfault

import (
	"os"
	"slices"
	"strings"
)

// Off reports whether the environment names a wall.
func Off(wall string) bool { return slices.Contains(strings.Split(os.Getenv(Variable), ","), wall) }
