package frame

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// Selector is a flag that picks objects by labels; all its terms have to hold.
type Selector []term

// term is k=v, k!=v, k or !k.
type term struct {
	key, value string
	has        bool // with any value
	not        bool
}

const selectorUsage = "only with these labels: `k=v`,k!=v,k,!k; all have to hold"

// Flag adds --selector.
func (s *Selector) Flag(cmd *cobra.Command) {
	cmd.Flags().VarP(s, "selector", "l", selectorUsage)
}

// String is empty: there is no default.
func (s *Selector) String() string { return "" }

// Type names the value in help.
func (s *Selector) Type() string { return "SELECTOR" }

// Set parses one selector; several add up.
func (s *Selector) Set(text string) error {
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

// Matches reports whether labels have all that s asks for.
func (s Selector) Matches(labels map[string]string) bool {
	return !slices.ContainsFunc(s, func(t term) bool {
		v, ok := labels[t.key]
		return (ok && (t.has || v == t.value)) == t.not
	})
}

// Pick keeps what matches.
func Pick[T any](s Selector, items []T, labels func(T) map[string]string) []T {
	if len(s) == 0 {
		return items
	}
	return slices.DeleteFunc(items, func(t T) bool { return !s.Matches(labels(t)) })
}
