package protocol

import (
	"fmt"
	"strings"
	"unicode"
)

// Bounds of labels, of a node or a container.
const (
	MaxNodeLabels  = 64
	MaxLabelLength = 256 // bytes, key and value each
)

// CheckLabel says what is wrong with a label, nil if nothing: key and value have at most
// MaxLabelLength bytes and hold only what prints, and the key is not empty and has no
// space, '=' or ',', which flags and selectors give a meaning.
func CheckLabel(key, value string) error {
	unfit := func(s string) bool {
		return strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar })
	}
	switch {
	case key == "" || strings.ContainsAny(key, " =,") || unfit(key):
		return fmt.Errorf("label %.40q: a key has 1 to %d characters without space, '=' or ','", key, MaxLabelLength)
	case unfit(value):
		return fmt.Errorf("label %.40q: its value has characters that do not print", key)
	case len(key) > MaxLabelLength || len(value) > MaxLabelLength:
		return fmt.Errorf("label %.40q: key and value have at most %d bytes each", key, MaxLabelLength)
	}
	return nil
}

// CheckLabels is CheckLabel for all labels of one thing, and bounds how many there are.
func CheckLabels(l map[string]string) error {
	if len(l) > MaxNodeLabels {
		return fmt.Errorf("%d labels; at most %d", len(l), MaxNodeLabels)
	}
	for k, v := range l {
		if err := CheckLabel(k, v); err != nil {
			return err
		}
	}
	return nil
}
