// Package manpages gives a program the hidden command that writes its manual
// pages, which packages carry.
package manpages

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// Command makes the command 'man DIR'. The pages' date is SOURCE_DATE_EPOCH's
// where that is set.
func Command(version string) *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Short: "Write the manual pages into a directory", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("make directory: %w", err)
			}
			c.Root().DisableAutoGenTag = true
			h := &doc.GenManHeader{Section: "1", Source: "Causeway " + version, Manual: "Causeway"}
			if err := doc.GenManTree(c.Root(), h, args[0]); err != nil {
				return fmt.Errorf("write manual pages: %w", err)
			}
			return nil
		},
	}
}
