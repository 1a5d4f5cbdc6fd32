package frame

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"causeway/protocol"
)

// Exactly takes the named arguments, no more and no fewer.
func Exactly(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return fmt.Errorf("%s is missing", names[len(args)])
		}
		if len(args) > len(names) {
			return fmt.Errorf("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// Between takes these arguments, of which the first so many are needed.
func Between(needed int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		return Exactly(names[:min(max(needed, len(args)), len(names))]...)(cmd, args)
	}
}

// CheckName refuses what no site or node can be called before it is sent.
func CheckName(what, s string) error {
	if !protocol.ValidName(s) {
		article := "a"
		if strings.ContainsRune("aeiou", rune(what[0])) {
			article = "an"
		}
		return Usagef("%q cannot name %s %s: use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'", s, article, what)
	}
	return nil
}

// Must is for errors that only a mistake in this program can cause.
func Must(err error) {
	if err != nil {
		panic(err)
	}
}
