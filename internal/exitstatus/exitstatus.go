// Package exitstatus is what the programs end with: 0 for what was done, 1 for what
// failed, 2 for a command line that is wrong, so that nothing was tried.
package exitstatus

import "github.com/spf13/cobra"

// Statuses.
const (
	Done   = 0
	Failed = 1
	Usage  = 2
)

// Watch makes root note when a command begins. What it returns tells the status that
// goes with an error: an error before that is one of the command line.
func Watch(root *cobra.Command) func(error) int {
	began := false
	root.PersistentPreRun = func(*cobra.Command, []string) { began = true }
	return func(err error) int {
		switch {
		case err == nil:
			return Done
		case began:
			return Failed
		}
		return Usage
	}
}
