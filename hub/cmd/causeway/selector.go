package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// selector is a flag that picks objects by labels; all its terms have to hold.
type selector []term

// term is k=v, k!=v, k or !k.
type term struct {
	key, value string
	has        bool // with any value
	not        bool
}

const selectorUsage = "only with these labels: `k=v`,k!=v,k,!k; all have to hold"

func (s *selector) flag(cmd *cobra.Command) {
	cmd.Flags().VarP(s, "selector", "l", selectorUsage)
}

func (s *selector) String() string { return "" }
func (s *selector) Type() string   { return "SELECTOR" }

// Set parses one selector; several add up.
func (s *selector) Set(text string) error {
	for _, t := range strings.Split(text, ",") {
		var x term
		switch k, v, eq := strings.Cut(t, "="); {
		case eq && strings.HasSuffix(k, "!"):
			x = term{key: strings.TrimSuffix(k, "!"), value: v, not: true}
		case eq:
			x = term{key: k, value: strings.TrimPrefix(v, "=")}
		default:
			k, not := strings.CutPrefix(t, "!")
			x = term{key: k, has: true, not: not}
		}
		if x.key == "" || strings.ContainsAny(x.key, "! \t") {
			return fmt.Errorf("%q is none of k=v, k!=v, k, !k", t)
		}
		*s = append(*s, x)
	}
	return nil
}

// matches reports whether labels have all that s asks for.
func (s selector) matches(labels map[string]string) bool {
	return !slices.ContainsFunc(s, func(t term) bool {
		v, ok := labels[t.key]
		return (ok && (t.has || v == t.value)) == t.not
	})
}

// pick keeps what matches.
func pick[T any](s selector, items []T, labels func(T) map[string]string) []T {
	if len(s) == 0 {
		return items
	}
	return slices.DeleteFunc(items, func(t T) bool { return !s.matches(labels(t)) })
}
