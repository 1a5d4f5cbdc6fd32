package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// moving is what a table holds that is another one in each run.
var moving = regexp.MustCompile(`\b\d+(s|m|h|d)\b|\d+\.\d\d ms|v?\S*(dirty|-g[0-9a-f]+)\S*|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`)

// The admin CLI as operators use it: the real program, hub and agents. Each script of
// testdata/cli runs after the one before it, on what that left.
func TestCLI(t *testing.T) {
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4))
	require.NoError(t, lab.Wait(step(t), "the hub to be told of direct paths", func(ctx context.Context) error {
		list, err := s.Nodes(ctx)
		if err != nil {
			return err
		}
		for _, n := range list {
			if !slices.ContainsFunc(n.Paths, func(p protocol.PathStatus) bool { return p.Name != "hub" && p.Path == protocol.PathDirect }) {
				return fmt.Errorf("%s has none", n.Name)
			}
		}
		return nil
	}))
	testscript.RunT(sequential{t}, testscript.Params{
		Dir: "testdata/cli",
		Setup: func(e *testscript.Env) error {
			e.Setenv("CAUSEWAY_SOCKET", s.Hub.Socket)
			e.Setenv("PATH", filepath.Dir(s.Bin.CLI)+string(os.PathListSeparator)+os.Getenv("PATH"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// table FILE: stdout is FILE, but for ages, times and widths of columns.
			"table": func(ts *testscript.TestScript, neg bool, args []string) {
				plain := func(s string) string {
					var lines []string
					for _, l := range strings.Split(moving.ReplaceAllString(s, "~"), "\n") {
						lines = append(lines, strings.Join(strings.Fields(l), " "))
					}
					return strings.Join(lines, "\n")
				}
				have, want := plain(ts.ReadFile("stdout")), plain(ts.ReadFile(args[0]))
				if have != want {
					ts.Fatalf("stdout is\n%s\nand not\n%s", have, want)
				}
			},
		},
	})
}

// sequential runs scripts one after the other, as they share a hub.
type sequential struct{ *testing.T }

func (s sequential) Parallel() {}

func (s sequential) Run(name string, f func(testscript.T)) {
	s.T.Run(name, func(t *testing.T) { f(sequential{t}) })
}

func (s sequential) Verbose() bool { return testing.Verbose() }
