package exitstatus

import (
	"errors"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
)

func TestStatus(t *testing.T) {
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"ok"}, Done}, {[]string{"fails"}, Failed}, {[]string{"--help"}, Done},
		{[]string{"fails", "--no-such"}, Usage}, {[]string{"ok", "too", "many"}, Usage}, {[]string{"nothing"}, Usage},
	} {
		root := &cobra.Command{Use: "x", SilenceErrors: true, SilenceUsage: true}
		root.SetOut(t.Output())
		root.AddCommand(&cobra.Command{Use: "ok", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { return nil }},
			&cobra.Command{Use: "fails", RunE: func(*cobra.Command, []string) error { return errors.New("no") }})
		status := Watch(root)
		root.SetArgs(c.args)
		require.Equal(t, c.want, status(root.Execute()), c.args)
	}
}
